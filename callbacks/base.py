"""What all free-running metrics share: when they are fed, reset, synchronised and logged."""

import warnings
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable
from copy import copy, deepcopy
from typing import Any, TypeVar

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric

from callbacks.evidence import Evidence, shared_evidence
from lit_spectron.evaluators import Evaluator
from lit_spectron.module import LitSpectron

Item = TypeVar("Item")


class FreeRunningMetric(L.Callback, ABC):
    """Scores what the model generated in validation and test.

    The module decodes once a batch and hands the `Generation` to every callback; a batch that was not decoded is not
    scored. Each named metric is logged as ``val/NAME`` or ``test/NAME``. A sample that a metric could not be had of
    counts in ``NAME_left_out``, and nowhere else.

    Without a trainer: ``metric.update(Evidence(batch, generation, vocoder))`` for each batch, then
    ``metric.compute()``, and ``metric.reset()`` to begin anew.

    Attributes:
        metrics: Accumulators by name.
        rows: What was found for each utterance, by its id, since the stage began (this process's share).
        counts: Of the same, numerators and denominators: each metric is the sum of ones over the sum of the others.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, Metric] = {}
        self.rows: dict[str, dict[str, float | str]] = defaultdict(dict)
        self.counts: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)

    @property
    def evaluators(self) -> list[Evaluator]:
        return [value for value in vars(self).values() if isinstance(value, Evaluator)]

    def setup(self, trainer, pl_module, stage: str) -> None:
        for evaluator in self.evaluators:
            evaluator.require()  # rather than after hours of training

    @abstractmethod
    def update(self, evidence: Evidence) -> None:
        """Adds one batch to `metrics` and `rows`."""

    def compute(self) -> dict[str, Tensor]:
        """Each metric over all that was added in all processes, so that every one of them has to ask; NaN for none."""
        with warnings.catch_warnings():
            # A process, or a whole round, may have had nothing to add.
            warnings.filterwarnings("ignore", "The ``compute`` method of metric", UserWarning)
            found = {name: metric.compute() for name, metric in self.metrics.items()}
        # A metric may be of several figures, by name.
        return {k: v for name, value in found.items() for k, v in _named(name, value)}

    def reset(self) -> None:
        self.rows.clear()
        self.counts.clear()
        for metric in self.metrics.values():
            metric.reset()

    def fresh(self) -> "FreeRunningMetric":
        """The same judges, with nothing added."""
        other = copy(self)  # not deep: Lightning hangs the trainer, and so the model, on callbacks
        other.metrics, other.rows, other.counts = deepcopy(self.metrics), defaultdict(dict), defaultdict(dict)
        other.reset()
        return other

    def add(self, name: str, utterance: str, numerator: float, denominator: float = 1.0) -> None:
        """Adds one utterance to the `Ratio` of this name, and to its row if there is anything to count."""
        self.metrics[name].update(numerator, denominator)
        self.note(name, utterance, numerator, denominator)

    def note(self, name: str, utterance: str, numerator: float, denominator: float = 1.0) -> None:
        """Writes one utterance's share in the metric of this name into its row, if there is anything to count."""
        if numerator or denominator:
            self.rows[utterance][name] = numerator / max(1.0, denominator)
            self.counts[utterance][name] = (float(numerator), float(denominator))

    def leave_out(self, name: str, utterance: str, reason: str) -> None:
        """Counts an utterance that ``name`` could not be had of."""
        self.metrics[f"{name}_left_out"].update(1.0)
        self.rows[utterance][f"{name}_left_out"] = reason

    def start(self, module: LitSpectron) -> None:
        """Begins anew, where the module is."""
        self.reset()
        for metric in self.metrics.values():
            # Lightning moves the module's own metrics to the device, and nobody else's.
            metric.to(module.device)

    def _finish(self, module: LitSpectron, stage: str) -> None:
        shared_evidence.cache_clear()
        values = {f"{stage}/{name}": value for name, value in self.compute().items()}
        module.log_dict(values, prog_bar=stage == "val")

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        self.start(pl_module)

    def on_test_epoch_start(self, trainer, pl_module) -> None:
        self.start(pl_module)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if outputs is not None:
            self.update(shared_evidence(batch, outputs, pl_module.vocoder))

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        self._finish(pl_module, "val")

    def on_test_epoch_end(self, trainer, pl_module) -> None:
        self._finish(pl_module, "test")


def gathered(mine: Item) -> list[Item]:
    """What each process holds, in all of them, so that every one of them has to ask."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine]
    everyones: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyones, mine)
    return everyones


def _named(name: str, value: Tensor | dict[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    return value.items() if isinstance(value, dict) else [(name, value)]


class Ratio(Metric):
    """A sum over a sum, over all batches and processes; NaN where there was nothing to count."""

    numerator: Tensor
    denominator: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("numerator", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("denominator", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, numerator: float, denominator: float) -> None:
        self.numerator += numerator
        self.denominator += denominator

    def compute(self) -> Tensor:
        return (self.numerator / self.denominator).float()
