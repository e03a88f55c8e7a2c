"""The slots of those who judge what a model says: what is heard, who speaks, how likely the words are, how it sounds.

Shapes: N samples, T audio samples, E width of an embedding.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from lit_spectron.errors import UserError
from lit_spectron.word_errors import words

QUIETEST_SPEECH_DB = -55.0  # of full scale
FRAME_SECONDS = 0.05
MOST_WORDS_PER_SECOND = 7.0  # fast speech has 5
INSTALL = 'pip install -c constraints.txt -e ".[evaluation]"'


class Evaluator(ABC):
    """A frozen, pre-trained network beside the model.

    An implementation is a frozen dataclass of plain arguments and nothing else: two that have the same arguments are
    the same evaluator. The network is loaded at first use and kept in this module, once a process and device. It is
    an attribute of nothing, so that no checkpoint holds it and no optimiser or parameter count sees it.

    Attributes:
        device: Where the network works (``cpu``, ``cuda``, ...); ``auto`` for where the caller's data are.
        package: Python package that runs it, for `version`.
    """

    device: str = "auto"
    package: ClassVar[str]

    @property
    @abstractmethod
    def name(self) -> str:
        """What to write beside a figure."""

    @abstractmethod
    def weights(self) -> list[Path]:
        """The files of the network's weights, on this disk."""

    @abstractmethod
    def load(self, device: torch.device) -> Any:
        """The network and what belongs to it, frozen, in evaluation mode.

        Raises:
            UserError: The weights or a package are missing; says what to fetch and where to name it.
        """

    @property
    def version(self) -> str:
        """The package's version and a checksum of the weights."""
        checksum = hashlib.sha256()
        for path in self.weights():
            with path.open("rb") as file:
                checksum.update(hashlib.file_digest(file, "sha256").digest())
        return f"{self.package} {metadata.version(self.package)}, weights {checksum.hexdigest()[:12]}"

    def require(self) -> None:
        """Finds the package and the weights, without loading either.

        Raises:
            UserError: One of them is missing.
        """
        try:
            metadata.version(self.package)
        except metadata.PackageNotFoundError as error:
            raise UserError(f"{type(self).__name__}: no package {self.package}: {INSTALL}") from error
        self.weights()

    def loaded(self, device: torch.device | str) -> Any:
        """What `load` makes, once a process. ``device``: of the caller's data."""
        return _load(self, torch.device(device if self.device == "auto" else self.device))


@cache
def _load(evaluator: Evaluator, device: torch.device) -> Any:
    return evaluator.load(device)


@dataclass(frozen=True)
class Transcript:
    """What was heard.

    Attributes:
        text: As the recogniser writes it; empty where it is not trusted.
        words: Of each word its text, start and end in seconds; None unless asked for.
        gate: Why nothing is trusted: no frame is as loud as speech, or more words than anyone can say in the time.
    """

    text: str
    words: list[tuple[str, float, float]] | None = None
    gate: Literal["silence", "endless"] | None = None


class SpeechRecognizer(Evaluator):
    """Speech to text.

    Recognisers make up words where nobody speaks, and repeat themselves where they are unsure. What has no frame as
    loud as `QUIETEST_SPEECH_DB`, and transcripts of more words than anyone can say in the time, come out empty and say
    why.
    """

    @abstractmethod
    def recognize(
        self, waveforms: Sequence[np.ndarray], sample_rate_hz: int, device: torch.device | str
    ) -> list[Transcript]:
        """As `transcribe`, without its gates."""

    @torch.inference_mode()
    def transcribe(
        self, waveforms: Sequence[np.ndarray], sample_rate_hz: int, device: torch.device | str = "cpu"
    ) -> list[Transcript]:
        """(T,) float32 waveforms in [-1, 1] to what is said in them; ``device`` as in `Evaluator.loaded`."""
        transcripts = [Transcript("", gate="silence")] * len(waveforms)
        loud = [i for i, w in enumerate(waveforms) if loudest_frame_db(w, sample_rate_hz) > QUIETEST_SPEECH_DB]
        heard = self.recognize([waveforms[i] for i in loud], sample_rate_hz, device) if loud else []
        for i, transcript in zip(loud, heard, strict=True):
            endless = is_endless(transcript.text, len(waveforms[i]) / sample_rate_hz)
            transcripts[i] = Transcript("", gate="endless") if endless else transcript
        return transcripts


