"""Command-line arguments whose mistakes are one line."""

import argparse
from typing import NoReturn

from lit_spectron.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises `UserError` where argparse prints the whole usage, and knows options by whole names only."""

    def __init__(
        self, prog: str, description: str, formatter_class: type[argparse.HelpFormatter] = argparse.HelpFormatter
    ):
        super().__init__(prog, description=description, formatter_class=formatter_class, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def usable_device(name: str) -> str:
    """A torch device that works; ``auto`` is a GPU if there is one.

    Raises:
        UserError: There is no such device.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device: {name}: {str(error).splitlines()[0]}") from error
    return name
