"""Tacotron 2's decoder around the LM: strong dropout on the way in, convolutions over the whole on the way out."""

from torch import Tensor, nn

from lit_spectron.audio import AudioSpec
from lit_spectron.decoders.base import SpectrogramDecoder
from lit_spectron.decoders.layers import ConvolutionalPostNet, PreNet, StopHead
from lit_spectron.types import Random


class TacotronDecoder(SpectrogramDecoder):
    """Two-layer pre-net with dropout in both, post-net by regression, convolutional refinement, learned stop.

    Each spectrogram term of the loss is the sum of its values before and after refinement.

    Args:
        audio: The model's audio geometry.
        hidden_size: Width D of the LM.
        bottleneck_size: Width of the pre-net's two hidden layers.
        postnet_size: Width of the post-net's hidden layer.
        reduction_factor: Frames a step, r.
        prenet_dropout: Dropout in both hidden layers of the pre-net, active at inference too.
        refiner_channels: Width of the refinement's hidden layers.
        refiner_layers: Convolutions of the refinement.
        refiner_kernel_frames: Frames that each of them sees.
        feature_delta_order: Order of the differences along mel in the loss.
        time_delta_order: Order of the differences along time in the loss, K.
        stop_positive_weight: Weight of the one last step against all the others in the stop loss.

    Source: Shen et al. 2018 (Tacotron 2, arXiv 1712.05884), section 2.2; METHOD "Objective" for the loss.
    """

    def __init__(
        self,
        audio: AudioSpec,
        hidden_size: int,
        bottleneck_size: int = 256,
        postnet_size: int = 512,
        reduction_factor: int = 1,
        prenet_dropout: float = 0.5,
        refiner_channels: int = 512,
        refiner_layers: int = 5,
        refiner_kernel_frames: int = 5,
        feature_delta_order: int = 1,
        time_delta_order: int = 3,
        stop_positive_weight: float = 20.0,
    ):
        super().__init__()
        self.reduction_factor = reduction_factor
        self.delta_orders = feature_delta_order, time_delta_order
        step_size = reduction_factor * audio.n_mels
        self.squeeze = PreNet(step_size, bottleneck_size, hidden_size, 2, prenet_dropout)
        self.postnet = nn.Sequential(
            nn.Linear(hidden_size, postnet_size),
            nn.GELU(),
            nn.Linear(postnet_size, step_size),
            nn.Unflatten(-1, (reduction_factor, audio.n_mels)),
        )
        self.refiner = ConvolutionalPostNet(audio.n_mels, refiner_channels, refiner_layers, refiner_kernel_frames)
        self.context_frames = self.refiner.context_frames
        self.stop = StopHead(hidden_size, stop_positive_weight)

    def prenet(self, frames: Tensor, random: Random | None = None) -> Tensor:
        return self.squeeze(frames, random)

    def loss(self, hidden: Tensor, target: Tensor, mask: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        losses, prediction = self.refiner.losses(self.postnet(hidden).flatten(1, 2), target, mask, *self.delta_orders)
        return {**losses, "stop": self.stop.loss(hidden, mask)}, prediction

    def step(self, hidden: Tensor, random: Random | None = None) -> tuple[Tensor, Tensor]:
        return self.postnet(hidden), self.stop.probability(hidden)

    def refine(self, frames: Tensor, mask: Tensor) -> Tensor:
        return self.refiner(frames, mask)
