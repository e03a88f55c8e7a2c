"""A Llama-style decoder from scratch."""

from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from lit_spectron.llms.causal_lm import CausalLM
from lit_spectron.llms.tokenizer import Tokenizer


class LlamaFromScratch(CausalLM):
    """Rotary positions, RMSNorm, SwiGLU, grouped-query attention: `LlamaForCausalLM` of transformers, untrained.

    Args:
        hidden_size: Width D.
        layers: Decoder layers.
        attention_heads: Query heads.
        key_value_heads: Key and value heads; divides ``attention_heads``.
        intermediate_size: Width of the feed-forward module.
        tokenizer: Path of a ``tokenizer.json`` (or its content) with <pad>, <sos> and <eos>; null for one token a byte.
        tie_embeddings: Whether the output layer is the transposed embedding table.
    """

    def __init__(
        self,
        hidden_size: int,
        layers: int,
        attention_heads: int,
        key_value_heads: int,
        intermediate_size: int,
        tokenizer: str | None = None,
        tie_embeddings: bool = True,
    ):
        words = Tokenizer(tokenizer)
        config = LlamaConfig(
            vocab_size=len(words),
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=attention_heads,
            num_key_value_heads=key_value_heads,
            intermediate_size=intermediate_size,
            tie_word_embeddings=tie_embeddings,
            pad_token_id=None,
            bos_token_id=words.sos_id,
            eos_token_id=words.eos_id,
        )
        super().__init__(LlamaForCausalLM(config), words)

    def rebuild_args(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.to_json()}
