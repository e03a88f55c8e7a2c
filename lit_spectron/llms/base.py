"""The slot `llm`."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from lit_spectron.llms.tokenizer import Tokenizer
from lit_spectron.part import Part


class LanguageModel(Part, ABC):
    """A causal language model driven by embeddings, with attention and positions given by the caller.

    Attributes:
        tokenizer: Text to ids and back.
        hidden_size: Width D.
    """

    tokenizer: Tokenizer
    hidden_size: int

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """(B, U) token ids to (B, U, D)."""

    @abstractmethod
    def forward(
        self, embeddings: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any = None
    ) -> tuple[Tensor, Any]:
        """
        Args:
            embeddings: (B, L, D).
            attention_mask: (B, 1, L, K) bool: K counts cached positions too. The last query sees every valid key.
            position_ids: (B, L).
            cache: What `new_cache` gave; extended in place. None to keep no cache.

        Returns:
            hidden (B, L, D), and the cache.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., V)."""

    @abstractmethod
    def new_cache(self, positions: int = 0) -> Any:
        """An empty KV cache, with room for so many positions; more than that make it grow."""
