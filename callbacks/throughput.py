"""How fast training goes."""

import math
import resource
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

GIBIBYTE = 2**30
FUSED_ATTENTION = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")


def attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """Of the two products of an attention: shapes (..., L, D), (..., K, D) and (..., K, V)."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def attention_backward_flops(_gradient: torch.Size, *shapes: Any, **__: Any) -> int:
    """Of four products, two for each of the forward pass. What a kernel computes again is no work of the model's."""
    return 2 * attention_flops(*shapes)


def flop_counter() -> FlopCounterMode:
    """Counts any attention as its matrix products. Torch's own does not know the fused one of CPUs, and counts five
    products in the others' backward pass."""
    formulas: dict[Any, Callable[..., int]] = {}
    for kernel in FUSED_ATTENTION:
        name = f"_scaled_dot_product_{kernel}"
        formulas[getattr(torch.ops.aten, name)] = attention_flops
        formulas[getattr(torch.ops.aten, f"{name}_backward")] = attention_backward_flops
    return FlopCounterMode(display=False, custom_mapping=formulas)


class Throughput(L.Callback):
    """Speed, memory and waiting of training, once every ``log_every_n_steps`` steps.

    ``train/tokens_per_second``: positions of the language model that hold something (prefix, sos, text, eos, speech
    steps; no padding), of all processes together.
    ``train/audio_seconds_per_second``: seconds of speech, of all processes together.
    ``train/data_wait_share``: share of the time between the end of a step and the beginning of the next: waiting for
    data, and whatever other callbacks do there. On a GPU the host may wait while the device still works.
    ``train/peak_memory_gib``: most memory since training began: allocated on the GPU, or resident on a CPU.
    ``train/model_flops_utilization``: floating-point operations of forward and backward pass a second, as counted in
    the first step, over the peak of the device; of the first process. Not logged where the peak is not known.

    Validation is no part of any. What is counted stays on the device until it is logged: no step waits for it.

    Args:
        peak_flops_per_second: Of one device at the training's precision; null for Lightning's table of GPUs.
    """

    def __init__(self, peak_flops_per_second: float | None = None):
        self.peak_flops_per_second = peak_flops_per_second
        self._counter = flop_counter()
        self._counting = ExitStack()

    def on_train_start(self, trainer, pl_module) -> None:
        device = pl_module.device
        self._peak = self.peak_flops_per_second
        if self._peak is None and device.type == "cuda":
            kinds = {"bf16": torch.bfloat16, "16": torch.float16}
            precision = str(trainer.precision).split("-")[0]
            self._peak = get_available_flops(device, kinds.get(precision, torch.float32))
        self._flops_per_position: float | None = None
        self._last_step = trainer.global_step
        self._restart(device)

    def _restart(self, device: torch.device) -> None:
        self._counts = torch.zeros(4, dtype=torch.float64, device=device)
        self._waited_seconds = 0.0
        self._began = self._idle_since = time.perf_counter()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._waited_seconds += time.perf_counter() - self._idle_since
        if self._peak and self._flops_per_position is None and len(batch):
            self._counting.enter_context(self._counter)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        counts = counted(batch).to(self._counts)
        self._counts += counts
        if self._peak and self._flops_per_position is None and len(batch):
            self._counting.close()
            self._flops_per_position = self._counter.get_total_flops() / self._positions(pl_module, counts)
        step = trainer.global_step
        if step > self._last_step and trainer.log_every_n_steps and step % trainer.log_every_n_steps == 0:
            self._last_step = step
            self._log(trainer, pl_module)
            self._restart(pl_module.device)
        self._idle_since = time.perf_counter()

    def on_exception(self, trainer, pl_module, exception) -> None:
        self._counting.close()

    def on_validation_start(self, trainer, pl_module) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            pause = time.perf_counter() - self._paused
            self._began, self._idle_since = self._began + pause, self._idle_since + pause

    def _log(self, trainer, module) -> None:
        positions = self._positions(module, self._counts)  # from here on the device has done all that was asked of it
        seconds = time.perf_counter() - self._began
        total = trainer.strategy.reduce(self._counts, reduce_op="sum")
        on_gpu = module.device.type == "cuda"
        values = {
            "train/tokens_per_second": self._positions(module, total) / seconds,
            "train/audio_seconds_per_second": module.model.audio.samples_to_seconds(float(total[1])) / seconds,
            "train/data_wait_share": self._waited_seconds / seconds,
            "train/peak_memory_gib": (
                torch.cuda.max_memory_allocated(module.device) / GIBIBYTE
                if on_gpu
                else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIBIBYTE
            ),
        }
        if self._peak and self._flops_per_position:
            flops = self._flops_per_position * positions
            values["train/model_flops_utilization"] = flops / seconds / self._peak
        for name, value in values.items():
            shown = name in ("train/tokens_per_second", "train/peak_memory_gib")
            module.log(name, value, batch_size=1, prog_bar=shown)

    @staticmethod
    def _positions(module, counts: Tensor) -> float:
        """Positions of the LM behind `counted`; waits for the device."""
        prompt_samples, samples, text_tokens, utterances = counts.tolist()
        prompt_rate, speech_rate = module.model.positions_per_second
        seconds = module.model.audio.samples_to_seconds
        speech = seconds(samples - prompt_samples) * speech_rate
        return seconds(prompt_samples) * prompt_rate + text_tokens + 2 * utterances + speech


def counted(batch) -> Tensor:
    """Samples of prompts, samples in all, text tokens and utterances of a batch: (4,), on its device."""
    lengths = (batch.prompt_samples, batch.lengths, batch.token_lengths)
    return torch.stack([*(x.sum() for x in lengths), torch.tensor(len(batch), device=batch.lengths.device)])
