"""Speech to text by a pre-trained Whisper model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lit_spectron.huggingface import named_errors
from lit_spectron.word_errors import words

QUIETEST_SPEECH_DB = -55.0  # of full scale
FRAME_SAMPLES = 800
MOST_WORDS_PER_SECOND = 7.0  # fast speech has 5


def loudest_frame_db(waveform: np.ndarray) -> float:
    """Level of the loudest frame of a waveform (T,), in dB of full scale."""
    frames = np.pad(waveform, (0, -len(waveform) % FRAME_SAMPLES)).reshape(-1, FRAME_SAMPLES)
    return float(10 * np.log10(np.square(frames, dtype=np.float64).mean(1).max(initial=0.0) + 1e-20))


def is_endless(text: str, seconds: float) -> bool:
    """Whether a transcript holds more words than can be said: Whisper, unsure, repeats itself until its tokens end."""
    return len(words(text)) > 2 + MOST_WORDS_PER_SECOND * seconds


@dataclass(frozen=True)
class Transcript:
    """What was heard.

    Attributes:
        text: As the model writes it.
        words: Of each word its text, start and end in seconds; None unless asked for.
    """

    text: str
    words: list[tuple[str, float, float]] | None = None


class WhisperRecognizer:
    """Greedy transcription of stretches of up to 30 s.

    Whisper makes up words where nobody speaks. What has no frame as loud as `QUIETEST_SPEECH_DB`, and transcripts of
    more words than anyone can say in the time, come out empty.

    Args:
        source: Hub id or folder of a Whisper model.
        sample_rate_hz: Of the waveforms.
        device: ``cpu``, ``cuda``, ...
        batch_size: Waveforms transcribed together.
        language: Of multilingual models, as Whisper names it (``en``); None lets the model decide.
        word_times: Whether words come with times (several times slower).

    Raises:
        UserError: The model can't be loaded.

    Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision".
    """

    def __init__(
        self,
        source: str,
        sample_rate_hz: int,
        device: str = "cpu",
        batch_size: int = 16,
        language: str | None = None,
        word_times: bool = False,
    ):
        from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer, pipeline

        with named_errors("recognizer", source):
            model = WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
            self._pipeline = pipeline(
                "automatic-speech-recognition",
                model,
                tokenizer=WhisperTokenizer.from_pretrained(source),
                feature_extractor=WhisperFeatureExtractor.from_pretrained(source),
                device=device,
            )
        self.sample_rate_hz = sample_rate_hz
        self.batch_size = batch_size
        self.word_times = word_times
        multilingual = getattr(model.generation_config, "is_multilingual", False)
        self._options = {"language": language, "task": "transcribe"} if multilingual else {}

    @torch.inference_mode()
    def transcribe(self, waveforms: Sequence[np.ndarray]) -> list[Transcript]:
        """(T,) float32 waveforms to what is said in them."""
        loud = [place for place, waveform in enumerate(waveforms) if loudest_frame_db(waveform) > QUIETEST_SPEECH_DB]
        inputs: Any = [{"raw": waveforms[place], "sampling_rate": self.sample_rate_hz} for place in loud]
        results = self._pipeline(
            inputs,
            batch_size=self.batch_size,
            return_timestamps="word" if self.word_times else False,
            generate_kwargs=self._options,
        )
        transcripts = [Transcript("", [] if self.word_times else None)] * len(waveforms)
        for place, result in zip(loud, results, strict=True):
            text = result["text"].strip()
            if not is_endless(text, len(waveforms[place]) / self.sample_rate_hz):
                transcripts[place] = Transcript(text, self._words(result) if self.word_times else None)
        return transcripts

    @staticmethod
    def _words(result: dict) -> list[tuple[str, float, float]]:
        """Words whose times make sense; Whisper leaves some without an end."""
        chunks = [(c["text"].strip(), *c["timestamp"]) for c in result["chunks"]]
        return [
            (text, float(a), float(b)) for text, a, b in chunks if text and a is not None and b is not None and a < b
        ]
