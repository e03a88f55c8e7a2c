"""P_s: the encoder's features to the LM's prefix."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
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
            With ``tokens`` they are not: the encoder tells what each of them says (`TokenProjection`).
        hidden_size: Width of a hidden layer; null for one linear map, as in the paper.
        lower_case: Of tokens: whether the LM reads them in lower case, where its texts are.
    """

    downsampling: int = 1
    kind: Literal["stack", "convolution", "tokens"] = "stack"
    hidden_size: int | None = None
    lower_case: bool = False

    def __post_init__(self) -> None:
        if self.downsampling < 1 or (self.hidden_size is not None and self.hidden_size < 1):
            raise UserError("model.projection: downsampling and hidden_size must be positive")
        if self.kind == "tokens" and (self.downsampling > 1 or self.hidden_size is not None):
            raise UserError("model.projection: kind tokens has no use for downsampling and hidden_size")
        if self.kind != "tokens" and self.lower_case:
            raise UserError(f"model.projection: kind {self.kind} has no use for lower_case")


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
        self.positions_per_feature = 1 / settings.downsampling
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


class TokenProjection(nn.Module):
    """Features (B, S, E) that stand for tokens of the encoder's to what the LM takes for the same words.

    A position is the sum of the LM's own embeddings by the tokens' probabilities, and a map of the feature, zero at
    first: the LM starts by reading what was heard, with all that it knows of these words. A feature that stands for no
    token counts as sos: then the prefix begins as a text does, and to write it once more is what LMs do unasked.
    Features are mapped at length 1: encoders' are many times as long as embeddings, which they would drown.

    Args:
        input_size: Width E of the features.
        output_size: Width D of the LM.
        spellings: For each token of the encoder, ids of the LM's tokens for the same words; may be empty.
        sos_id: The LM's first token of every text.

    Source: sums of LLM embeddings by a recogniser's probabilities, LegoSLM (Ma et al. 2025), there of CTC.
    """

    PIECES = 4  # of one token; the rest of a longer spelling is left out
    positions_per_feature = 1.0

    spellings: Tensor

    def __init__(self, input_size: int, output_size: int, spellings: list[list[int]], sos_id: int):
        super().__init__()
        self.sos_id = sos_id
        self.map = nn.Linear(input_size, output_size)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)
        padded = [(ids + [-1] * self.PIECES)[: self.PIECES] for ids in spellings]
        self.register_buffer("spellings", torch.tensor(padded, dtype=torch.int32))

    def forward(
        self,
        features: Tensor,
        lengths: Tensor,
        probabilities: Tensor,
        tokens: Tensor,
        embed: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            features: (B, S, E).
            lengths: (B,).
            probabilities: (B, S, K) of the likeliest tokens of each feature; all 0 where it stands for none.
            tokens: (B, S, K) their ids.
            embed: The LM's embeddings, (B, X) to (B, X, D).
        """
        pieces = self.spellings[tokens].long()
        known = pieces >= 0
        weights = probabilities[..., None] * known / known.sum(3, keepdim=True).clamp(min=1)
        pieces = pieces.where(known, self.sos_id).flatten(2)
        read = torch.einsum(
            "bsn,bsnd->bsd", weights.flatten(2), embed(pieces.flatten(1)).unflatten(1, pieces.shape[1:])
        )
        sos = embed(torch.full_like(pieces[:1, :1, 0], self.sos_id))
        mapped = self.map(F.layer_norm(features, features.shape[2:]) / features.shape[2] ** 0.5)
        return torch.where(probabilities.sum(2, keepdim=True) > 0, read, sos) + mapped, lengths
