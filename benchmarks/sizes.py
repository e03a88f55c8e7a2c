#!/usr/bin/env python3
"""How large the models of the shipped configs are, what they need to train and to decode, and what fits on which GPU.

    python -m benchmarks.sizes

Everything is computed from one training step with tensors that have shapes and no content (torch's fake tensors): no
weights are made, nothing is downloaded, any size runs on any machine. ``--measure CONFIG ...`` adds a table of the same
step run on this one: on a GPU by the config's precision, AdamW's update included, with as many utterances as its memory
should hold by the table; on a CPU in float32, with two utterances, forward and backward pass alone.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import AdamW
from torch.overrides import TorchFunctionMode

from benchmarks.shipped import build_model, in_a_process_of_its_own, make_batch, peak_bytes, read_config
from benchmarks.training import MatrixProducts, Workload, medians, prepare
from lit_spectron.errors import UserError
from lit_spectron.losses import LossWeights
from lit_spectron.model import SpectronModel
from lit_spectron.tables import markdown_table
from lit_spectron.types import SpeechBatch

PARTS = ("encoder", "projection", "llm", "decoder")
CONFIGS = ("quickstart", "smollm2_whisper", "spectron", "spectron_1b")
GIGABYTE = 1e9
DEVICES_GB = (24, 40, 80)
# Of a device's memory; the rest is for the CUDA context, its libraries and fragmentation.
USABLE_SHARE = 0.9
FLOAT_BYTES = 4
# Weight and gradient, and AdamW's two moments: all in float32, also with bf16-mixed.
BYTES_A_TRAINED_PARAMETER = 4 * FLOAT_BYTES


@dataclass(frozen=True)
class Utterance:
    """What the table's figures are of."""

    prompt_seconds: float
    continuation_seconds: float
    text_tokens: int

    def positions(self, model: SpectronModel) -> int:
        """Of the LM."""
        return Workload(Path(), 1, self.prompt_seconds, self.continuation_seconds, self.text_tokens).positions(model)