class SpeakerEmbedder(Evaluator):
    """Speech to a vector that tells voices apart by its direction."""

    @abstractmethod
    def embed_one(self, waveform: np.ndarray, sample_rate_hz: int, device: torch.device | str) -> Tensor:
        """(T,) float32 in [-1, 1] to (E,) of any length."""

    @torch.inference_mode()
    def embed(
        self, waveforms: Sequence[np.ndarray], sample_rate_hz: int, device: torch.device | str = "cpu"
    ) -> list[Tensor]:
        """(T,) waveforms, one after the other since padding would leave its mark, to (E,) of unit length on the CPU.

        Raises:
            ValueError: There is nothing in a waveform to make a vector of.
        """
        embeddings = torch.stack([self.embed_one(w, sample_rate_hz, device).float().cpu() for w in waveforms])
        norms = embeddings.norm(dim=1, keepdim=True)
        if not bool((norms.isfinite() & (norms > 0)).all()):
            raise ValueError("an embedding without direction")
        return list(embeddings / norms)


@dataclass(frozen=True)
class TextScore:
    """How unlikely a text is.

    Attributes:
        nats: Negative natural logarithm of the probability of the tokens that were scored.
        tokens: How many were.
    """

    nats: float
    tokens: int


class TextScorer(Evaluator):
    """Text to its likelihood."""

    @abstractmethod
    def score(self, texts: Sequence[str], device: torch.device | str = "cpu") -> list[TextScore]:
        """Each text by itself."""


class TextAnswerer(Evaluator):
    """Written question to written answer."""

    @abstractmethod
    def answer(self, questions: Sequence[str], device: torch.device | str = "cpu") -> list[str]:
        """Each question by itself."""


class QualityPredictor(Evaluator):
    """Speech to the opinion that listeners would have of it."""

    @abstractmethod
    def predict(
        self, waveforms: Sequence[np.ndarray], sample_rate_hz: int, device: torch.device | str = "cpu"
    ) -> list[float]:
        """(T,) float32 waveforms in [-1, 1] to mean opinion scores from 1 to 5."""


def loudest_frame_db(waveform: np.ndarray, sample_rate_hz: int) -> float:
    """Level of the loudest frame of a waveform (T,), in dB of full scale."""
    size = round(FRAME_SECONDS * sample_rate_hz)
    frames = np.pad(waveform, (0, -len(waveform) % size)).reshape(-1, size)
    return float(10 * np.log10(np.square(frames, dtype=np.float64).mean(1).max(initial=0.0) + 1e-20))


def is_endless(text: str, seconds: float) -> bool:
    """Whether a transcript holds more words than can be said: Whisper, unsure, repeats itself until its tokens end."""
    return len(words(text)) > 2 + MOST_WORDS_PER_SECOND * seconds


def resample(waveform: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """(T,) at one sampling rate to (T',) at another; the same array where they are the same."""
    if from_hz == to_hz:
        return waveform
    return import_extra("soxr").resample(waveform, from_hz, to_hz)


def import_extra(module: str) -> ModuleType:
    """A module of the optional extra ``evaluation``.

    Raises:
        UserError: It, or something that it needs, is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{module}: no module {error.name}: {INSTALL}") from error


def find_model(
    key: str,
    source: str,
    weights: Sequence[str] = ("model*.safetensors", "pytorch_model*.bin"),
    others: Sequence[str] = ("*.json", "*.txt", "*.model"),
) -> tuple[Path, list[Path]]:
    """Where a pre-trained model lies on this disk; what is not there yet comes from the hub.

    Args:
        key: Whose ``source`` it is, for the error.
        source: Local folder, or repository of the Hugging Face hub. The network is asked only if the hub's files are
            not in its cache.
        weights: Patterns of the weights' files; the first that any file matches is taken.
        others: Patterns of further files.

    Returns:
        The folder and the files of the weights.

    Raises:
        UserError: It is not to be had; says what to fetch and which key to set.
    """
    from huggingface_hub import snapshot_download

    def found_in(folder: Path) -> tuple[Path, list[Path]] | None:
        groups = (sorted(folder.glob(pattern)) for pattern in weights)
        return next(((folder, files) for files in groups if files), None)

    reason = f"holds no {' or '.join(weights)}"
    if Path(source).is_dir():
        if found := found_in(Path(source)):
            return found
        raise UserError(f"{key}: {source} {reason}")
    if Path(source).is_absolute():
        raise UserError(f"{key}: no such folder: {source}")
    for offline in (True, False):
        for pattern in weights:
            try:
                folder = snapshot_download(source, allow_patterns=[pattern, *others], local_files_only=offline)
            except (OSError, ValueError) as error:
                reason = str(error).splitlines()[0]
                break
            if found := found_in(Path(folder)):
                return found
    raise UserError(
        f"{key}: {source} is no folder, not in the hub's cache and not to be had from the hub ({reason}); fetch it "
        f"where there is a network (`hf download {source}`) and set {key} to its folder"
    )
