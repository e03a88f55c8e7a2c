"""What all free-running metrics share: when they are fed, reset, synchronised and logged."""

from abc import ABC, abstractmethod

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric

from lit_spectron.module import LitSpectron
from lit_spectron.types import Generation, SpeechBatch


class FreeRunningMetric(L.Callback, ABC):
    """Scores what the model generated in validation and test.

    The module decodes once a batch and hands the `Generation` to every callback; a batch that was not decoded is not
    scored. Each named metric is logged as ``val/NAME`` or ``test/NAME``.

    Attributes:
        metrics: Accumulators by name.
        rows: What was found for each utterance, by its id, since the stage began (this process's share).
    """

    def __init__(self) -> None:
        self.metrics: dict[str, Metric] = {}
        self.rows: dict[str, dict[str, float | str | None]] = {}

    @abstractmethod
    def update(self, module: LitSpectron, batch: SpeechBatch, generation: Generation) -> None:
        """Adds one batch to `metrics` and `rows`."""

    def _start(self, module: LitSpectron) -> None:
        self.rows.clear()
        for metric in self.metrics.values():
            # Lightning moves the module's own metrics to the device, and nobody else's.
            metric.to(module.device)
            metric.reset()

    def _finish(self, module: LitSpectron, stage: str) -> None:
        # Every rank computes, since computing synchronises.
        values = {f"{stage}/{name}": metric.compute() for name, metric in self.metrics.items()}
        module.log_dict(values, prog_bar=stage == "val")

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        self._start(pl_module)

    def on_test_epoch_start(self, trainer, pl_module) -> None:
        self._start(pl_module)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if outputs is not None:
            self.update(pl_module, batch, outputs)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        self._finish(pl_module, "val")

    def on_test_epoch_end(self, trainer, pl_module) -> None:
        self._finish(pl_module, "test")


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
