"""Speech to text by pre-trained recognisers of Hugging Face's transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from lit_spectron.evaluators.base import SpeechRecognizer, Transcript, find_model, resample

TOKENS_PER_SECOND = 28.0  # four for each of as many words as anyone can say


@dataclass(frozen=True)
class HuggingFaceRecognizer(SpeechRecognizer):
    """Any recogniser that transformers' pipeline for speech recognition knows: Wav2Vec2, HuBERT, Moonshine, ...

    Greedy, in float32, of stretches of up to 30 s.

    Args:
        source: Hub id or local folder.
        device: ``cpu``, ``cuda``, ...; ``auto`` for the model's.
        batch_size: Waveforms transcribed together.
        word_times: Whether words come with times (several times slower).
    """

    package: ClassVar[str] = "transformers"

    source: str = "facebook/wav2vec2-base-960h"
    device: str = "auto"
    batch_size: int = 16
    word_times: bool = False

    @property
    def name(self) -> str:
        return f"{type(self).__name__} {self.source}"

    def weights(self) -> list[Path]:
        return find_model(f"{type(self).__name__}.source", self.source)[1]

    def load(self, device: torch.device) -> Any:
        from transformers import pipeline

        from lit_spectron.huggingface import named_errors

        key = f"{type(self).__name__}.source"
        folder, _ = find_model(key, self.source)
        with named_errors(key, self.source):
            recognizer = pipeline(
                "automatic-speech-recognition",
                str(folder),
                tokenizer=self.tokenizer(folder),
                dtype=torch.float32,
                device=device,
            )
        recognizer.model.requires_grad_(False).eval()
        return recognizer

    def tokenizer(self, folder: Path) -> Any:  # noqa: ARG002
        """Where transformers' own choice from the files of a model won't do."""
        return None

    def generation_options(self, network: Any, seconds: float) -> dict[str, Any]:  # noqa: ARG002
        """What the network's ``generate`` is told, if it has one: ``seconds`` is the longest waveform's length."""
        return {"num_beams": 1}  # the pipeline's own default is five

    def recognize(
        self, waveforms: Sequence[np.ndarray], sample_rate_hz: int, device: torch.device | str
    ) -> list[Transcript]:
        recognizer = self.loaded(device)
        rate = recognizer.feature_extractor.sampling_rate
        inputs: Any = [{"raw": resample(w, sample_rate_hz, rate), "sampling_rate": rate} for w in waveforms]
        options = self.generation_options(recognizer.model, max(map(len, waveforms)) / sample_rate_hz)
        results = recognizer(
            inputs,
            batch_size=self.batch_size,
            return_timestamps="word" if self.word_times else None,
            generate_kwargs=options,
        )
        return [Transcript(r["text"].strip(), _timed_words(r) if self.word_times else None) for r in results]


@dataclass(frozen=True)
class WhisperRecognizer(HuggingFaceRecognizer):
    """Whisper.

    Args:
        source: Hub id or local folder of a Whisper model.
        device: ``cpu``, ``cuda``, ...; ``auto`` for the model's.
        batch_size: Waveforms transcribed together.
        word_times: Whether words come with times (several times slower).
        language: Of multilingual models, as Whisper names it (``en``); null lets the model decide.

    Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision".
    """

    source: str = "openai/whisper-small.en"
    language: str | None = None

    def tokenizer(self, folder: Path) -> Any:
        from transformers import WhisperTokenizer

        return WhisperTokenizer.from_pretrained(folder)

    def generation_options(self, network: Any, seconds: float) -> dict[str, Any]:
        # Nobody says more tokens in the time: what repeats itself is cut short, and found to be endless all the same.
        tokens = 24 + round(TOKENS_PER_SECOND * seconds)
        options = super().generation_options(network, seconds)
        options["max_length"] = min(network.config.max_target_positions, tokens)
        if getattr(network.generation_config, "is_multilingual", False):
            options |= {"language": self.language, "task": "transcribe"}
        return options


def _timed_words(result: dict) -> list[tuple[str, float, float]]:
    """Words whose times make sense; Whisper leaves some without an end."""
    chunks = [(c["text"].strip(), *c["timestamp"]) for c in result["chunks"]]
    return [(text, float(a), float(b)) for text, a, b in chunks if text and a is not None and b is not None and a < b]
