"""MELLE's decoder around the LM: each step's frames are sampled through a Gaussian latent.

Shapes: B batch, N steps, r frames a step, F = N * r frames, M mel channels, D LM width.
"""

import torch
from torch import Tensor, nn

from lit_spectron.audio import AudioSpec
from lit_spectron.decoders.base import SpectrogramDecoder
from lit_spectron.decoders.layers import ConvolutionalPostNet, PreNet, StopHead, normal_like
from lit_spectron.losses import masked_mean
from lit_spectron.types import Random


def gaussian_kl(mean: Tensor, log_variance: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """``KL(N(mean, exp(log_variance)) || N(target, 1))`` in nats a value; (B, F, M) each, mask (B, F).

    Source: MELLE, section 3.3 (KL divergence loss), as a mean over valid values instead of a sum.
    """
    mean, log_variance = mean.float(), log_variance.float()
    divergence = 0.5 * (log_variance.exp() + (mean - target).square() - 1 - log_variance)
    return masked_mean(divergence, mask[..., None])


def spectrogram_flux(mean: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """``-min(|mean_t - target_{t-1}|, |target_t - target_{t-1}|)``: lower where the mean leaves the last frame.

    Means and targets (B, F, M), mask (B, F). Source: MELLE, section 3.3 (spectrogram flux loss), as a mean over valid
    values instead of a sum; the first frame has none before it. There the reward has no end: with the weights of the
    paper, flux and divergence are together lowest where the mean is 5 from where it should be. Here it ends at the real
    change.
    """
    change = (mean[:, 1:].float() - target[:, :-1]).abs()
    real = (target[:, 1:] - target[:, :-1]).abs()
    return -masked_mean(torch.minimum(change, real), (mask[:, 1:] & mask[:, :-1])[..., None])


def sample_gaussian(mean: Tensor, log_variance: Tensor, random: Random | None) -> Tensor:
    """A draw (B, ...) of ``N(mean, exp(log_variance))``, differentiable in both."""
    return mean + torch.exp(log_variance / 2) * normal_like(mean, random)


class MelleDecoder(SpectrogramDecoder):
    """Post-net to mean and log-variance of a latent, which is sampled and made frames by a residual MLP.

    The latent is sampled in training and in decoding; in evaluation the teacher-forced loss takes its mean. Pre-net and
    convolutional refinement are Tacotron 2's.

    Args:
        audio: The model's audio geometry.
        hidden_size: Width D of the LM.
        bottleneck_size: Width of the pre-net's two hidden layers.
        postnet_size: Width of the hidden layers of the post-net and of the residual MLP.
        reduction_factor: Frames a step, r.
        prenet_dropout: Dropout in both hidden layers of the pre-net, active at inference too.
        refiner_channels: Width of the refinement's hidden layers.
        refiner_layers: Convolutions of the refinement.
        refiner_kernel_frames: Frames that each of them sees.
        kl_weight: Of the latent's divergence from a unit Gaussian around the target, inside the spectrogram terms.
        flux_weight: Of the reward for change against the previous frame, up to the real one, inside the spectrogram
            terms.
        feature_delta_order: Order of the differences along mel in the loss.
        time_delta_order: Order of the differences along time in the loss, K.
        stop_positive_weight: Weight of the one last step against all the others in the stop loss.

    Source: Meng et al. 2024 (MELLE, arXiv 2407.08551), sections 3.2 and 3.3; METHOD "Objective" for the regression.
    """

    def __init__(
        self,
        audio: AudioSpec,
        hidden_size: int,
        bottleneck_size: int = 256,
        postnet_size: int = 512,
        reduction_factor: int = 1,
        prenet_dropout: float = 0.5,
        refiner_channels: int = 256,
        refiner_layers: int = 5,
        refiner_kernel_frames: int = 5,
        kl_weight: float = 0.1,
        flux_weight: float = 0.5,
        feature_delta_order: int = 1,
        time_delta_order: int = 3,
        stop_positive_weight: float = 20.0,
    ):
        super().__init__()
        self.reduction_factor = reduction_factor
        self.kl_weight = kl_weight
        self.flux_weight = flux_weight
        self.delta_orders = feature_delta_order, time_delta_order
        step_size = reduction_factor * audio.n_mels
        self.squeeze = PreNet(step_size, bottleneck_size, hidden_size, 2, prenet_dropout)
        self.postnet = nn.Sequential(
            nn.Linear(hidden_size, postnet_size), nn.GELU(), nn.Linear(postnet_size, 2 * step_size)
        )
        self.residual = nn.Sequential(nn.Linear(step_size, postnet_size), nn.GELU(), nn.Linear(postnet_size, step_size))
        self.split_frames = nn.Unflatten(-1, (reduction_factor, audio.n_mels))
        self.refiner = ConvolutionalPostNet(audio.n_mels, refiner_channels, refiner_layers, refiner_kernel_frames)
        self.context_frames = self.refiner.context_frames
        self.stop = StopHead(hidden_size, stop_positive_weight)

    def prenet(self, frames: Tensor, random: Random | None = None) -> Tensor:
        return self.squeeze(frames, random)

    def decode(self, latent: Tensor) -> Tensor:
        """Latents (..., r * M) to frames (..., r, M)."""
        return self.split_frames(latent + self.residual(latent))

    def loss(self, hidden: Tensor, target: Tensor, mask: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        mean, log_variance = self.postnet(hidden).chunk(2, dim=-1)
        latent = sample_gaussian(mean, log_variance, None) if self.training else mean
        losses, prediction = self.refiner.losses(self.decode(latent).flatten(1, 2), target, mask, *self.delta_orders)
        mean, log_variance = (self.split_frames(values).flatten(1, 2) for values in (mean, log_variance))
        losses["kl"] = self.kl_weight * gaussian_kl(mean, log_variance, target, mask)
        losses["flux"] = self.flux_weight * spectrogram_flux(mean, target, mask)
        return {**losses, "stop": self.stop.loss(hidden, mask)}, prediction

    def step(self, hidden: Tensor, random: Random | None = None) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.postnet(hidden).chunk(2, dim=-1)
        latent = sample_gaussian(mean, log_variance, random)
        return self.decode(latent), self.stop.probability(hidden)

    def refine(self, frames: Tensor, mask: Tensor) -> Tensor:
        return self.refiner(frames, mask)
