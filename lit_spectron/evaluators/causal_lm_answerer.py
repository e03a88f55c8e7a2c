"""Written questions to answers by a pre-trained language model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from lit_spectron.evaluators.base import TextAnswerer, find_model


@dataclass(frozen=True)
class CausalLMAnswerer(TextAnswerer):
    """Any causal LM of Hugging Face, in float32, decoding greedily.

    A question is put as the tokenizer's chat template wants it, with nothing added; where there is none, as
    ``Question: ... Answer:``, and the answer ends with its line.

    Args:
        source: Hub id or local folder.
        device: ``cpu``, ``cuda``, ...; ``auto`` for the model's.
        max_new_tokens: Longest answer.
    """

    package: ClassVar[str] = "transformers"

    source: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    device: str = "auto"
    max_new_tokens: int = 64

    @property
    def name(self) -> str:
        return f"CausalLMAnswerer {self.source}"

    def weights(self) -> list[Path]:
        return self._find()[1]

    def _find(self) -> tuple[Path, list[Path]]:
        # A chat template may lie in a file of its own.
        return find_model("CausalLMAnswerer.source", self.source, others=("*.json", "*.txt", "*.model", "*.jinja"))

    def load(self, device: torch.device) -> Any:
        from lit_spectron.huggingface import frozen_causal_lm

        folder, _ = self._find()
        return frozen_causal_lm("CausalLMAnswerer.source", self.source, folder, device)

    @torch.inference_mode()
    def answer(self, questions: Sequence[str], device: torch.device | str = "cpu") -> list[str]:
        from transformers import GenerationConfig

        tokenizer, network = self.loaded(device)
        end = tokenizer.eos_token_id
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=self.max_new_tokens, eos_token_id=end, pad_token_id=end
        )
        answers = []
        for question in questions:  # one after the other: padding would leave its mark
            if tokenizer.chat_template:
                chat = [{"role": "user", "content": question}]
                text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            else:
                text = f"{tokenizer.bos_token or ''}Question: {question}\nAnswer:"
            ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)], device=network.device)
            new = network.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            answer = tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True).strip()
            answers.append(answer if tokenizer.chat_template else answer.split("\n")[0])
        return answers
