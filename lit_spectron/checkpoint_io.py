"""Checkpoints that are whole at every moment."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lit_spectron.checkpoint import read_checkpoint, refuse_changed
from lit_spectron.files import appearing_whole, system_errors
from lit_spectron.shards import is_sharded


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the destination and renames. Reads what many processes wrote, too.

    Lightning's own writes to the system's temporary folder and moves from there, which on another file system is a
    copy: killed during it, `last.ckpt` would be half a file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("storage_options are not supported: checkpoints are local files")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with appearing_whole(Path(path)) as partial, partial.open("wb") as file, system_errors():
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if is_sharded(path):
            return read_checkpoint(path, "all")
        refuse_changed(path)
        return super().load_checkpoint(path, *args, **kwargs)
