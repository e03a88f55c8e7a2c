"""The paper's decoder: two multi-layer perceptrons around the LM."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_spectron.audio import AudioSpec
from lit_spectron.decoders.base import SpectrogramDecoder
from lit_spectron.losses import spectrogram_losses, stop_loss
from lit_spectron.types import Random


class MLPDecoder(SpectrogramDecoder):
    """Pre-net with a bottleneck, post-net by regression, learned stop.

    Args:
        audio: The model's audio geometry.
        hidden_size: Width D of the LM.
        bottleneck_size: Width of the pre-net's hidden layer; narrow, so that text must be listened to.
        postnet_size: Width of the post-net's hidden layer.
        reduction_factor: Frames a step, r.
        prenet_dropout: Dropout in the bottleneck, active at inference too (Tacotron 2's remedy against copying the
            previous frame); 0 for none.
        feature_delta_order: Order of the differences along mel in the loss.
        time_delta_order: Order of the differences along time in the loss, K.
        stop_positive_weight: Weight of the one last step against all the others in the stop loss.

    Source: Spectron, section 3 and eq. 3-8; METHOD "Parts", "Objective" and "What the paper does not have".
    """

    def __init__(
        self,
        audio: AudioSpec,
        hidden_size: int,
        bottleneck_size: int = 128,
        postnet_size: int = 512,
        reduction_factor: int = 1,
        prenet_dropout: float = 0.0,
        feature_delta_order: int = 1,
        time_delta_order: int = 3,
        stop_positive_weight: float = 20.0,
    ):
        super().__init__()
        self.reduction_factor = reduction_factor
        self.prenet_dropout = prenet_dropout
        self.feature_delta_order = feature_delta_order
        self.time_delta_order = time_delta_order
        self.stop_positive_weight = stop_positive_weight
        step_size = reduction_factor * audio.n_mels
        self.squeeze = nn.Linear(step_size, bottleneck_size)
        self.expand = nn.Linear(bottleneck_size, hidden_size)
        self.postnet = nn.Sequential(
            nn.Linear(hidden_size, postnet_size),
            nn.GELU(),
            nn.Linear(postnet_size, step_size),
            nn.Unflatten(-1, (reduction_factor, audio.n_mels)),
        )
        self.stop = nn.Linear(hidden_size, 1)

    def prenet(self, frames: Tensor, random: Random | None = None) -> Tensor:
        hidden = F.relu(self.squeeze(frames.flatten(2)))
        if self.prenet_dropout:
            shape = tuple(hidden.shape)
            uniform = torch.rand(shape, device=hidden.device) if random is None else random(shape)
            hidden = hidden * (uniform >= self.prenet_dropout) / (1 - self.prenet_dropout)
        return self.expand(hidden)

    def loss(self, hidden: Tensor, target: Tensor, mask: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        prediction = self.postnet(hidden).flatten(1, 2)
        losses = spectrogram_losses(prediction, target, mask, self.feature_delta_order, self.time_delta_order)
        steps = mask[:, :: self.reduction_factor]
        is_last = steps & ~F.pad(steps[:, 1:], (0, 1))
        losses["stop"] = stop_loss(self.stop(hidden).squeeze(-1), is_last, steps, self.stop_positive_weight)
        return losses, prediction

    def step(self, hidden: Tensor, random: Random | None = None) -> tuple[Tensor, Tensor]:
        return self.postnet(hidden), self.stop(hidden).squeeze(-1).float().sigmoid()
