"""Checkpoints that many processes write together, each its shards of the tensors: a folder.

Tensors lie in the format of `torch.distributed.checkpoint`, everything else in one more file. From neither is more read
than tensors and plain values: no code.
"""

import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from lit_spectron.files import system_errors

PLAIN_FILE = "plain.pt"
INDEX = "torch.distributed.checkpoint.metadata"
INDEX_CLASSES = {
    *((INDEX, n) for n in ("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta")),
    *((INDEX, n) for n in ("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING")),
    *((path, "PosixPath") for path in ("pathlib", "pathlib._local")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
}


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in INDEX_CLASSES or (module == "torch" and isinstance(getattr(torch, name, 0), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


class _Reader(dcp.FileSystemReader):
    """torch's own would run what a stranger has put into the index."""

    def read_metadata(self, *_: Any, rank: int | None = None, **__: Any) -> Metadata:
        with self.fs.create_stream(self._get_metadata_path(rank), "rb") as file:
            index = _IndexUnpickler(file).load()
        index.storage_meta = index.storage_meta or StorageMeta()
        index.storage_meta.load_id = self.load_id
        return index


class _Writer(dcp.FileSystemWriter):
    def write_data(self, *args: Any, **kwargs: Any) -> Any:
        with system_errors():
            return super().write_data(*args, **kwargs)


class _TensorPlanner(DefaultLoadPlanner):
    def load_bytes(self, read_item: Any, *_: Any) -> None:
        raise pickle.UnpicklingError(f"{read_item.dest_index.fqn} is no tensor")


def is_sharded(path: Path | str) -> bool:
    return (Path(path) / PLAIN_FILE).is_file() and (Path(path) / ".metadata").is_file()


def write_shards(checkpoint: dict[str, Any], folder: Path, is_first: bool) -> None:
    """All processes have to call this, the first one with ``is_first``.

    Args:
        checkpoint: Lightning's. What is a DTensor is written by all; everything else, alike in all, by one.
        folder: New.
        is_first: Whether this process writes what is no tensor.
    """
    weights, states = checkpoint["state_dict"], checkpoint.get("optimizer_states", [])
    tensors = {f"weights.{name}": value for name, value in weights.items()}
    for number, state in enumerate(states):
        for parameter, values in state["state"].items():
            tensors |= {f"optimizer.{number}.{parameter}.{name}": value for name, value in values.items()}
    with _own_errors():
        dcp.save(tensors, storage_writer=_Writer(folder))
    if is_first:
        groups = [{"state": {}, "param_groups": state["param_groups"]} for state in states]
        with (folder / PLAIN_FILE).open("wb") as file, system_errors():
            torch.save({**checkpoint, "state_dict": {}, "optimizer_states": groups}, file)


def read_shards(
    folder: Path | str, target: Callable[[str, torch.Size, torch.dtype], Tensor | None], together: bool = False
) -> dict[str, Any]:
    """Lightning's checkpoint again.

    Args:
        folder: As `write_shards` left it, by any number of processes.
        target: Of the name of a tensor, its shape and type: what to read it into; None to leave it out. Names are
            ``weights.NAME`` and ``optimizer.NUMBER.PARAMETER.NAME``. On the device ``meta`` it is not read.
        together: Whether the processes of the default group read it together, each its shards.
    """
    checkpoint = torch.load(Path(folder) / PLAIN_FILE, map_location="cpu", weights_only=True)
    reader = _Reader(folder)
    tensors = {}
    for name, index in reader.read_metadata().state_dict_metadata.items():
        if not isinstance(index, TensorStorageMetadata):
            raise pickle.UnpicklingError(f"{name} is no tensor")
        tensor = target(name, index.size, index.properties.dtype)
        if tensor is not None:
            tensors[name] = tensor
    read = {name: tensor for name, tensor in tensors.items() if not tensor.is_meta}
    if read:
        with _own_errors():
            dcp.load(read, storage_reader=reader, planner=_TensorPlanner(), no_dist=not together)
    _put_back(checkpoint, tensors)
    return checkpoint


@contextmanager
def _own_errors() -> Iterator[None]:
    """What went wrong itself; torch raises an account of it that is no `Exception`, and warns of one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            yield
        except dcp.CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from None


def _put_back(checkpoint: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    for path, tensor in tensors.items():
        kind, name = path.split(".", 1)
        if kind == "weights":
            checkpoint["state_dict"][name] = tensor
        else:
            number, parameter, name = name.split(".")
            state = checkpoint["optimizer_states"][int(number)]["state"]
            state.setdefault(int(parameter), {})[name] = tensor
