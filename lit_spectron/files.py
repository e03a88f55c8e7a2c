"""Folders to write into, and files that appear whole or not at all."""

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lit_spectron.errors import UserError


def make_folder(path: Path) -> None:
    """Makes a folder to write into, with its parents, where there is none.

    Raises:
        UserError: It can't be made, is no folder, or can't be written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: can't be made a folder: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{path}: not writable")


@contextmanager
def appearing_whole(path: Path, writer: str = "") -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes its place when the block ends well, and is removed otherwise.

    Args:
        path: What appears.
        writer: Tells processes apart that may write the same file at the same time.

    Raises:
        UserError: There is a folder in its place.
        OSError: Whatever goes wrong in the block, such as a full disk; it names a file.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder, where a file is to be written")
    partial = path.with_name(f".{path.name}{writer and '.'}{writer}.part")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # writing does not know the name that opening knew
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def system_errors() -> Iterator[None]:
    """For `torch.save` to an open file: what the system refuses, such as a full disk, is raised as it is.

    Torch would raise a RuntimeError about positions in its archive in its place.

    Raises:
        OSError: The system's.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def replace_folder(path: Path, new: Path) -> None:
    """``new`` becomes ``path``, at one instant where system and file system can (Linux, local ones).

    Elsewhere there is an instant between two renames: killed in it, what was there is left as ``.NAME.old`` beside it,
    and `put_back` returns it to its place.
    """
    old = path.with_name(f".{path.name}.old")
    remove(old)
    if path.exists() and exchange(path, new):
        remove(new)
        return
    if path.exists():
        path.rename(old)
    try:
        new.rename(path)
    except OSError:
        put_back(path)
        raise
    remove(old)


def exchange(one: Path, other: Path) -> bool:
    """Two files or folders swap their names at one instant. False where that can't be had; then nothing happened."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, swap = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0


def put_back(path: Path) -> None:
    """Undoes what `replace_folder` was stopped in the middle of, if it was."""
    if not path.exists():
        with suppress(FileNotFoundError):  # another process was faster, or there is nothing to be put back
            path.with_name(f".{path.name}.old").rename(path)


def remove(path: Path) -> None:
    """A file or a folder, or nothing."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
