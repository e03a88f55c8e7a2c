"""Folders to write into, and files that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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


def replace_folder(path: Path, new: Path) -> None:
    """``new`` becomes ``path``. Killed between two renames, it leaves what was there as ``.NAME.old`` beside it."""
    old = path.with_name(f".{path.name}.old")
    remove(old)
    if path.exists():
        path.rename(old)
    new.rename(path)
    remove(old)


def remove(path: Path) -> None:
    """A file or a folder, or nothing."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
