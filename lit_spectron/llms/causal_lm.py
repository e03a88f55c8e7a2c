"""Any causal language model of transformers behind the slot's interface."""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from lit_spectron.errors import UserError
from lit_spectron.llms.base import LanguageModel
from lit_spectron.llms.tokenizer import Tokenizer

Attention = Literal["sdpa", "eager"]


class RoomyLayer(DynamicLayer):
    """Keys and values (B, heads, K, width) of a layer, in room that is taken once.

    Attention sees views of what is filled: it reads no more than a `DynamicLayer` gives it, which copies all keys
    and values at every step, and no unfilled position, as of a `StaticLayer`.

    Args:
        positions: Room for so many. It is doubled as often as need be.
    """

    def __init__(self, positions: int):
        super().__init__()
        self.positions = positions

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.key_room, self.value_room = key_states[:, :, :0], value_states[:, :, :0]

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        seen = self.get_seq_length()
        self.key_room = self._filled(self.key_room, key_states, seen)
        self.value_room = self._filled(self.value_room, value_states, seen)
        end = seen + key_states.shape[-2]
        self.keys, self.values = self.key_room[:, :, :end], self.value_room[:, :, :end]
        return self.keys, self.values

    def _filled(self, room: Tensor, states: Tensor, seen: int) -> Tensor:
        batch, heads, new, width = states.shape
        end = seen + new
        if end > room.shape[2]:
            larger = states.new_empty(batch, heads, max(self.positions, end, 2 * seen), width)
            larger[:, :, :seen] = room[:, :, :seen]
            room = larger
        room[:, :, seen:end] = states
        return room


class CausalLM(LanguageModel):
    """Drives a `...ForCausalLM` by embeddings, masks and positions.

    Args:
        network: The model.
        tokenizer: Its tokenizer.
        attention: Implementation: ``sdpa`` (fused) or ``eager``. Flash attention knows no prefix mask.
    """

    def __init__(self, network: PreTrainedModel, tokenizer: Tokenizer, attention: Attention = "sdpa"):
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        config = network.config
        try:
            network.set_attn_implementation(attention)
        except ValueError as error:  # Gemma 2 caps its attention logits, which sdpa can't
            raise UserError(f"model.llm.attention: a {config.model_type} has no {attention}; try eager") from error
        self.hidden_size = config.hidden_size
        rows = network.get_output_embeddings().out_features
        if rows < len(tokenizer):
            raise UserError(f"model.llm: the tokenizer has {len(tokenizer)} tokens, the model only {rows}")
        layer_types = set(getattr(config, "layer_types", None) or [])
        self._window = getattr(config, "sliding_window", None)
        self._mixed_layers = "sliding_attention" in layer_types and "full_attention" in layer_types
        if layer_types == {"full_attention"}:
            self._window = None
        # Positions that are looked up in a table end with it; rotary ones don't.
        has_table = getattr(config, "rope_parameters", None) is None
        self._last_position = getattr(config, "max_position_embeddings", None) if has_table else None

    def embed(self, tokens: Tensor) -> Tensor:
        return self.network.get_input_embeddings()(tokens)

    def forward(
        self, embeddings: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any = None
    ) -> tuple[Tensor, Any]:
        if self._last_position is not None and attention_mask.shape[-1] > self._last_position:
            raise UserError(f"model.llm: the sequence is longer than its {self._last_position} positions")
        output = self.network.base_model(
            inputs_embeds=embeddings,
            attention_mask=self._masks(attention_mask, position_ids, embeddings.dtype),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state, cache

    def _masks(self, mask: Tensor, position_ids: Tensor, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """The mask as the network's layers want it, narrowed to the window where they have one."""
        full = self._for_implementation(mask, dtype)
        if self._window is None:
            return full
        # Keys are numbered as they are seen: the last query sees every valid one.
        key_positions = mask[:, :, -1:].cumsum(-1) - 1
        near = position_ids[:, None, :, None] - key_positions < self._window
        sliding = self._for_implementation(mask & near, dtype)
        return {"full_attention": full, "sliding_attention": sliding} if self._mixed_layers else sliding

    def _for_implementation(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        if self.network.config._attn_implementation == "sdpa":
            return mask
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)

    def logits(self, hidden: Tensor) -> Tensor:
        logits = self.network.get_output_embeddings()(hidden)
        cap = getattr(self.network.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * (logits / cap).tanh()

    def new_cache(self, positions: int = 0) -> Any:
        # Every layer keeps all keys, and the masks decide: windows and prefixes alike.
        return Cache(layer_class_to_replicate=partial(RoomyLayer, positions))  # type: ignore[arg-type]
