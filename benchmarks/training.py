#!/usr/bin/env python3
"""A training step beside the same one by Hugging Face's own forward pass, and beside its bare matrix products.

    python -m benchmarks.training --threads 2

Builds the model of a config with random weights (nothing is downloaded) and one batch of noise, and times in turn, in
float32 on the CPU, forward and backward pass of

- ours: `SpectronModel`, logits where text is predicted and nowhere else;
- Hugging Face: the same embeddings [prefix | text | frames] and the same mask through `AutoModelForCausalLM.forward(
  inputs_embeds=..., labels=...)`, with logits at every position, and the same spectrogram decoder. Its loss is checked
  to be ours;
- bare matrix products: those that our step is made of, as they were seen in it, forward and backward, in its order,
  into buffers that are there already, with nothing between: what a step would take if all else were free.

A second table shows how time and memory of our step grow with the batch, by more utterances and by longer ones.
"""

import argparse
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.shipped import build_model, in_a_process_of_its_own, make_batch, peak_bytes, read_config
from lit_spectron.errors import UserError
from lit_spectron.losses import LossWeights
from lit_spectron.masking import gather_positions, pack
from lit_spectron.memory import keep_freed_memory
from lit_spectron.model import SpectronModel, split_waveform
from lit_spectron.tables import markdown_table
from lit_spectron.types import SpeechBatch

Losses = Callable[[SpectronModel, SpeechBatch], dict[str, Tensor]]
SCALES = (0.5, 1.0, 2.0, 4.0)
GIBIBYTE = 2**30


@dataclass(frozen=True)
class Workload:
    """What is trained on what, and how often it is timed."""

    config: Path
    utterances: int
    prompt_seconds: float = 3.0
    continuation_seconds: float = 1.2
    text_tokens: int = 20
    rounds: int = 5
    threads: int | None = None

    def scaled(self, by: str, factor: float) -> "Workload":
        """So many times the tokens, by more ``utterances`` or by longer ones (``seconds``)."""
        if by == "utterances":
            return replace(self, utterances=round(factor * self.utterances))
        return replace(
            self,
            prompt_seconds=factor * self.prompt_seconds,
            continuation_seconds=factor * self.continuation_seconds,
            text_tokens=round(factor * self.text_tokens),
        )

    def batch(self, model: SpectronModel) -> SpeechBatch:
        return make_batch(model, self.utterances, self.prompt_seconds, self.continuation_seconds, self.text_tokens)

    def positions(self, model: SpectronModel) -> int:
        """Of the LM, in the whole batch."""
        prompt_rate, speech_rate = model.positions_per_second
        prompt, speech = self.prompt_seconds * prompt_rate, self.continuation_seconds * speech_rate
        return self.utterances * round(prompt + self.text_tokens + 2 + speech)


def ours(model: SpectronModel, batch: SpeechBatch) -> dict[str, Tensor]:
    return model(batch).losses


def hugging_face(model: SpectronModel, batch: SpeechBatch) -> dict[str, Tensor]:
    """The same objective, the LM run by its own forward pass with labels; for utterances of one length."""
    prompt, continuation = split_waveform(batch.waveform, batch.lengths, batch.prompt_samples)
    prefix = model.encode_prompt(prompt, batch.prompt_samples)
    tokens, token_lengths = model.text_input(batch.tokens, batch.token_lengths)
    frames, mask, steps = model.speech_steps(continuation, batch.lengths - batch.prompt_samples)
    fed = model.decoder.prenet(frames.unflatten(1, (-1, model.decoder.reduction_factor))[:, :-1])
    text = model.llm.embed(tokens), token_lengths
    packed = pack(*prefix, *text, fed, steps, model.bidirectional_prefix)
    labels = torch.full(packed.embeddings.shape[:2], -100).scatter(1, packed.text_index + 1, tokens[:, 1:])
    output = model.llm.network(
        inputs_embeds=packed.embeddings,
        attention_mask=packed.attention_mask,
        position_ids=packed.position_ids,
        labels=labels,
        output_hidden_states=True,
        use_cache=False,
    )
    speech = gather_positions(output.hidden_states[-1], packed.speech_index)
    return {"text": output.loss, **model.decoder.loss(speech, frames, mask)[0]}


