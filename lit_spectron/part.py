"""What every swappable part can do besides its slot's own work."""

from typing import Any

from torch import nn


class Part(nn.Module):
    """A part of the model that a config names by its class and arguments."""

    def rebuild_args(self) -> dict[str, Any]:
        """Constructor arguments that replace the config's when a checkpoint is loaded, so that no other file is needed.

        Plain values only: they are kept in the checkpoint.
        """
        return {}
