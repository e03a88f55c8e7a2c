"""The paper's decoder: two multi-layer perceptrons around the LM."""

from torch import Tensor, nn
from torch.nn import functional as F

from lit_spectron.audio import AudioSpec
from lit_spectron.decoders.base import SpectrogramDecoder
from lit_spectron.decoders.layers import StopHead, dropout
from lit_spectron.losses import spectrogram_losses
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
        step_size = reduction_factor * audio.n_mels
        self.squeeze = nn.Linear(step_size, bottleneck_size)
        self.expand = nn.Linear(bottleneck_size, hidden_size)
        self.postnet = nn.Sequential(
            nn.Linear(hidden_size, postnet_size),
            nn.GELU(),
            nn.Linear(postnet_size, step_size),
            nn.Unflatten(-1, (reduction_factor, audio.n_mels)),
        )
        self.stop = StopHead(hidden_size, stop_positive_weight)

    def prenet(self, frames: Tensor, random: Random | None = None) -> Tensor:
        return self.expand(dropout(F.relu(self.squeeze(frames.flatten(2))), self.prenet_dropout, random))

    def loss(self, hidden: Tensor, target: Tensor, mask: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        prediction = self.postnet(hidden).flatten(1, 2)
        losses = spectrogram_losses(prediction, target, mask, self.feature_delta_order, self.time_delta_order)
        return {**losses, "stop": self.stop.loss(hidden, mask)}, prediction

    def step(self, hidden: Tensor, random: Random | None = None) -> tuple[Tensor, Tensor]:
        return self.postnet(hidden), self.stop.probability(hidden)