STEPS: dict[str, Losses] = {"ours": ours, "Hugging Face": hugging_face}


class MatrixProducts(TorchDispatchMode):
    """Writes down the matrix products of whatever runs inside.

    Attributes:
        shapes: (b, m, k, n) of each, in order: b products of (m, k) by (k, n). Fused attention counts as its products
            (two forward, four backward), a convolution as that of its unfolded input by its weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int, int, int]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            left, right = args[-2:]
            self.shapes.append((math.prod(left.shape[:-2]), *left.shape[-2:], right.shape[-1]))
        elif name.startswith("_scaled_dot_product") and name.endswith("backward"):
            query, key, value = (tensor.shape for tensor in args[1:4])
            b, m, k, n, v = math.prod(query[:-2]), query[-2], query[-1], key[-2], value[-1]
            self.shapes += [(b, n, m, v), (b, m, v, n), (b, m, n, k), (b, n, m, k)]
        elif name.startswith("_scaled_dot_product"):
            query, key, value = (tensor.shape for tensor in args[:3])
            b, m, k, n, v = math.prod(query[:-2]), query[-2], query[-1], key[-2], value[-1]
            self.shapes += [(b, m, k, n), (b, m, n, v)]
        elif name == "convolution":
            self._convolution(args[0], args[1], result, args[8], (True, False, False))
        elif name == "convolution_backward":
            self._convolution(args[1], args[2], args[0], args[9], (False, *args[10][:2]))
        return result

    def _convolution(self, given: Tensor, weight: Tensor, made: Tensor, groups: int, which: tuple[bool, ...]) -> None:
        b, out, unfolded, size = given.shape[0], weight.shape[0] // groups, weight[0].numel(), made[0, 0].numel()
        shapes = [
            (b * groups, out, unfolded, size),
            (b * groups, unfolded, out, size),
            (groups, out, b * size, unfolded),
        ]
        self.shapes += [shape for shape, wanted in zip(shapes, which, strict=True) if wanted]


def seen_products(step: Callable[[], object]) -> list[tuple[int, int, int, int]]:
    with MatrixProducts() as products:
        step()
    return products.shapes


def bare(shapes: list[tuple[int, int, int, int]]) -> Callable[[], None]:
    """A function that computes products of these shapes; equal ones share their operands."""
    operands = {
        (b, m, k, n): (torch.randn(b, m, k), torch.randn(b, k, n), torch.empty(b, m, n)) for b, m, k, n in set(shapes)
    }
    calls = [(torch.bmm, operands[s]) if s[0] > 1 else (torch.mm, [x[0] for x in operands[s]]) for s in shapes]

    def run() -> None:
        for function, (left, right, out) in calls:
            function(left, right, out=out)

    return run


def step_of(model: SpectronModel, batch: SpeechBatch, weights: LossWeights, losses: Losses) -> Callable[[], float]:
    """Forward and backward pass, as often as it is called; tells the text loss."""

    def step() -> float:
        torch.manual_seed(0)
        found = losses(model, batch)
        weights.total(found).backward()
        model.zero_grad()
        return float(found["text"].detach())

    return step


def medians(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each, in turn, after one round that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def prepare(workload: Workload) -> tuple[SpectronModel, LossWeights]:
    keep_freed_memory()  # as `fit` does
    if workload.threads:
        torch.set_num_threads(workload.threads)
    config = read_config(workload.config)
    return build_model(config), LossWeights(**config["model"].get("loss_weights", {}))


def peak(workload: Workload, name: str) -> int:
    """Most memory that a process with nothing but one of `STEPS` takes, in bytes."""
    model, weights = prepare(workload)
    for _ in range(2):
        step_of(model, workload.batch(model), weights, STEPS[name])()
    return peak_bytes()


def beside(workload: Workload) -> list[str]:
    """Lines of the table of ours, Hugging Face's and bare matrix products."""
    model, weights = prepare(workload)
    batch = workload.batch(model)
    functions = {name: step_of(model, batch, weights, losses) for name, losses in STEPS.items()}
    peaks = {name: f"{in_a_process_of_its_own(peak, workload, name) / GIBIBYTE:.2f}" for name in STEPS}
    texts = [step() for step in functions.values()]
    if not math.isclose(*texts, rel_tol=1e-4):
        raise RuntimeError(f"not the same step: text losses of {texts}")
    shapes = seen_products(functions["ours"])
    seconds = medians({**functions, "bare matrix products": bare(shapes)}, workload.rounds)
    positions = workload.positions(model)
    rows = [
        [
            name,
            f"{value:.3f}",
            f"{positions / value:,.0f}",
            f"{value / seconds['ours']:.2f}",
            f"{seconds['bare matrix products'] / value:.0%}",
            peaks.get(name, ""),
        ]
        for name, value in seconds.items()
    ]
    operations = sum(2 * math.prod(shape) for shape in shapes)
    speed = operations / seconds["bare matrix products"]
    header = ["step", "seconds", "positions a second", "seconds / ours", "of the limit", "peak memory, GiB"]
    return [
        f"{workload.config}, random weights, {workload.utterances} utterances of {workload.prompt_seconds:g} s prompt, "
        f"{workload.text_tokens} tokens and {workload.continuation_seconds:g} s continuation: {positions:,} positions "
        f"of the LM; text loss {texts[0]:.4f} by both. Median of {workload.rounds} rounds; float32, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}. "
        f"{len(shapes):,} matrix products, {operations / 1e9:,.0f} GFLOP at {speed / 1e9:,.0f} GFLOP/s.",
        "",
        *markdown_table(header, rows),
    ]


