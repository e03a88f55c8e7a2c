"""Reading checkpoints: tensors and plain values only, never code."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_spectron.errors import UserError
from lit_spectron.files import appearing_whole, make_folder, system_errors
from lit_spectron.shards import is_sharded, read_shards


def read_checkpoint(path: Path | str, tensors: Literal["all", "weights", "shapes"] = "weights") -> dict[str, Any]:
    """A checkpoint that `fit` wrote: a file, its tensors left on disk until they are used, or a folder of shards.

    Args:
        path: Of the file or folder.
        tensors: Which are read from shards: ``weights`` leaves the optimisers' out, ``shapes`` reads none.

    Raises:
        UserError: It is missing, damaged or not one of ours.
    """
    if not Path(path).exists():
        raise UserError(f"{path}: no such checkpoint")
    # Whole checkpoints are zip files; what is not one would be refused with words about mmap.
    if not is_sharded(path) and not is_zipfile(path):
        raise UserError(f"{path}: not a checkpoint of lit_spectron, or damaged")
    if not is_sharded(path) and tensors != "shapes":
        refuse_changed(path)

    def target(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
        wanted = tensors == "all" or name.startswith("weights.")
        return torch.empty(shape, dtype=dtype, device="meta" if tensors == "shapes" else "cpu") if wanted else None

    try:
        if is_sharded(path):
            checkpoint = read_shards(path, target)
        else:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        missing = {"config", "rebuild_args", "state_dict"} - set(checkpoint)
    except UnpicklingError as error:
        raise UserError(f"{path}: not a checkpoint of lit_spectron: more than tensors and plain values") from error
    except Exception as error:  # a damaged file makes the unpickler raise anything, with a message or without
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise UserError(f"{path}: not a checkpoint of lit_spectron, or damaged: {reason}") from error
    if missing:
        raise UserError(f"{path}: not a checkpoint of lit_spectron: it has no {', '.join(sorted(missing))}")
    return checkpoint


def refuse_changed(path: Path | str) -> None:
    """Compares checksums, which torch does not look at.

    Raises:
        UserError: Something in the checkpoint, a file, is not what was written.
    """
    try:
        with ZipFile(path) as archive:
            changed = archive.testzip()
    except (BadZipFile, OSError) as error:
        raise UserError(f"{path}: damaged: {error}") from error
    if changed:
        raise UserError(f"{path}: damaged: {changed} is not what was written")


def refuse_other_shapes(path: Path | str, checkpoint: dict[str, Any], own_state: dict[str, Tensor]) -> None:
    """
    Raises:
        UserError: The trained parts of a checkpoint have other parameters than the config's; names the first.
    """
    states = (checkpoint["state_dict"], own_state)
    saved, own = ({k: tuple(v.shape) for k, v in s.items() if not k.startswith("vocoder.")} for s in states)
    different = sorted(name for name in saved.keys() | own.keys() if saved.get(name) != own.get(name))
    if different:
        name = different[0]
        slot = ".".join(name.split(".")[:2])
        raise UserError(
            f"--ckpt_path: {path} was trained with another {slot} than this config's: {name} has shape "
            f"{saved.get(name, 'none')} there and {own.get(name, 'none')} here"
        )


def refuse_other_groups(path: Path | str, checkpoint: dict[str, Any], own_groups: list[dict[str, Any]]) -> None:
    """
    Raises:
        UserError: The optimiser's state is of other groups of parameters than the config's; names the first.
    """
    sizes = [
        {group["name"]: len(group["params"]) for group in groups}
        for groups in (checkpoint["optimizer_states"][0]["param_groups"], own_groups)
    ]
    for name in sizes[0] | sizes[1]:
        there, here = (size.get(name, 0) for size in sizes)
        if there != here:
            raise UserError(
                f"--ckpt_path: {path} was trained with other model.optimizer.freeze or parts than this config's: "
                f"{there} parameters under {name} there and {here} here"
            )


def tell_kept_settings(path: Path | str, checkpoint: dict[str, Any], own_groups: list[dict[str, Any]]) -> None:
    """Warns of each setting that a checkpoint's optimiser brings along where the config asks for another one."""
    saved = {group["name"]: group for group in checkpoint["optimizer_states"][0]["param_groups"]}
    for group in own_groups:
        for setting, there in (("lr", "initial_lr"), ("weight_decay", "weight_decay")):
            if (kept := saved[group["name"]][there]) != group[setting]:
                rank_zero_warn(
                    f"--ckpt_path: training goes on with the {setting} of {path}, {kept:g} for {group['name']}, not "
                    f"with this config's {group[setting]:g}"
                )


def rebuilt_config(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The run's config with every outside file and weight that its parts were made from replaced."""
    config = dict(checkpoint["config"])
    for slot, arguments in checkpoint["rebuild_args"].items():
        config[slot] = {**config[slot], "init_args": {**config[slot].get("init_args", {}), **arguments}}
    return config


def consolidate(path: Path, out: Path) -> None:
    """Writes the one file that a folder of shards stands for, as one process would have written it.

    Raises:
        UserError: It is no folder of shards, or damaged; ``out`` is there already.
    """
    if Path(path).is_file():
        raise UserError(f"--ckpt: {path}: is one file already")
    if out.exists():
        raise UserError(f"--out: {out}: is there already")
    checkpoint = read_checkpoint(path, "all")
    make_folder(out.parent)
    with appearing_whole(out) as partial, partial.open("wb") as file, system_errors():
        torch.save(checkpoint, file)
