"""Evaluators without weights: what they say follows from the sound or the text alone."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lit_spectron.audio import AudioSpec
from lit_spectron.evaluators import (
    QualityPredictor,
    SpeakerEmbedder,
    SpeechRecognizer,
    TextAnswerer,
    TextScore,
    TextScorer,
    Transcript,
)
from lit_spectron.vocoders import Vocoder

EVENTS: Counter[str] = Counter()  # loads, and items judged


class _Judge:
    """Its network is a layer that nothing may ever find in a checkpoint."""

    package: ClassVar[str] = "torch"
    device = "auto"

    @property
    def name(self) -> str:
        return type(self).__name__

    def weights(self) -> list[Path]:
        return []

    def load(self, device: torch.device) -> Any:
        EVENTS[f"{self.name} loaded"] += 1
        return nn.Linear(3, 3, device=device)


@dataclass(frozen=True)
class LengthRecognizer(_Judge, SpeechRecognizer):
    """Hears the text that belongs to a waveform's length in samples; chokes on others."""

    texts: tuple[tuple[int, str], ...]

    def recognize(self, waveforms, sample_rate_hz, device) -> list[Transcript]:
        EVENTS[f"{self.name} asked"] += len(waveforms)
        return [Transcript(dict(self.texts)[len(waveform)]) for waveform in waveforms]


@dataclass(frozen=True)
class CountingRecognizer(_Judge, SpeechRecognizer):
    """Hears a number of words that follows from the loudness."""

    def recognize(self, waveforms, sample_rate_hz, device) -> list[Transcript]:
        return [Transcript(" ".join(["one", "two", "three"][: 1 + int(1000 * abs(w).mean()) % 3])) for w in waveforms]


@dataclass(frozen=True)
class MomentEmbedder(_Judge, SpeakerEmbedder):
    """Moments of the samples, which must be more than ``shortest_samples``."""

    shortest_samples: int = 0

    def embed_one(self, waveform, sample_rate_hz, device) -> Tensor:
        EVENTS[f"{self.name} asked"] += 1
        if len(waveform) <= self.shortest_samples:
            raise RuntimeError("too short")
        return torch.tensor([abs(waveform).mean(), waveform.std(), waveform.max(), waveform.mean(), 0.01])


@dataclass(frozen=True)
class LetterScorer(_Judge, TextScorer):
    """A nat a letter, a token a word."""

    def score(self, texts: Sequence[str], device="cpu") -> list[TextScore]:
        return [TextScore(float(len(text.replace(" ", ""))), len(text.split())) for text in texts]


@dataclass(frozen=True)
class EchoAnswerer(_Judge, TextAnswerer):
    """Says the question again."""

    def answer(self, questions: Sequence[str], device="cpu") -> list[str]:
        return list(questions)


@dataclass(frozen=True)
class LevelPredictor(_Judge, QualityPredictor):
    """One to five by loudness."""

    def predict(self, waveforms: Sequence[np.ndarray], sample_rate_hz, device="cpu") -> list[float]:
        EVENTS[f"{self.name} asked"] += len(waveforms)
        return [1 + 4 * float(abs(waveform).mean()) for waveform in waveforms]


class Playback(Vocoder):
    """Plays (T,) waveforms, whatever the spectrograms are."""

    def __init__(self, audio: AudioSpec, waveforms: Sequence[Tensor]):
        super().__init__()
        self.audio = audio
        self.waveforms = list(waveforms)
        self.calls = 0

    def forward(self, log_mel: Tensor, lengths: Tensor) -> Tensor:
        self.calls += 1
        return nn.utils.rnn.pad_sequence(self.waveforms, batch_first=True)
