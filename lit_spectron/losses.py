"""Masked losses; no model in sight. Every one is a mean over valid elements, so padding never enters.

Shapes: B batch, U text positions, F frames, M mel channels, N speech steps, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossWeights:
    """Weights of the objective's terms.

    Args:
        text: Of the cross-entropy over the transcript and eos.
        spectrogram: lambda_r, of the decoder's spectrogram terms together (paper: 0.1).
        stop: Of the learned stop.
    """

    text: float = 1.0
    spectrogram: float = 0.1
    stop: float = 0.1

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum; what has no weight of its own is a spectrogram term."""
        weights = {"text": self.text, "stop": self.stop}
        return torch.stack([weights.get(name, self.spectrogram) * loss for name, loss in losses.items()]).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` where ``mask`` (broadcastable, bool) is true; 0 where it is nowhere true."""
    mask = mask.expand_as(values)
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


def text_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy in nats a token: logits (B, U, V), targets (B, U), mask (B, U)."""
    return F.cross_entropy(logits[mask].float(), targets[mask])


def l1_plus_l2(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """``d(a, b) = |a - b|_1 + |a - b|_2^2``, each a mean over valid elements (METHOD "Objective")."""
    error = prediction.float() - target.float()
    return masked_mean(error.abs() + error.square(), mask)


def spectrogram_losses(
    prediction: Tensor, target: Tensor, mask: Tensor, feature_delta_order: int = 1, time_delta_order: int = 3
) -> dict[str, Tensor]:
    """The terms of ``L_recon``: on frames, on differences along mel, on differences along time.

    Args:
        prediction: (B, F, M).
        target: (B, F, M).
        mask: (B, F) bool. A time difference that touches an invalid frame is left out.
        feature_delta_order: Differences along mel of order 1 .. this one, summed.
        time_delta_order: Differences along time of order 1 .. this one, summed (K).

    Source: Spectron eq. 3-8; METHOD "Objective".
    """
    losses = {
        "spectrogram": l1_plus_l2(prediction, target, mask[..., None]),
        "spectrogram_feature_delta": prediction.new_zeros(()).float(),
        "spectrogram_time_delta": prediction.new_zeros(()).float(),
    }
    a, b = prediction, target
    for _ in range(feature_delta_order):
        a, b = a.diff(dim=2), b.diff(dim=2)
        losses["spectrogram_feature_delta"] = losses["spectrogram_feature_delta"] + l1_plus_l2(a, b, mask[..., None])
    a, b, valid = prediction, target, mask
    for _ in range(min(time_delta_order, mask.shape[1] - 1)):
        a, b, valid = a.diff(dim=1), b.diff(dim=1), valid[:, 1:] & valid[:, :-1]
        losses["spectrogram_time_delta"] = losses["spectrogram_time_delta"] + l1_plus_l2(a, b, valid[..., None])
    return losses


def stop_loss(logits: Tensor, last: Tensor, mask: Tensor, positive_weight: float) -> Tensor:
    """Weighted binary cross-entropy of "this step is the last": logits, ``last`` and mask (B, N)."""
    loss = F.binary_cross_entropy_with_logits(
        logits.float(), last.float(), reduction="none", pos_weight=logits.new_tensor(positive_weight).float()
    )
    return masked_mean(loss, mask)
