"""P_s: the encoder's features to the LM's prefix."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from lit_spectron.errors import UserError
from lit_spectron.masking import lengths_to_mask


@dataclass(frozen=True)
class ProjectionSettings:
    """From encoder width to LM width, with fewer positions if wished: each costs the LM as much as a token.

    Args:
        downsampling: Features that become one prefix position; 1 keeps the encoder's rate.
        kind: How they are joined: ``stack`` side by side, or a strided ``convolution`` that also sees their neighbours.
        hidden_size: Width of a hidden layer; null for one linear map, as in the paper.
    """

    downsampling: int = 1
    kind: Literal["stack", "convolution"] = "stack"
    hidden_size: int | None = None

    def __post_init__(self) -> None:
        if self.downsampling < 1 or (self.hidden_size is not None and self.hidden_size < 1):
            raise UserError("model.projection: downsampling and hidden_size must be positive")


class Projection(nn.Module):
    """Features (B, S, E) with lengths (B,) to the prefix (B, ceil(S / downsampling), D) and its lengths.

    Args:
        input_size: Width E of the features.
        output_size: Width D of the LM.
        settings: What to do on the way.

    Source: METHOD "Parts", P_s; down-sampling by stacking as in SLAM-ASR (Ma et al. 2024).
    """

    def __init__(self, input_size: int, output_size: int, settings: ProjectionSettings):
        super().__init__()
        self.downsampling = settings.downsampling
        self.convolution = None
        if settings.kind == "convolution":
            kernel = 2 * settings.downsampling - 1
            self.convolution = nn.Conv1d(input_size, input_size, kernel, settings.downsampling)
        else:
            input_size *= settings.downsampling
        if settings.hidden_size is None:
            self.map: nn.Module = nn.Linear(input_size, output_size)
        else:
            self.map = nn.Sequential(
                nn.Linear(input_size, settings.hidden_size), nn.GELU(), nn.Linear(settings.hidden_size, output_size)
            )

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        factor = self.downsampling
        features = features * lengths_to_mask(lengths, features.shape[1])[..., None]
        features = F.pad(features, (0, 0, 0, -features.shape[1] % factor))
        if self.convolution is None:
            features = features.unflatten(1, (-1, factor)).flatten(2)
        else:
            padded = F.pad(features.transpose(1, 2), ((factor - 1) // 2, factor - 1 - (factor - 1) // 2))
            features = F.gelu(self.convolution(padded)).transpose(1, 2)
        return self.map(features), (lengths + factor - 1) // factor
