"""Loading parts of Hugging Face's transformers: from weights once, from the config alone ever after."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from lit_spectron.errors import UserError


def load_model(auto_class: Any, slot: str, source: str | None, config: dict[str, Any] | None) -> Any:
    """A `PreTrainedModel` in float32; typed loosely, since architectures differ.

    Args:
        auto_class: `AutoModel`, `AutoModelForCausalLM`, ...
        slot: Name for error messages.
        source: Hub id, local folder, or (causal LMs) a ``.gguf`` file: architecture and weights.
        config: Fields of the architecture's config, ``model_type`` among them: random weights.

    Raises:
        UserError: Not exactly one of ``source`` and ``config`` is given, or it can't be loaded.
    """
    if (source is None) == (config is None):
        raise UserError(f"model.{slot}: give exactly one of source (pre-trained) and config (from scratch)")
    if source is None:
        try:
            return auto_class.from_config(plain_config(slot, config or {}), dtype=torch.float32)
        except ValueError as error:
            raise UserError(f"model.{slot}.config: {str(error).splitlines()[0]}") from error
    if Path(source).is_absolute() and not Path(source).exists():
        raise UserError(f"model.{slot}.source: no such file or folder: {source}")
    with named_errors(f"model.{slot}.source", source):
        if not source.endswith(".gguf"):
            # transformers leaves what it loads in evaluation mode, and what it builds in training mode.
            return auto_class.from_pretrained(source, dtype=torch.float32).train()
        quantized = auto_class.from_pretrained(**gguf_arguments(slot, source), dtype=torch.float32)
        # A model that was read from GGUF counts as quantized for good: its weights move to one that does not.
        fields = config_fields(quantized)
        fields.pop("quantization_config", None)
        model = auto_class.from_config(plain_config(slot, fields), dtype=torch.float32)
        model.load_state_dict(quantized.state_dict())
        return model


def gguf_arguments(slot: str, source: str) -> dict[str, str]:
    """How transformers wants a GGUF file to be named."""
    if not Path(source).is_file():
        raise UserError(f"model.{slot}.source: no such file: {source}")
    return {"pretrained_model_name_or_path": str(Path(source).parent), "gguf_file": Path(source).name}


def plain_config(slot: str, fields: dict[str, Any]) -> PretrainedConfig:
    """Fields, ``model_type`` among them, to the config object of that architecture."""
    fields = dict(fields)
    try:
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    except KeyError as error:
        raise UserError(f"model.{slot}.config: needs a model_type that transformers knows") from error
    except (StrictDataclassError, ValueError) as error:
        raise UserError(f"model.{slot}.config: {' '.join(str(error).split())}") from error


def config_fields(model: PreTrainedModel) -> dict[str, Any]:
    """A model's config as plain values, for `load_model`'s ``config``."""
    fields = json.loads(model.config.to_json_string(use_diff=False))
    for name in ("_name_or_path", "architectures", "dtype", "transformers_version"):
        fields.pop(name, None)
    return fields


@contextmanager
def named_errors(key: str, source: str) -> Iterator[None]:
    """Turns whatever transformers raises while loading into one line that names the source."""
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{key}: {source} can't be loaded: {reason}") from error


def frozen_causal_lm(key: str, source: str, folder: Path, device: torch.device) -> tuple[Any, Any]:
    """Tokenizer and network, in float32, of a causal LM that only judges.

    Raises:
        UserError: It can't be loaded; names ``key`` and ``source``.
    """
    with named_errors(key, source):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return tokenizer, network.requires_grad_(False).eval().to(device)
