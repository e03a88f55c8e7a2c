"""What callbacks judge a batch by."""

import hashlib
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from lit_spectron.errors import UserError
from lit_spectron.evaluators import (
    Evaluator,
    QualityPredictor,
    SpeakerEmbedder,
    SpeechRecognizer,
    TextAnswerer,
    TextScore,
    TextScorer,
    Transcript,
)
from lit_spectron.types import Generation, SpeechBatch
from lit_spectron.vocoders import Vocoder

Item = TypeVar("Item")


class Evidence:
    """The sounds of one decoded batch and what evaluators say of them, each worked out at first need and once: no
    evaluator is asked about the same sound or the same text again.

    Every list has one entry a sample. Where an evaluator fails on a sample, a warning names both, and the entry is
    None.

    Args:
        batch: Whose prompts were continued.
        generation: How.
        vocoder: Of the model's geometry.
        continuations: Waveforms (T,) to be judged instead of what the vocoder makes of the generation.

    Attributes:
        seconds: Spent so far: on the generation, by the vocoder, and by each evaluator's name, its loading left out.
        found: What each evaluator said of each sound or text.
    """

    def __init__(
        self,
        batch: SpeechBatch,
        generation: Generation,
        vocoder: Vocoder,
        continuations: list[np.ndarray] | None = None,
    ):
        self.batch = batch
        self.generation = generation
        self.vocoder = vocoder
        self.audio = vocoder.audio
        self.seconds: dict[str, float] = defaultdict(float)
        self.found: dict[tuple[Evaluator, str | bytes], Any] = {}
        if continuations is None:
            self.seconds["generation"] = generation.seconds
        else:
            self.continuations = continuations

    def share(self, other: "Evidence") -> None:
        """What either finds holds for both; what this one takes is counted there, too."""
        self.found, self.seconds = other.found, other.seconds

    @cached_property
    def prompts(self) -> list[np.ndarray]:
        """Waveforms (T,) on the CPU."""
        waveforms, samples = self.batch.waveform.cpu().numpy(), self.batch.prompt_samples.tolist()
        return [waveforms[i, :n] for i, n in enumerate(samples)]

    @cached_property
    def continuations(self) -> list[np.ndarray]:
        """Waveforms (T,) in [-1, 1] on the CPU, as the vocoder makes them."""
        with self._clock("vocoder"):
            sounds = self.vocoder(self.generation.log_mel, self.generation.lengths).float().clamp(-1, 1).cpu().numpy()
        samples = self.audio.frames_to_samples(self.generation.lengths).tolist()
        return [sounds[i, :n] for i, n in enumerate(samples)]

    def transcripts(self, recognizer: SpeechRecognizer) -> list[Transcript | None]:
        """Of the continuations."""
        return self._judged("continuation", recognizer, recognizer.transcribe, self.continuations)

    def prompt_transcripts(self, recognizer: SpeechRecognizer) -> list[Transcript | None]:
        return self._judged("prompt", recognizer, recognizer.transcribe, self.prompts)

    def prompt_texts(self, recognizer: SpeechRecognizer | None) -> list[str | None]:
        """Words spoken in each prompt, from the corpus's word times, or else by ear; None where neither tells."""
        texts = self.batch.prompt_text
        if recognizer is None or None not in texts:
            return texts
        heard = [t.text if t and t.gate != "endless" else None for t in self.prompt_transcripts(recognizer)]
        return [by_ear if text is None else text for text, by_ear in zip(texts, heard, strict=True)]

    def embeddings(self, embedder: SpeakerEmbedder) -> list[Tensor | None]:
        """Of the continuations: (E,) of unit length, on the CPU."""
        return self._judged("continuation", embedder, embedder.embed, self.continuations)

    def prompt_embeddings(self, embedder: SpeakerEmbedder) -> list[Tensor | None]:
        return self._judged("prompt", embedder, embedder.embed, self.prompts)

    def opinions(self, predictor: QualityPredictor) -> list[float | None]:
        """Predicted scores of the continuations."""
        return self._judged("continuation", predictor, predictor.predict, self.continuations)

    def text_scores(self, recognizer: SpeechRecognizer, scorer: TextScorer) -> list[TextScore | None]:
        """Of the continuations' transcripts; of an empty one no token is scored."""
        texts = [transcript.text if transcript else "" for transcript in self.transcripts(recognizer)]
        return self._judged("transcript", scorer, lambda some, _, device: scorer.score(some, device), texts)

    def answers(self, answerer: TextAnswerer) -> list[str | None]:
        """To the utterances' texts, which are taken for questions."""
        return self._judged(
            "question", answerer, lambda some, _, device: answerer.answer(some, device), self.batch.text
        )

    def _judged(
        self,
        subject: str,
        evaluator: Evaluator,
        judge: Callable[[list[Any], int, Any], Sequence[Any]],
        items: Sequence[str | np.ndarray],
    ) -> list[Any]:
        """What ``judge`` says of each item, or said of the same before."""
        keys = [(evaluator, fingerprint(item)) for item in items]
        new = {key: i for i, key in enumerate(keys) if key not in self.found}
        if new:
            device = self.batch.waveform.device
            evaluator.loaded(device)

            def ask(some: list[Any]) -> list[Any]:
                return list(judge(some, self.audio.sample_rate_hz, device))

            with self._clock(evaluator.name):
                try:
                    said = ask([items[i] for i in new.values()])
                except UserError:
                    raise
                except Exception:  # whatever a network meets in one sample, the others are worth asking about
                    complaint = f"{evaluator.name} fails on the {subject} of"
                    said = [self._alone(ask, items[i], f"{complaint} {self.batch.ids[i]}") for i in new.values()]
            self.found |= zip(new, said, strict=True)
        return [self.found[key] for key in keys]

    @staticmethod
    def _alone(ask: Callable[[list[Any]], list[Any]], item: Any, complaint: str) -> Any:
        try:
            return ask([item])[0]
        except Exception as error:
            warnings.warn(f"{complaint}: {error}", stacklevel=2)
            return None

    @contextmanager
    def _clock(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - began


def fingerprint(item: str | np.ndarray) -> str | bytes:
    """Of a text itself; of samples (T,) a checksum."""
    return item if isinstance(item, str) else hashlib.sha256(item.tobytes()).digest()


# Callbacks that are handed the same batch share its evidence; the next batch takes its place.
shared_evidence = lru_cache(maxsize=1)(Evidence)
