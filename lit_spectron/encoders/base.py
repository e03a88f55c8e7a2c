"""The slot `encoder`."""

from abc import ABC, abstractmethod

from torch import Tensor

from lit_spectron.part import Part


class SpeechEncoder(Part, ABC):
    """Turns a spoken prompt into features; owns its front end.

    An implementation takes the `AudioSpec` as its first argument and sets the three attributes.

    Attributes:
        output_dim: Width E of the features.
        frames_per_second: Features a second.
        sample_rate_hz: Rate of the waveforms it takes.
    """

    output_dim: int
    frames_per_second: float
    sample_rate_hz: int

    @abstractmethod
    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            waveform: (B, T) float32 in [-1, 1], zero beyond ``lengths``.
            lengths: (B,) in samples.

        Returns:
            features (B, S, E) and lengths (B,) in features. Padding changes no valid feature.
        """
