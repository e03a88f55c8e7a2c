"""The slot `decoder`."""

from abc import ABC, abstractmethod

from torch import Tensor

from lit_spectron.part import Part
from lit_spectron.types import Random


class SpectrogramDecoder(Part, ABC):
    """Owns everything between spectrogram frames and the LM: pre-net, post-net, stop, loss, next frames.

    It speaks normalised log-mel. A step is ``reduction_factor`` (r) consecutive frames. An implementation takes the
    `AudioSpec` and the LM's width as its first two arguments, and ``reduction_factor`` as a keyword.

    Attributes:
        reduction_factor: r.
        context_frames: How far to each side of a frame `refine` looks.

    Shapes: B batch, N steps, r frames a step, F = N * r frames, M mel channels, D LM width.
    """

    reduction_factor: int
    context_frames = 0
    shards_by_layer = False  # small, and asked for every step

    @abstractmethod
    def prenet(self, frames: Tensor, random: Random | None = None) -> Tensor:
        """Steps as LM input: (B, N, r, M) to (B, N, D). ``random`` replaces torch's generator."""

    @abstractmethod
    def loss(self, hidden: Tensor, target: Tensor, mask: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """
        Args:
            hidden: (B, N, D) LM outputs.
            target: (B, N * r, M) frames; what lies beyond the mask is never looked at.
            mask: (B, N * r) bool.

        Returns:
            Scalar losses by name, ``stop`` among them, and the predicted frames (B, N * r, M), refined.
        """

    @abstractmethod
    def step(self, hidden: Tensor, random: Random | None = None) -> tuple[Tensor, Tensor]:
        """The next step: LM output (B, D) to frames (B, r, M) and stop probability (B,)."""

    def refine(self, frames: Tensor, mask: Tensor) -> Tensor:
        """A finished spectrogram, improved as a whole: (B, F, M) with mask (B, F) to (B, F, M).

        What lies beyond the mask is never looked at. The frames fed back during decoding are the unrefined ones.
        """
        return frames
