"""The benchmarks compare what they say they compare; how fast anything is, is no matter here."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForCausalLM

from benchmarks import shipped, sizes, training
from lit_spectron.decoders import MLPDecoder
from lit_spectron.encoders import ConformerEncoder, WhisperEncoder
from lit_spectron.huggingface import plain_config
from lit_spectron.llms import HuggingFaceLLM
from lit_spectron.losses import LossWeights
from lit_spectron.model import SpectronModel
from tests.tiny import ENCODERS, LLMS

ROOT = Path(__file__).parents[1]


def model_of(audio, encoder: type, attention: str) -> SpectronModel:
    torch.manual_seed(0)
    return SpectronModel(
        audio,
        lambda a: encoder(a, **ENCODERS[encoder.__name__]),
        HuggingFaceLLM(**LLMS["HuggingFaceLLM"], attention=attention),
        lambda a, width: MLPDecoder(a, width, reduction_factor=4),
    ).train()


def test_hugging_faces_step_is_the_same_step(audio):
    model = model_of(audio, ConformerEncoder, "sdpa")
    batch = shipped.make_batch(model, 2, 0.5, 0.5, 5)
    losses, gradients = [], []
    for step in training.STEPS.values():
        torch.manual_seed(0)
        losses.append(step(model, batch))
        LossWeights().total(losses[-1]).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        model.zero_grad()
    assert losses[0].keys() == losses[1].keys()
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


def test_every_matrix_product_is_seen(audio):
    # Torch counts too much in the backward pass of a Conformer's grouped convolutions, and no fused attention on a CPU.
    model = model_of(audio, WhisperEncoder, "eager")
    model.encoder.encoder.set_attn_implementation("eager")
    step = training.step_of(model, shipped.make_batch(model, 2, 0.5, 0.5, 5), LossWeights(), training.ours)
    with FlopCounterMode(display=False) as counter:
        step()
    shapes = training.seen_products(step)
    assert sum(2 * math.prod(shape) for shape in shapes) == counter.get_total_flops()
    training.bare(shapes)()


def test_fused_attention_counts_as_its_products():
    query, key, value = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (5, 7, 7))
    shapes = training.seen_products(
        lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value).sum().backward()
    )
    assert len(shapes) == 6 and all(math.prod(shape) == 2 * 3 * 5 * 7 * 8 for shape in shapes)


def test_computed_memory_is_what_a_real_step_keeps(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = shipped.read_config(Path("conf/quickstart.yaml"))
    size = sizes.computed(config, sizes.Utterance(0.5, 0.5, 5))
    model = shipped.build_model(config)
    real = []
    for utterances in (1, 2, 3):
        batch = shipped.make_batch(model, utterances, 0.5, 0.5, 5)
        weights = [*model.parameters(), *model.buffers()]
        _, kept = sizes.kept_bytes(lambda batch=batch: LossWeights().total(model(batch).losses), weights)
        real.append(kept)
    assert size.activations_bytes == pytest.approx(real[1] - real[0], rel=0.01)
    assert size.copies_bytes + 3 * size.activations_bytes == pytest.approx(real[2], rel=0.01)
    assert size.parameters["llm"] == sum(p.numel() for p in model.llm.parameters())
    assert size.states_bytes == 16 * size.trained == 4 * size.weights_bytes
    # Keys and values of 4 layers, 2 heads of 32.
    assert size.cache_bytes == 2 * 4 * 2 * 32 * 4


@pytest.mark.parametrize(
    ("source", "kind", "millions"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", AutoModelForCausalLM, 134.515),
        ("HuggingFaceTB/SmolLM2-360M", AutoModelForCausalLM, 361.821),
        ("TinyLlama/TinyLlama_v1.1", AutoModelForCausalLM, 1100.048),
        ("facebook/w2v-bert-2.0", AutoModel, 580.493),
    ],
)
def test_sizes_are_those_of_the_released_models(source, kind, millions):
    with torch.device("meta"):
        model = kind.from_config(plain_config("llm", shipped.ARCHITECTURES[source]))
    assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=1e-3)


def test_size_table(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    sizes.main(["--configs", "smollm2_whisper", "--continuation_seconds", "0.5"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| smollm2_whisper")]
    assert rows[0] == "| smollm2_whisper | 8.21 | 2.56 | 134.52 | 0.70 | 145.98 | 137.77 |"
    assert len(rows) == 3 and "| bf16-mixed | 2.24 |" in rows[1]
    with pytest.raises(SystemExit) as end:
        sizes.main(["--configs", "nowhere"])
    assert end.value.code == 2 and capsys.readouterr().err == "error: conf/nowhere.yaml: no such config\n"


@pytest.mark.slow
def test_the_command():
    command = [sys.executable, "-m", "benchmarks.training", "--tiny", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split(" | ")[0] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows[1:5] == ["| ---", "| ours", "| Hugging Face", "| bare matrix products"] and len(rows) == 15
