"""What every swappable part can do besides its slot's own work."""

from typing import Any

from torch import nn


class Part(nn.Module):
    """A part of the model that a config names by its class and arguments.

    Attributes:
        shards_by_layer: Whether devices that share its parameters may gather them layer by layer: each layer then has
            to run equally often in every process, whatever its batch.
    """

    shards_by_layer: bool = True

    def rebuild_args(self) -> dict[str, Any]:
        """Constructor arguments that replace the config's when a checkpoint is loaded, so that no other file is needed.

        Plain values only: they are kept in the checkpoint.
        """
        return {}
