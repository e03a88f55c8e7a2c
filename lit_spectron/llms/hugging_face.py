"""Pre-trained language models of Hugging Face."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lit_spectron.errors import UserError
from lit_spectron.huggingface import config_fields, gguf_arguments, load_model, named_errors
from lit_spectron.llms.causal_lm import Attention, CausalLM
from lit_spectron.llms.tokenizer import SpecialTokens, Tokenizer
from lit_spectron.masking import prefix_lm_mask


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters beside frozen weights (peft).

    Args:
        rank: Of each adapter.
        alpha: Adapters are scaled by alpha / rank.
        dropout: On the adapters' input.
        targets: Endings of the names of the linear layers that get one; null for all but the output layer.

    Source: Hu et al. 2021.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: list[str] | None = None


class HuggingFaceLLM(CausalLM):
    """Any ``AutoModelForCausalLM`` with a ``tokenizer.json``: Llama, Qwen, Gemma, GPT-2, SmolLM2, ... are tried.

    At loading, logits through embeddings and explicit masks are compared with the model's own, and a bidirectional mask
    is tried; a family that does more between embedding and logits than is known here, or masks by itself, is refused
    rather than used wrongly.

    Special tokens: eos is the tokenizer's; sos its bos, or eos where it has none; pad its pad, or eos.

    Args:
        source: Hub id, local folder or ``.gguf`` file; null with ``config``.
        config: Fields of a model's config, ``model_type`` among them, for random weights; null with ``source``.
        tokenizer: Path of a ``tokenizer.json`` (or its content); null for the source's own, and with ``config`` for one
            token a byte.
        special_tokens: Names of ``pad``, ``sos`` and ``eos`` in ``tokenizer``; null for <pad>, <sos>, <eos>.
        attention: Implementation of attention: ``sdpa`` or ``eager``. Flash attention knows no prefix mask.
        lora: Trains adapters instead of the weights; null trains all.
    """

    def __init__(
        self,
        source: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        special_tokens: dict[str, str] | None = None,
        attention: Attention = "sdpa",
        lora: LoraSettings | None = None,
    ):
        if special_tokens is not None and tokenizer is None:
            raise UserError("model.llm.special_tokens: belong to model.llm.tokenizer, which is not given")
        network = load_model(AutoModelForCausalLM, "llm", source, config)
        if source is not None and tokenizer is None:
            words = pretrained_tokenizer(source)
        else:
            words = Tokenizer(tokenizer, SpecialTokens(**(special_tokens or {})))
        super().__init__(network, words, attention)
        self._config = config_fields(self.network)
        if source is not None:
            self._check_wrapping(source)
        if lora is not None:
            add_lora(self.network, lora)

    @torch.no_grad()
    def _check_wrapping(self, source: str) -> None:
        """Compares with the model's own forward pass.

        Raises:
            UserError: They differ.
        """
        tokens = torch.arange(1, 9)[None]
        length = torch.tensor([tokens.shape[1]])
        mask = prefix_lm_mask(torch.tensor([0]), length, int(length), bidirectional=False)
        self.network.eval()
        hidden, _ = self(self.embed(tokens), mask, torch.arange(int(length))[None])
        ours, own = self.logits(hidden), self.network(tokens).logits
        changed = self.embed(tokens)
        everything = torch.ones_like(mask)
        before, _ = self(changed, everything, torch.arange(int(length))[None])
        changed[:, -1] *= -1
        after, _ = self(changed, everything, torch.arange(int(length))[None])
        self.network.train()
        if torch.allclose(before[:, 0], after[:, 0], atol=1e-6, rtol=1e-6):
            kind = self.network.config.model_type
            raise UserError(f"model.llm.source: {source}: a {kind} masks what follows by itself: no prefix LM")
        if not torch.allclose(ours, own, atol=1e-3 * float(own.abs().max())):
            raise UserError(
                f"model.llm.source: {source}: a {self.network.config.model_type} does more between embeddings and "
                f"logits than is known here (logits differ by {float((ours - own).abs().max()):.3g})"
            )

    def rebuild_args(self) -> dict[str, Any]:
        return {
            "source": None,
            "config": self._config,
            "tokenizer": self.tokenizer.to_json(),
            "special_tokens": asdict(self.tokenizer.special),
        }


def pretrained_tokenizer(source: str) -> Tokenizer:
    """The tokenizer that belongs to a model.

    Raises:
        UserError: There is none, or it has no eos: a text that can't end would never give way to speech.
    """
    with named_errors("model.llm.source", source):
        if source.endswith(".gguf"):
            loaded = AutoTokenizer.from_pretrained(**gguf_arguments("llm", source))
        else:
            loaded = AutoTokenizer.from_pretrained(source)
    eos = loaded.eos_token
    if eos is None:
        raise UserError(f"model.llm.source: {source}: its tokenizer has no eos token")
    special = SpecialTokens(pad=loaded.pad_token or eos, sos=loaded.bos_token or eos, eos=eos)
    return Tokenizer(loaded.backend_tokenizer.to_str(), special)


def add_lora(network: PreTrainedModel, settings: LoraSettings) -> None:
    """Puts adapters into a model and freezes everything else.

    Raises:
        UserError: peft is not installed, or a target matches no linear layer.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("model.llm.lora: needs peft: pip install -e '.[pretrained]'") from error
    # GPT-2's linear layers are called Conv1D.
    linear = [n for n, m in network.named_modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
    for target in settings.targets or []:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            raise UserError(f"model.llm.lora.targets: {target} matches no linear layer")
    inject_adapter_in_model(
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=settings.targets or "all-linear",
        ),
        network,
    )
