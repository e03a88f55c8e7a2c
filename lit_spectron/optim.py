"""Parameter groups and the learning-rate schedule."""

import math
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_spectron.errors import UserError


@dataclass(frozen=True)
class PartSchedule:
    """What is different for some of the parameters.

    Args:
        learning_rate: Their peak learning rate.
        start_step: They stay as they are until this step.
    """

    learning_rate: float
    start_step: int = 0


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW with linear warm-up and a cosine to a fraction of the peak.

    A pattern stands for all parameters of the model (``encoder.*``, ``projection.*``, ``llm.*``, ``decoder.*``) whose
    names it matches, in the manner of file names; one that matches nothing is an error.

    Args:
        total_steps: Steps of the whole schedule; normally ``${trainer.max_steps}``.
        learning_rate: Peak learning rate.
        warmup_steps: Steps of the linear warm-up.
        final_share: The last learning rate as a share of the peak.
        weight_decay: On matrices only; never on biases, norms and embeddings.
        betas: AdamW's.
        freeze: Patterns of parameters that are never trained.
        parts: Pattern to the schedule of the parameters it matches; the first that matches counts.
    """

    total_steps: int
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    final_share: float = 0.05
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    freeze: list[str] = field(default_factory=list)
    parts: dict[str, PartSchedule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.total_steps < 1:
            raise UserError(
                f"model.optimizer.total_steps: must be positive, got {self.total_steps}; set trainer.max_steps"
            )


def freeze(model: nn.Module, patterns: list[str]) -> None:
    """Excludes all parameters that match one of the patterns from training.

    Raises:
        UserError: A pattern matches nothing.
    """
    for pattern in patterns:
        matched = [p for name, p in model.named_parameters() if fnmatchcase(name, pattern)]
        if not matched:
            raise UserError(f"model.optimizer.freeze: {pattern} matches no parameter")
        for parameter in matched:
            parameter.requires_grad_(False)


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Trainable parameters by schedule, each in two groups: with weight decay, and (biases, norms, embeddings) without.

    Raises:
        UserError: A pattern of ``parts`` matches nothing.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    schedules = {**settings.parts}
    schedules.setdefault("*", PartSchedule(settings.learning_rate))
    rest = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = []
    for pattern, schedule in schedules.items():
        matched = [rest.pop(name) for name in list(rest) if fnmatchcase(name, pattern)]
        if not matched and pattern in settings.parts:
            raise UserError(f"model.optimizer.parts: {pattern} matches no parameter that is trained")
        decayed = [p for p in matched if p.ndim > 1 and id(p) not in embeddings]
        kept = [p for p in matched if p.ndim <= 1 or id(p) in embeddings]
        common = {"lr": schedule.learning_rate, "start_step": schedule.start_step}
        for name, parameters, weight_decay in (("", decayed, settings.weight_decay), (" (no decay)", kept, 0.0)):
            if parameters:
                groups.append({"params": parameters, "name": pattern + name, "weight_decay": weight_decay, **common})
    return groups


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> tuple[Optimizer, LambdaLR]:
    """The optimiser and a schedule to be stepped once a step."""
    groups = parameter_groups(model, settings)
    optimizer = AdamW(groups, betas=settings.betas, fused=True)
    # With mixed precision Lightning refuses to clip the gradients of an optimiser that unscales them itself.
    optimizer._step_supports_amp_scaling = False

    def share(step: int, start_step: int) -> float:
        if step < start_step:
            return 0.0
        warmup = min(1.0, (step - start_step + 1) / max(1, settings.warmup_steps))
        progress = (step - settings.warmup_steps) / max(1, settings.total_steps - settings.warmup_steps)
        cosine = (1 + math.cos(math.pi * min(1.0, max(0.0, progress)))) / 2
        return warmup * (settings.final_share + (1 - settings.final_share) * cosine)

    return optimizer, LambdaLR(optimizer, [partial(share, start_step=group["start_step"]) for group in groups])
