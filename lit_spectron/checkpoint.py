"""Reading checkpoints: tensors and plain values only, never code."""

from pathlib import Path
from typing import Any

import torch

from lit_spectron.errors import UserError


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """A checkpoint that `fit` wrote, its tensors left on disk until they are used.

    Raises:
        UserError: It is missing, damaged or not one of ours.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        missing = {"config", "rebuild_args", "state_dict"} - set(checkpoint)
    except (RuntimeError, TypeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a checkpoint of lit_spectron: {str(error).splitlines()[0]}") from error
    except Exception as error:  # pickle.UnpicklingError has no narrower public parent
        raise UserError(f"{path}: not a checkpoint of lit_spectron: {type(error).__name__}") from error
    if missing:
        raise UserError(f"{path}: not a checkpoint of lit_spectron: it has no {', '.join(sorted(missing))}")
    return checkpoint


def rebuilt_config(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The run's config with every outside file and weight that its parts were made from replaced."""
    config = dict(checkpoint["config"])
    for slot, arguments in checkpoint["rebuild_args"].items():
        config[slot] = {**config[slot], "init_args": {**config[slot].get("init_args", {}), **arguments}}
    return config