@dataclass(frozen=True)
class Size:
    """Of the model of one config.

    Attributes:
        parameters: By part.
        trained: Parameters that are.
        precision: The trainer's.
        states_bytes: Weights, gradients and optimiser states, whatever the batch.
        copies_bytes: What autocast and the graph keep besides, whatever the batch: weights in bfloat16.
        activations_bytes: Kept for the backward pass, an utterance.
        positions: Of the LM, an utterance.
        operations: Floating-point operations of forward and backward pass, an utterance.
        cache_bytes: Of the LM's keys and values, a position.
        speech_rate_hz: Positions that a second of speech takes.
    """

    parameters: dict[str, int]
    trained: int
    precision: str
    states_bytes: int
    copies_bytes: int
    activations_bytes: int
    positions: int
    operations: int
    cache_bytes: int
    speech_rate_hz: float

    @property
    def weights_bytes(self) -> int:
        return FLOAT_BYTES * sum(self.parameters.values())

    def utterances_trained_in(self, device_bytes: float) -> int:
        """Largest batch; 0 where none fits."""
        room = USABLE_SHARE * device_bytes - self.states_bytes - self.copies_bytes
        return max(0, int(room // self.activations_bytes))

    def utterances_decoded_in(self, device_bytes: float) -> int:
        """As many as have room for their keys and values; 0 where none fits."""
        room = USABLE_SHARE * device_bytes - self.weights_bytes
        return max(0, int(room // (self.cache_bytes * self.positions)))


class NothingMasked(TorchFunctionMode):
    """Selection by a mask takes everything: batches here have no padding, and what has no content can't be asked."""

    def __torch_function__(self, function, types, args=(), kwargs=None) -> Any:
        if function is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            return args[0].flatten(0, args[1].ndim - 1)
        return function(*args, **(kwargs or {}))


def kept_bytes(run: Callable[[], Tensor], weights: Iterable[Tensor]) -> tuple[Tensor, int]:
    """What ``run`` gives, and the memory that its graph keeps for the backward pass, ``weights`` not counted."""
    kept: dict[int, tuple[Tensor, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = (tensor, storage.nbytes())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    for weight in weights:
        kept.pop(weight.untyped_storage()._cdata, None)
    return result, sum(size for _, size in kept.values())


def computed(config: dict[str, Any], utterance: Utterance) -> Size:
    """The size of the model of a `read_config`."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        model = build_model(config)
    precision = str(config["trainer"].get("precision", "32-true"))
    weights = LossWeights(**config["model"].get("loss_weights", {}))
    found = []
    for utterances in (1, 2):
        batch = make_batch(
            model, utterances, utterance.prompt_seconds, utterance.continuation_seconds, utterance.text_tokens
        )
        # Lengths and tokens are real: shapes depend on them.
        batch = replace(batch, waveform=fake.from_tensor(batch.waveform))
        products = MatrixProducts()
        with NothingMasked(), products, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            tensors = [*model.parameters(), *model.buffers()]
            loss, kept = kept_bytes(lambda batch=batch: weights.total(model(batch).losses), tensors)
        with products:
            loss.backward()
        found.append((kept, sum(2 * math.prod(shape) for shape in products.shapes)))
    (first, operations), (second, _) = found
    parameters = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in PARTS}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(parameters.values()) - trained
    return Size(
        parameters=parameters,
        trained=trained,
        precision=precision,
        states_bytes=BYTES_A_TRAINED_PARAMETER * trained + FLOAT_BYTES * frozen,
        copies_bytes=2 * first - second,
        activations_bytes=second - first,
        positions=utterance.positions(model),
        operations=operations,
        cache_bytes=cache_bytes(model),
        speech_rate_hz=model.positions_per_second[1],
    )


def cache_bytes(model: SpectronModel) -> int:
    """Of keys and values of one position in all layers, in float32: decoding does not lower the precision."""
    network: nn.Module = model.llm.network
    heads = network.config.num_key_value_heads * network.config.head_dim
    return 2 * network.config.num_hidden_layers * heads * FLOAT_BYTES


def gigabytes(size: float) -> str:
    return f"{size / GIGABYTE:.2f}" if size < 10 * GIGABYTE else f"{size / GIGABYTE:.1f}"


def fits(count: int) -> str:
    return f"{count:,}" if count else "no"


def tables(sizes: dict[str, Size], teraflops: float) -> list[str]:
    """Lines of the three computed tables: of parameters, of training and of decoding."""
    devices = [f"{size} GB" for size in DEVICES_GB]
    parameters, training, decoding = [], [], []
    for name, size in sizes.items():
        counts = [*size.parameters.values(), sum(size.parameters.values()), size.trained]
        parameters.append([name, *(f"{count / 1e6:,.2f}" for count in counts)])
        training.append(
            [
                name,
                size.precision,
                gigabytes(size.states_bytes),
                gigabytes(size.copies_bytes),
                gigabytes(size.activations_bytes),
                *(fits(size.utterances_trained_in(device * GIGABYTE)) for device in DEVICES_GB),
                f"{size.operations / size.positions / 1e9:,.2f}",
                f"{teraflops * 1e12 / size.operations * size.positions:,.0f}",
            ]
        )
        decoding.append(
            [
                name,
                gigabytes(size.weights_bytes),
                f"{size.cache_bytes * size.speech_rate_hz / 1e6:.2f}",
                f"{size.cache_bytes * size.positions / 1e6:.1f}",
                *(fits(size.utterances_decoded_in(device * GIGABYTE)) for device in DEVICES_GB),
            ]
        )
    memory = ["precision", "states, GB", "copies, GB", "activations an utterance, GB"]
    speed = ["GFLOP a position", f"positions a second at {teraflops:g} TFLOP/s"]
    cache = ["weights, GB", "KV cache a second of speech, MB", "KV cache an utterance, MB"]
    return [
        "Parameters, millions",
        "",
        *markdown_table(["config", *PARTS, "all", "trained"], parameters),
        "",
        "Training (all computed; under a device: utterances in the largest batch that fits)",
        "",
        *markdown_table(["config", *memory, *devices, *speed], training),
        "",
        "Decoding (all computed, float32; under a device: utterances decoded together)",
        "",
        *markdown_table(["config", *cache, *devices], decoding),
    ]


def measured(name: str, utterance: Utterance, size: Size, rounds: int) -> list[str]:
    """A row of the measured table: the same step, really, on this machine."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    room = torch.cuda.get_device_properties(device).total_memory if on_gpu else 0
    utterances = size.utterances_trained_in(room) if on_gpu else 2
    workload = Workload(
        config_path(name),
        utterances,
        utterance.prompt_seconds,
        utterance.continuation_seconds,
        utterance.text_tokens,
        rounds,
    )
    with device:
        model, weights = prepare(workload)
    model.to(device)
    batch = on(device, workload.batch(model))
    optimizer = AdamW((p for p in model.parameters() if p.requires_grad), fused=True)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=on_gpu and size.precision == "bf16-mixed")

    def step() -> float:
        with autocast:
            loss = weights.total(model(batch).losses)
        loss.backward()
        if on_gpu:
            optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    computed_bytes = size.states_bytes + size.copies_bytes + utterances * size.activations_bytes
    expected = gigabytes(computed_bytes) if on_gpu else ""
    try:
        seconds = medians({name: step}, rounds)[name]
    except torch.OutOfMemoryError:
        return [name, f"{utterances:,}", "out of memory", "", "", "", expected]
    return [
        name,
        f"{utterances:,}",
        f"{seconds:.3f}",
        f"{utterances * size.positions / seconds:,.0f}",
        f"{utterances * size.operations / seconds / 1e12:,.2f}",
        gigabytes(torch.cuda.max_memory_allocated() if on_gpu else peak_bytes()),
        expected,
    ]


def on(device: torch.device, batch: SpeechBatch) -> SpeechBatch:
    tensors = {name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **tensors)


def config_path(name: str) -> Path:
    return Path("conf", f"{name}.yaml")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.sizes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", default=CONFIGS, metavar="NAME", help="of conf/ (default: four sizes)")
    parser.add_argument("--prompt_seconds", type=float, default=3.0, help="(default: %(default)s)")
    parser.add_argument("--continuation_seconds", type=float, default=10.0, help="(default: %(default)s)")
    parser.add_argument("--text_tokens", type=int, default=50, help="of an utterance (default: %(default)s)")
    parser.add_argument(
        "--teraflops",
        type=float,
        default=125.0,
        help="that a device is assumed to do a second (default: %(default)s, 40 %% of an A100's peak in bfloat16)",
    )
    parser.add_argument("--measure", nargs="+", default=(), metavar="NAME", help="configs to run here, too")
    options = parser.parse_args(arguments)
    utterance = Utterance(options.prompt_seconds, options.continuation_seconds, options.text_tokens)
    try:
        sizes = {name: computed(read_config(config_path(name)), utterance) for name in options.configs}
        print("## Sizes", "", sep="\n")
        print(
            f"Utterances of {utterance.prompt_seconds:g} s prompt, {utterance.text_tokens} tokens and "
            f"{utterance.continuation_seconds:g} s continuation; {USABLE_SHARE:.0%} of a device's memory used.\n"
        )
        print(*tables(sizes, options.teraflops), sep="\n", flush=True)
        if options.measure:
            rows = [in_a_process_of_its_own(measured, name, utterance, sizes[name], 3) for name in options.measure]
            header = ["config", "utterances", "seconds a step", "positions a second", "TFLOP/s", "peak memory, GB"]
            where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
            print("", f"Training, measured on this {where}", "", sep="\n")
            print(*markdown_table([*header, "computed, GB"], rows), sep="\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
