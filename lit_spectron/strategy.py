"""How Lightning trains a model that is spread over many devices (FSDP2)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from lit_spectron.checkpoint import read_checkpoint
from lit_spectron.files import remove, replace_folder
from lit_spectron.shards import is_sharded, read_shards, write_shards


class FullyShardedStrategy(ModelParallelStrategy):
    """Every process holds a share of all parameters, gradients and optimiser states, and writes it to checkpoints.

    A checkpoint is a folder (`lit_spectron.shards`) that appears whole. Another number of processes can go on from it,
    as from a file that one process wrote; each reads its share only.
    """

    lightning_restore_optimizer = True

    def setup_environment(self) -> None:
        # Lightning's own would share parameters between nodes only, and split tensors within each.
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return self._module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        # Numbered as in every optimiser's state. Lightning's own numbers parameters in the order of the model, which is
        # not that of the optimiser's groups.
        return optimizer.state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("storage_options are not supported: checkpoints are local folders")
        path = Path(self.broadcast(filepath))
        partial = path.with_name(f".{path.name}.part")
        try:
            if self.is_global_zero:
                remove(partial)
                partial.mkdir(parents=True)
            self.barrier()
            write_shards(checkpoint, partial, self.is_global_zero)
            if self.is_global_zero:
                replace_folder(path, partial)
            self.barrier()
        finally:
            if self.is_global_zero:
                remove(partial)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:  # noqa: ARG002
        path = Path(self.broadcast(checkpoint_path))
        if not is_sharded(path):
            return read_checkpoint(path)
        own = {f"weights.{name}": value for name, value in self._module.state_dict().items()}

        def target(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
            if not name.startswith("optimizer."):
                return torch.empty_like(own[name]) if name in own else None
            number, parameter = map(int, name.split(".")[1:3])
            if number >= len(self.optimizers):  # in evaluation
                return None
            value = parameters(self.optimizers[number])[parameter]
            return torch.empty_like(value) if value.shape == shape else torch.empty(shape, dtype=dtype)

        return read_shards(path, target, together=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        own = self._module.state_dict()
        state = {name: spread_like(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self._module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            own = parameters(optimizer)
            state = {i: {k: spread_like(v, own[i]) for k, v in values.items()} for i, values in saved["state"].items()}
            optimizer.load_state_dict({**saved, "state": state})

    @property
    def _module(self) -> nn.Module:
        assert self.lightning_module is not None
        return self.lightning_module


def parameters(optimizer: Optimizer) -> list[Tensor]:
    """In the order of their numbers in the optimiser's state."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def spread_like(value: Any, own: Tensor | None) -> Any:
    """The share of a whole tensor that goes with that of ``own``, if it is spread and has this shape."""
    if not isinstance(own, DTensor) or isinstance(value, DTensor) or value.shape != own.shape:
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
