"""What pre-trained encoders share: which of their layers to listen to."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lit_spectron.errors import UserError

Layer = int | Literal["last", "weighted"]


class LayerChoice(nn.Module):
    """The output of the last layer, of the n-th, or a learned weighted sum of all.

    Args:
        layer: ``last``, ``weighted`` (the first layer's input included), or n from 1 on.
        layers: Layers of the encoder.

    Attributes:
        needed_layers: Layers that have to run; those above can be dropped.

    Source: the weighted sum is SUPERB's (Yang et al. 2021).
    """

    def __init__(self, layer: Layer, layers: int):
        super().__init__()
        if isinstance(layer, int) and not 1 <= layer <= layers:
            raise UserError(f"model.encoder.layer: {layer} is not one of 1 to {layers}")
        self.layer = layer
        self.needed_layers = layer if isinstance(layer, int) else layers
        if layer == "weighted":
            self.weights = nn.Parameter(torch.zeros(layers + 1))

    def forward(self, last: Tensor, hidden_states: Sequence[Tensor]) -> Tensor:
        """
        Args:
            last: (B, S, E) the encoder's output, final layer norm included.
            hidden_states: ``needed_layers`` + 1 of (B, S, E): the first layer's input and each layer's output.
        """
        if self.layer == "last":
            return last
        if self.layer == "weighted":
            return torch.einsum("n,nbse->bse", self.weights.softmax(0), torch.stack(list(hidden_states)))
        return hidden_states[-1]
