"""Encoders x LLMs x decoders, all of them: train, generate, save, and speak the same from the checkpoint alone."""

import json
from itertools import product

import pytest
import torch

from lit_spectron import decoders, encoders, llms
from lit_spectron.decoders import SpectrogramDecoder
from lit_spectron.encoders import SpeechEncoder
from lit_spectron.llms import LanguageModel
from lit_spectron.module import LitSpectron
from lit_spectron.optim import OptimizerSettings, build_optimizer
from lit_spectron.pipeline import SpectronPipeline, build
from tests.discovery import implementations
from tests.tiny import ENCODERS, LLMS

ENCODER_CLASSES = implementations(encoders, SpeechEncoder)
LLM_CLASSES = implementations(llms, LanguageModel)
DECODER_CLASSES = implementations(decoders, SpectrogramDecoder)


def part(cls: type, arguments: dict) -> dict:
    return {"class_path": f"{cls.__module__}.{cls.__name__}", "init_args": arguments}


@pytest.mark.parametrize(
    ("encoder", "llm", "decoder"),
    list(product(ENCODER_CLASSES, [c for c in LLM_CLASSES if c.__name__ != "CausalLM"], DECODER_CLASSES)),
    ids=lambda c: c.__name__,
)
def test_trains_generates_and_reloads(encoder, llm, decoder, batch, tmp_path):
    slots = {
        "encoder": part(encoder, ENCODERS[encoder.__name__]),
        "llm": part(llm, LLMS[llm.__name__]),
        "decoder": part(decoder, {"reduction_factor": 4}),
    }
    train_generate_and_reload(slots, batch, tmp_path)


def test_tokens_too(batch, tmp_path):
    slots = {
        "encoder": part(encoders.WhisperTranscriptEncoder, ENCODERS["WhisperTranscriptEncoder"]),
        "llm": part(llms.HuggingFaceLLM, LLMS["HuggingFaceLLM"]),
        "decoder": part(DECODER_CLASSES[0], {"reduction_factor": 4}),
        "projection": {"kind": "tokens"},
    }
    train_generate_and_reload(slots, batch, tmp_path)


def test_low_rank_adapters_too(batch, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed")
    slots = {
        "encoder": part(ENCODER_CLASSES[0], ENCODERS[ENCODER_CLASSES[0].__name__]),
        "llm": part(llms.HuggingFaceLLM, {**LLMS["HuggingFaceLLM"], "lora": {"rank": 2}}),
        "decoder": part(DECODER_CLASSES[0], {"reduction_factor": 4}),
    }
    train_generate_and_reload(slots, batch, tmp_path)


def train_generate_and_reload(slots: dict[str, dict], batch, tmp_path) -> None:
    torch.manual_seed(0)
    config = {
        "audio": {"n_mels": 20, "log_floor": 1e-3},
        "projection": {"downsampling": 2},
        **slots,
        "vocoder": {"class_path": "lit_spectron.vocoders.GriffinLim", "init_args": {"iterations": 2}},
        "prefix_attention": "bidirectional",
        "generation": {"max_text_tokens": 4, "max_speech_seconds": 0.3},
        "prompt_seconds": 0.5,
    }
    model, vocoder, settings = build(config)
    optimizer, _ = build_optimizer(model, OptimizerSettings(total_steps=2, warmup_steps=0))
    data, before = batch(), {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(2):
        losses = model.train()(data).losses
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    assert all(value.isfinite() for value in losses.values())
    moved = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"encoder", "llm", "decoder", "projection"}

    trained = SpectronPipeline(model, vocoder, settings, 0.5)
    module = LitSpectron.__new__(LitSpectron)
    torch.nn.Module.__init__(module)
    module.model, module.vocoder, module.config = model, vocoder, json.loads(json.dumps(config))
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "x.ckpt")
    loaded = SpectronPipeline.from_checkpoint(tmp_path / "x.ckpt", "cpu")
    prompts = [data.waveform[i, :8000] for i in range(2)]
    (first, sounds), (second, again) = (p.generate(prompts, ["a", "b"]) for p in (trained, loaded))
    assert first.text == second.text and torch.equal(first.log_mel, second.log_mel)
    assert all(torch.equal(a, b) and len(a) for a, b in zip(sounds, again, strict=True))
