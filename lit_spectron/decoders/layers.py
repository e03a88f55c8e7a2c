"""What several decoders are built from.

Shapes: B batch, N steps, r frames a step, F = N * r frames, M mel channels, D LM width, H bottleneck, C channels.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_spectron.losses import spectrogram_losses, stop_loss
from lit_spectron.types import Random


def normal_like(values: Tensor, random: Random | None) -> Tensor:
    """Standard normal numbers in the shape (B, ...) of ``values``, from torch's generator or uniform ``random``."""
    if random is None:
        return torch.randn_like(values)
    edge = torch.finfo(torch.float32).eps  # 0 and 1 stand for infinities
    return torch.special.ndtri(random(tuple(values.shape)).clamp(edge, 1 - edge)).to(values)


def dropout(hidden: Tensor, rate: float, random: Random | None) -> Tensor:
    """Dropout that doesn't ask whether it is training (Tacotron 2's remedy against copying the previous frame)."""
    if not rate:
        return hidden
    shape = tuple(hidden.shape)
    uniform = torch.rand(shape, device=hidden.device) if random is None else random(shape)
    return hidden * (uniform >= rate) / (1 - rate)


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with an output of zero: a residual branch or a gate that starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class PreNet(nn.Module):
    """Steps (B, N, r, M) as LM input (B, N, D), through hidden layers of width H with dropout that stays on.

    Source: Shen et al. 2018 (Tacotron 2), section 2.2; the last layer only fits the LM's width.
    """

    def __init__(self, step_size: int, bottleneck_size: int, hidden_size: int, hidden_layers: int, rate: float):
        super().__init__()
        sizes = [step_size] + [bottleneck_size] * hidden_layers
        self.squeeze = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.expand = nn.Linear(bottleneck_size, hidden_size)
        self.rate = rate

    def forward(self, frames: Tensor, random: Random | None = None) -> Tensor:
        hidden = frames.flatten(2)
        for layer in self.squeeze:
            hidden = dropout(F.relu(layer(hidden)), self.rate, random)
        return self.expand(hidden)


class StopHead(nn.Linear):
    """Says of each step whether it is the last: (..., D) to logits (..., 1).

    Args:
        hidden_size: D.
        positive_weight: Weight of the one last step against all the others in the loss.
    """

    def __init__(self, hidden_size: int, positive_weight: float):
        super().__init__(hidden_size, 1)
        self.positive_weight = positive_weight

    def loss(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Of LM outputs (B, N, D) and the mask (B, N * r) of frames; a step is one where its first frame is."""
        steps = mask.unflatten(1, (hidden.shape[1], -1))[..., 0]
        is_last = steps & ~F.pad(steps[:, 1:], (0, 1))
        return stop_loss(self(hidden).squeeze(-1), is_last, steps, self.positive_weight)

    def probability(self, hidden: Tensor) -> Tensor:
        """(B, D) to (B,)."""
        return self(hidden).squeeze(-1).float().sigmoid()


class ConvolutionalPostNet(nn.Module):
    """Corrects a whole spectrogram with a view of what comes before and after.

    Frames (B, F, M) and mask (B, F) to frames (B, F, M). Invalid frames are never looked at and stay as they are.
    Normalisation is over each frame's own channels, not over the batch as in the paper, so that neither neighbours nor
    padding change a sample.

    Args:
        n_mels: M.
        channels: C, width of the hidden layers.
        layers: Convolutions; the last one has no tanh, and starts at zero.
        kernel_frames: Frames that a convolution sees.

    Attributes:
        context_frames: How far to each side of a frame all of them together look.

    Source: Shen et al. 2018 (Tacotron 2), section 2.2.
    """

    def __init__(self, n_mels: int, channels: int, layers: int, kernel_frames: int):
        super().__init__()
        sizes = [n_mels] + [channels] * (layers - 1) + [n_mels]
        self.convolutions = nn.ModuleList(nn.Conv1d(a, b, kernel_frames, padding="same") for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(layers - 1))
        zeroed(self.convolutions[-1])
        self.context_frames = layers * (kernel_frames // 2)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        invalid, hidden = ~mask[..., None], frames
        for i, convolution in enumerate(self.convolutions):
            hidden = convolution(hidden.masked_fill(invalid, 0).transpose(1, 2)).transpose(1, 2)
            if i < len(self.norms):
                hidden = self.norms[i](hidden).tanh()
        return frames + hidden.masked_fill(invalid, 0)

    def losses(
        self, frames: Tensor, target: Tensor, mask: Tensor, feature_delta_order: int, time_delta_order: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The spectrogram terms of frames (B, F, M) plus those of the refined frames, and the refined frames."""
        refined = self(frames, mask)
        before, after = (
            spectrogram_losses(prediction, target, mask, feature_delta_order, time_delta_order)
            for prediction in (frames, refined)
        )
        return {name: before[name] + after[name] for name in before}, refined
