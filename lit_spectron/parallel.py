"""Models that are spread over many devices (FSDP2), and what each of them then has to do in step with the others."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from lit_spectron.audio import SHORTEST_PROMPT_SECONDS
from lit_spectron.model import SpectronModel
from lit_spectron.part import Part
from lit_spectron.types import SpeechBatch

# What the slots' bases let others call besides `forward`.
ENTRY_POINTS = ("embed", "logits", "prenet", "loss", "step", "refine", "read")


def layers(part: nn.Module) -> list[nn.Module]:
    """What a network is stacked from: modules of one class, more than one in a list.

    A layer is not searched for layers of its own: it may not run all of them (experts).
    """
    found: list[nn.Module] = []
    for child in part.children():
        members = list(child) if isinstance(child, nn.ModuleList) else [child]
        kinds = Counter(map(type, members))
        for module in members:
            found += [module] if kinds[type(module)] > 1 else layers(module)
    return found


def checkpoint_activations(model: SpectronModel) -> None:
    """Each layer of encoder and LM keeps its input only, and runs once more in the backward pass: less memory."""
    for layer in [*layers(model.encoder), *layers(model.llm)]:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def shard(model: SpectronModel, mesh: DeviceMesh, device: torch.device, precision: torch.dtype | None) -> None:
    """Each process keeps a share of every parameter, and has a layer whole only while it runs.

    All processes then have to call the same parts in the same order.

    Args:
        model: Whole, on the CPU; the first process's parameters count.
        mesh: Of one dimension.
        device: Of this process.
        precision: In which layers travel and compute; None for that of their parameters. Gradients are summed in the
            parameters' own.
    """
    low = MixedPrecisionPolicy(precision, reduce_dtype=torch.float32, cast_forward_inputs=False)

    def spread(module: nn.Module, policy: MixedPrecisionPolicy) -> None:
        for parameter in module.to(device).parameters():
            if not isinstance(parameter, DTensor):
                distributed.broadcast(parameter.data, group_src=0, group=mesh.get_group())
        # Also a part's own: Lightning may save or validate after any call.
        fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy)

    for part in (model.encoder, model.projection, model.llm, model.decoder):
        for layer in layers(part) if isinstance(part, Part) and part.shards_by_layer else []:
            spread(layer, low if precision else MixedPrecisionPolicy())
        spread(part, MixedPrecisionPolicy())
        for name in ENTRY_POINTS:
            if hasattr(part, name):
                register_fsdp_forward_method(part, name)


def anywhere(mesh: DeviceMesh, device: torch.device) -> Callable[..., list[bool]]:
    """A function that tells of each of its flags whether it is set in any process; all have to ask."""

    def ask(*flags: bool) -> list[bool]:
        counts = torch.tensor(flags, dtype=torch.int32, device=device)
        distributed.all_reduce(counts, group=mesh.get_group())
        return counts.bool().tolist()

    return ask


def stand_in(model: SpectronModel, split: str, device: torch.device) -> SpeechBatch:
    """A moment of silence for a process that has no utterance while the others have some."""
    prompt = model.audio.seconds_to_samples(SHORTEST_PROMPT_SECONDS)
    numbers = torch.tensor([[2 * prompt], [prompt], [1]], device=device)
    return SpeechBatch(
        split=split,
        waveform=torch.zeros(1, 2 * prompt, device=device),
        lengths=numbers[0],
        prompt_samples=numbers[1],
        tokens=torch.zeros(1, 1, dtype=torch.long, device=device),
        token_lengths=numbers[2],
        ids=["silence"],
        speakers=[""],
        text=["a"],
        prompt_text=[None],
    )
