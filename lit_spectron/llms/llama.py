"""A Llama-style decoder from scratch."""

from typing import Any

from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from lit_spectron.llms.base import LanguageModel
from lit_spectron.llms.tokenizer import Tokenizer


class LlamaFromScratch(LanguageModel):
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
        super().__init__()
        self.tokenizer = Tokenizer(tokenizer)
        self.hidden_size = hidden_size
        self.llama = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=hidden_size,
                num_hidden_layers=layers,
                num_attention_heads=attention_heads,
                num_key_value_heads=key_value_heads,
                intermediate_size=intermediate_size,
                tie_word_embeddings=tie_embeddings,
                pad_token_id=None,
                bos_token_id=self.tokenizer.sos_id,
                eos_token_id=self.tokenizer.eos_id,
            )
        )
        self.llama.set_attn_implementation("sdpa")

    def embed(self, tokens: Tensor) -> Tensor:
        return self.llama.model.embed_tokens(tokens)

    def forward(
        self, embeddings: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any = None
    ) -> tuple[Tensor, Any]:
        output = self.llama.model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state, cache

    def logits(self, hidden: Tensor) -> Tensor:
        return self.llama.lm_head(hidden)

    def new_cache(self) -> Any:
        return DynamicCache(config=self.llama.config)

    def rebuild_args(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.to_json()}
