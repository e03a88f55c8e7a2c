"""The slot `encoder`."""

from abc import ABC, abstractmethod

from torch import Tensor

from lit_spectron.part import Part


class SpeechEncoder(Part, ABC):
    """Turns a spoken prompt into features; owns its front end.

    An implementation takes the `AudioSpec` as its first argument and sets the three attributes.

    Attributes:
        output_dim: Width E of the features.
        frames_per_second: Features a second; the most, where they follow what is said.
        sample_rate_hz: Rate of the waveforms it takes.
        vocabulary: The tokens that features stand for, where they do (`read`); None otherwise. Only a start of training
            needs their strings.
    """

    output_dim: int
    frames_per_second: float
    sample_rate_hz: int
    vocabulary: list[str] | None = None

    @abstractmethod
    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            waveform: (B, T) float32 in [-1, 1], zero beyond ``lengths``.
            lengths: (B,) in samples.

        Returns:
            features (B, S, E) and lengths (B,) in features. Padding changes no valid feature.
        """

    def read(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """What features (B, S, E) stand for, of encoders that have a ``vocabulary``.

        Returns:
            Probabilities of the likeliest tokens (B, S, K), all 0 for a feature that stands for none, and their ids.
        """
        raise NotImplementedError
