"""A generative decoder: each step's frames are drawn from their distribution, around its mean, by a small flow.

Shapes: B batch, N steps, r frames a step, M mel channels, D LM width, W width of the velocity network, K draws.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_spectron.audio import AudioSpec
from lit_spectron.decoders.base import SpectrogramDecoder
from lit_spectron.decoders.layers import PreNet, StopHead, normal_like, zeroed
from lit_spectron.losses import masked_mean, spectrogram_losses
from lit_spectron.types import Random


def straight_path(noise: Tensor, data: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Where the way from noise (time 0) to data (time 1) is at ``time``, and the velocity there; shapes broadcast.

    Source: Lipman et al. 2023, section 4.1, example II (optimal transport), with a smallest deviation of 0.
    """
    return (1 - time) * noise + time * data, data - noise


def euler(velocity: Callable[[Tensor, float], Tensor], start: Tensor, steps: int) -> Tensor:
    """Follows ``velocity(x, time)`` from ``start`` at time 0 to time 1 in equal steps."""
    x = start
    for i in range(steps):
        x = x + velocity(x, i / steps) / steps
    return x


class FlowMatchingDecoder(SpectrogramDecoder):
    """A post-net says what a step's frames are on average, and a flow draws how they differ from that; learned stop.

    The post-net learns by regression, as the paper's does; ``flow`` is the squared error of the velocity, from noise to
    what the post-net has left over. A flow from noise to the frames themselves learns them much more slowly. In
    training every step gets ``draws`` pairs of time and noise of its own; in evaluation all steps share fixed ones, so
    that rounds can be compared. The prediction beside the loss is the post-net's.

    Args:
        audio: The model's audio geometry.
        hidden_size: Width D of the LM.
        bottleneck_size: Width of the pre-net's hidden layer.
        postnet_size: Width of the post-net's hidden layer.
        velocity_size: Width W of the velocity network.
        velocity_blocks: Residual blocks of the velocity network.
        reduction_factor: Frames a step, r.
        prenet_dropout: Dropout in the bottleneck, active at inference too.
        draws: Pairs of time and noise a step in training: the network is cheap beside the LM.
        sampling_steps: Euler steps from noise to what is left over.
        temperature: Deviation of the noise that sampling starts from; 1 for the learned distribution.
        feature_delta_order: Order of the differences along mel in the post-net's loss.
        time_delta_order: Order of the differences along time in the post-net's loss, K.
        stop_positive_weight: Weight of the one last step against all the others in the stop loss.

    Source: Lipman et al. 2023 (arXiv 2210.02747) for the flow; Li et al. 2024 (arXiv 2406.11838), section 3, for a
    small generative head on each position of an autoregressive model; Popov et al. 2021 (Grad-TTS, arXiv 2105.06337),
    section 3, for one that starts from a predicted mean.
    """

    def __init__(
        self,
        audio: AudioSpec,
        hidden_size: int,
        bottleneck_size: int = 128,
        postnet_size: int = 512,
        velocity_size: int = 512,
        velocity_blocks: int = 3,
        reduction_factor: int = 1,
        prenet_dropout: float = 0.5,
        draws: int = 4,
        sampling_steps: int = 8,
        temperature: float = 1.0,
        feature_delta_order: int = 1,
        time_delta_order: int = 3,
        stop_positive_weight: float = 20.0,
    ):
        super().__init__()
        self.reduction_factor = reduction_factor
        self.draws = draws
        self.sampling_steps = sampling_steps
        self.temperature = temperature
        self.delta_orders = feature_delta_order, time_delta_order
        step_size = reduction_factor * audio.n_mels
        self.squeeze = PreNet(step_size, bottleneck_size, hidden_size, 1, prenet_dropout)
        self.postnet = nn.Sequential(
            nn.Linear(hidden_size, postnet_size), nn.GELU(), nn.Linear(postnet_size, step_size)
        )
        self.velocity = VelocityNetwork(step_size, hidden_size, velocity_size, velocity_blocks)
        self.split_frames = nn.Unflatten(-1, (reduction_factor, audio.n_mels))
        self.stop = StopHead(hidden_size, stop_positive_weight)

    def prenet(self, frames: Tensor, random: Random | None = None) -> Tensor:
        return self.squeeze(frames, random)

    def loss(self, hidden: Tensor, target: Tensor, mask: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        mean = self.postnet(hidden)
        prediction = self.split_frames(mean).flatten(1, 2)
        losses = spectrogram_losses(prediction, target, mask, *self.delta_orders)
        # The network sees a step's frames together: nothing is left over of those beyond the end.
        left = (target - prediction.detach().float()).masked_fill(~mask[..., None], 0)
        data = left.unflatten(1, (hidden.shape[1], -1)).flatten(2)
        time, noise = self._draw(data)
        x, wanted = straight_path(noise, data, time)
        error = self.split_frames(self.velocity(x, time, hidden).float() - wanted).flatten(2, 3)
        losses["flow"] = masked_mean(error.square(), mask[..., None])
        return {**losses, "stop": self.stop.loss(hidden, mask)}, prediction

    def _draw(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Times (K, B, N, 1), one in each of K equal parts of [0, 1], and noise (K, B, N, r * M); B, N may be 1."""
        if self.training:
            offset = torch.rand(self.draws, *data.shape[:2], 1, device=data.device)
            noise = torch.randn(self.draws, *data.shape, device=data.device)
        else:
            offset = torch.full((self.draws, 1, 1, 1), 0.5, device=data.device)
            fixed = torch.Generator().manual_seed(0)
            noise = torch.randn(self.draws, 1, 1, data.shape[2], generator=fixed).to(data.device)
        return (torch.arange(self.draws, device=data.device)[:, None, None, None] + offset) / self.draws, noise

    def step(self, hidden: Tensor, random: Random | None = None) -> tuple[Tensor, Tensor]:
        shape = len(hidden), self.velocity.step_size
        noise = self.temperature * normal_like(hidden.new_empty(shape, dtype=torch.float32), random)
        left = euler(lambda x, time: self.velocity(x, x.new_full((1,), time), hidden), noise, self.sampling_steps)
        return self.split_frames(self.postnet(hidden) + left.to(hidden.dtype)), self.stop.probability(hidden)


class VelocityNetwork(nn.Module):
    """Residual MLP, shifted, scaled and gated block by block by the time and the LM's output; it starts as zero.

    A gated shortcut carries the noisy values past the hidden width, which may be narrower than they are.

    Source: Li et al. 2024 (arXiv 2406.11838), section 4.1 (denoising MLP); the shortcut is ours.
    """

    def __init__(self, step_size: int, hidden_size: int, width: int, blocks: int):
        super().__init__()
        self.step_size = step_size
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.hidden = nn.Linear(hidden_size, width)
        self.input = nn.Linear(step_size, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.output = nn.Sequential(nn.LayerNorm(width), zeroed(nn.Linear(width, step_size)))
        self.shortcut = zeroed(nn.Linear(width, step_size))

    def forward(self, x: Tensor, time: Tensor, hidden: Tensor) -> Tensor:
        """Values (..., r * M), times (..., 1) and LM outputs (..., D), broadcast, to velocities (..., r * M)."""
        condition = F.silu(self.time(time_features(time).to(hidden.dtype)) + self.hidden(hidden))
        inner = self.input(x.to(hidden.dtype))
        for block in self.blocks:
            inner = block(inner, condition)
        return self.output(inner) + self.shortcut(condition) * x


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 3 * width))
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition).chunk(3, dim=-1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


TIME_FEATURES = 64


def time_features(time: Tensor) -> Tensor:
    """Times (..., 1) in [0, 1] to sines and cosines (..., 64), from fast to slow."""
    position = torch.arange(TIME_FEATURES // 2, device=time.device) / (TIME_FEATURES // 2)
    angle = 1000 * time * torch.exp(-math.log(10000) * position)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
