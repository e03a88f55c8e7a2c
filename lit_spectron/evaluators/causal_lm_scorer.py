"""Text to its likelihood under a pre-trained language model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from lit_spectron.evaluators.base import TextScore, TextScorer, find_model


@dataclass(frozen=True)
class CausalLMScorer(TextScorer):
    """Any causal LM of Hugging Face, in float32.

    The first token: a tokenizer that has a bos token (GPT-2 does) puts it in front, and every token of the text is
    scored. One that has none leaves nothing to predict the first token from: it is context only, and not counted. The
    end of the text is not scored.

    Args:
        source: Hub id or local folder.
        device: ``cpu``, ``cuda``, ...; ``auto`` for the model's.

    Source: Nachmani et al. 2024, section 4.1: GPT-2 medium.
    """

    package: ClassVar[str] = "transformers"

    source: str = "openai-community/gpt2-medium"
    device: str = "auto"

    @property
    def name(self) -> str:
        return f"CausalLMScorer {self.source}"

    def weights(self) -> list[Path]:
        return find_model("CausalLMScorer.source", self.source)[1]

    def load(self, device: torch.device) -> Any:
        from lit_spectron.huggingface import frozen_causal_lm

        folder, _ = find_model("CausalLMScorer.source", self.source)
        return frozen_causal_lm("CausalLMScorer.source", self.source, folder, device)

    @torch.inference_mode()
    def score(self, texts: Sequence[str], device: torch.device | str = "cpu") -> list[TextScore]:
        tokenizer, network = self.loaded(device)
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        scores = []
        for text in texts:
            tokens = torch.tensor(start + tokenizer.encode(text, add_special_tokens=False), device=network.device)
            if len(tokens) < 2:
                scores.append(TextScore(0.0, 0))
                continue
            logits = network(tokens[None, :-1]).logits[0].float()
            scores.append(TextScore(float(F.cross_entropy(logits, tokens[1:], reduction="sum")), len(tokens) - 1))
        return scores
