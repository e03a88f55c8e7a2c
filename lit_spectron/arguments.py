"""Command-line arguments whose mistakes are one line."""

import argparse
from typing import NoReturn

from lit_spectron.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises `UserError` where argparse prints the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")
