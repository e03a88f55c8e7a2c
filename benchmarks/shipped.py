"""Models of the configs in conf/ with random weights, and batches for them: nothing is downloaded."""

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from lit_spectron.errors import UserError
from lit_spectron.model import SpectronModel
from lit_spectron.optim import freeze
from lit_spectron.pipeline import build
from lit_spectron.types import SpeechBatch

Result = TypeVar("Result")
ENCODER_ALONE = "lit_spectron.encoders.WhisperEncoder"
SLOTS = ("encoder", "llm", "decoder", "vocoder")
SMOLLM2 = {"model_type": "llama", "vocab_size": 49152, "tie_word_embeddings": True}
SMOLLM2_135M = {
    **SMOLLM2,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
SMOLLM2_360M = {
    **SMOLLM2,
    "hidden_size": 960,
    "intermediate_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 15,
    "num_key_value_heads": 5,
}
TINYLLAMA = {
    "model_type": "llama",
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
WHISPER_TINY = {
    "model_type": "whisper",
    "vocab_size": 51864,
    "d_model": 384,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_layers": 4,
    "decoder_attention_heads": 6,
    "decoder_ffn_dim": 1536,
}
# The sizes of what the configs load by name; transformers' defaults for a w2v-BERT are those of w2v-BERT 2.0.
ARCHITECTURES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": SMOLLM2_135M,
    "HuggingFaceTB/SmolLM2-360M": SMOLLM2_360M,
    "TinyLlama/TinyLlama_v1.1": TINYLLAMA,
    "openai/whisper-tiny.en": WHISPER_TINY,
    "facebook/w2v-bert-2.0": {"model_type": "wav2vec2-bert"},
}


def read_config(path: Path) -> dict[str, Any]:
    """A whole config with its parts read in, and an architecture in place of each pre-trained source.

    How long a transcript random weights would write says nothing: in place of Whisper's transcript stands Whisper's
    encoder, five features in one position.

    Raises:
        UserError: There is no such config, or the sizes of a source are not known here.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such config")
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    model = config["model"] = {"projection": {}, **config["model"]}
    for slot in SLOTS:
        part = model[slot] = yaml.safe_load((path.parent / model[slot]).read_text(encoding="utf-8"))
        source = part["init_args"].get("source")
        if slot != "vocoder" and source is not None:
            if source not in ARCHITECTURES:
                raise UserError(f"{path}: model.{slot}: the sizes of {source} are not in benchmarks/shipped.py")
            part["init_args"] |= {"source": None, "config": ARCHITECTURES[source]}
    if model["projection"].get("kind") == "tokens":
        architecture = model["encoder"]["init_args"]["config"]
        model["encoder"] = {"class_path": ENCODER_ALONE, "init_args": {"source": None, "config": architecture}}
        model["projection"] = {"kind": "stack", "downsampling": 5, "hidden_size": 1024}
    return config


def build_model(config: dict[str, Any]) -> SpectronModel:
    """The model of a `read_config`, frozen where its training would freeze it."""
    torch.manual_seed(0)
    model, _, _ = build(config["model"])
    freeze(model, config["model"]["optimizer"].get("freeze", []))
    return model.train()


def in_a_process_of_its_own(function: Callable[..., Result], *arguments: Any) -> Result:
    """What a function gives where `peak_bytes` tells of nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_bytes() -> int:
    """Most memory that was resident since this process began (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_batch(
    model: SpectronModel, utterances: int, prompt_seconds: float, continuation_seconds: float, text_tokens: int
) -> SpeechBatch:
    """Noise and random tokens: utterances of one length, so nothing is padding."""
    generator = torch.Generator().manual_seed(0)
    prompt, rest = map(model.audio.seconds_to_samples, (prompt_seconds, continuation_seconds))
    lengths = torch.full((3, utterances), 1) * torch.tensor([[prompt + rest], [prompt], [text_tokens]])
    return SpeechBatch(
        split="train",
        waveform=0.1 * torch.randn(utterances, prompt + rest, generator=generator),
        lengths=lengths[0],
        prompt_samples=lengths[1],
        tokens=torch.randint(3, len(model.llm.tokenizer), (utterances, text_tokens), generator=generator),
        token_lengths=lengths[2],
        ids=[str(index) for index in range(utterances)],
        speakers=[""] * utterances,
        text=["a"] * utterances,
        prompt_text=[None] * utterances,
    )