def grow(workload: Workload, by: str) -> list[list[str]]:
    """Rows of the table of growth. In a process of its own, smallest first: its peak memory is that of the last one."""
    model, weights = prepare(workload)
    found = []
    for factor in SCALES:
        scaled = workload.scaled(by, factor)
        step = step_of(model, scaled.batch(model), weights, ours)
        seconds = medians({"ours": step}, max(1, workload.rounds // 2))["ours"]
        found.append((factor, scaled.positions(model), seconds, peak_bytes() / GIBIBYTE))
    unit = found[SCALES.index(1.0)][2] / found[SCALES.index(1.0)][1]
    smallest, largest = found[0], found[-1]
    # Memory that does not depend on the batch (weights, gradients) shows as where the line through the ends begins.
    slope = (largest[3] - smallest[3]) / (largest[1] - smallest[1])
    return [
        [
            f"{by} x {factor:g}",
            f"{positions:,}",
            f"{seconds:.3f}",
            f"{seconds / positions / unit:.2f}",
            f"{memory:.2f}",
            f"{memory / (smallest[3] + slope * (positions - smallest[1])):.2f}",
        ]
        for factor, positions, seconds, memory in found
    ]


def growth(workload: Workload) -> list[str]:
    """Lines of the table of growth."""
    rows: list[list[str]] = []
    for by in ("utterances", "seconds"):
        rows += in_a_process_of_its_own(grow, workload, by)
    header = [
        "batch",
        "positions",
        "seconds",
        "seconds a position / at x 1",
        "peak memory, GiB",
        "memory / line through the ends",
    ]
    return markdown_table(header, rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path("conf/smollm2_whisper.yaml"), help="(default: %(default)s)")
    parser.add_argument("--utterances", type=int, default=4, help="in a batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="that are timed (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    parser.add_argument("--tiny", action="store_true", help="conf/quickstart.yaml, two utterances, one round: a try")
    options = parser.parse_args(arguments)
    workload = Workload(options.config, options.utterances, rounds=options.rounds, threads=options.threads)
    if options.tiny:
        workload = replace(workload, config=Path("conf/quickstart.yaml"), utterances=2, rounds=1)
    try:
        if workload.utterances < 2 or workload.rounds < 1:
            raise UserError("--utterances: two at least, and --rounds: one")
        print("\n".join(["## A training step", "", *beside(workload), ""]), flush=True)
        print("\n".join(["## How it grows", "", *growth(workload)]), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
