"""The slot `vocoder`."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lit_spectron.audio import AudioSpec


class Vocoder(nn.Module, ABC):
    """Log-mel to waveform. Never trained here.

    An implementation takes the model's `AudioSpec` as its first argument and raises `UserError`, with both geometries
    side by side, where it was made for another one.

    Attributes:
        audio: The geometry it was made for.
    """

    audio: AudioSpec

    @abstractmethod
    def forward(self, log_mel: Tensor, lengths: Tensor) -> Tensor:
        """Natural-log mel magnitudes (B, F, M) with lengths (B,) in frames to waveforms (B, T), zero beyond them."""
