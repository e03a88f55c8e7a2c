"""Parameter groups and the learning-rate schedule."""

import math
from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_spectron.errors import UserError


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW with linear warm-up and a cosine to a fraction of the peak.

    Args:
        total_steps: Steps of the whole schedule; normally ``${trainer.max_steps}``.
        learning_rate: Peak learning rate.
        warmup_steps: Steps of the linear warm-up.
        final_share: The last learning rate as a share of the peak.
        weight_decay: On matrices only; never on biases, norms and embeddings.
        betas: AdamW's.
    """

    total_steps: int
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    final_share: float = 0.05
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)

    def __post_init__(self) -> None:
        if self.total_steps < 1:
            raise UserError(
                f"model.optimizer.total_steps: must be positive, got {self.total_steps}; set trainer.max_steps"
            )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Trainable parameters in two groups: with weight decay, and (biases, norms, embeddings) without."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim > 1 and id(p) not in embeddings]
    kept = [p for p in trainable if p.ndim <= 1 or id(p) in embeddings]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> tuple[Optimizer, LambdaLR]:
    """The optimiser and a schedule to be stepped once a step."""
    optimizer = AdamW(parameter_groups(model, settings.weight_decay), lr=settings.learning_rate, betas=settings.betas)

    def share(step: int) -> float:
        if step < settings.warmup_steps:
            return (step + 1) / settings.warmup_steps
        progress = (step - settings.warmup_steps) / max(1, settings.total_steps - settings.warmup_steps)
        cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
        return settings.final_share + (1 - settings.final_share) * cosine

    return optimizer, LambdaLR(optimizer, share)
