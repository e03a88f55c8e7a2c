"""Weights in int8, for decoding."""

import pytest
import torch
from torch import nn

from lit_spectron.errors import UserError
from lit_spectron.generation import GenerationSettings
from lit_spectron.llms import HuggingFaceLLM, LlamaFromScratch
from lit_spectron.llms.int8 import Int8Linear, store_in_int8
from lit_spectron.pipeline import SpectronPipeline
from lit_spectron.vocoders import GriffinLim


@torch.no_grad()
def test_a_layer_is_its_rounded_weights_times_bfloat16():
    torch.manual_seed(0)
    linear, x = nn.Linear(48, 20), torch.randn(2, 3, 48)
    scales = (linear.weight.abs().amax(1) / 127).bfloat16().double()
    weight = (linear.weight / scales[:, None]).round().clamp(-127, 127) * scales[:, None]
    expected = x.bfloat16().double() @ weight.T
    found = Int8Linear(linear)(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close((found - linear.bias).double(), expected, atol=1e-5, rtol=2**-8)  # of bfloat16
    assert 0 < (found - linear(x)).abs().max() < 0.02 * linear(x).std()


@torch.no_grad()
def test_a_row_of_zeros_stays_zero():
    linear = nn.Linear(16, 2, bias=False)
    linear.weight[0] = 0
    assert torch.equal(Int8Linear(linear)(torch.ones(1, 16))[:, 0], torch.zeros(1))


def test_layers_that_the_kernel_can_not_read_stay():
    llm = LlamaFromScratch(24, 1, 2, 2, 64)
    store_in_int8(llm)
    assert [n.split(".")[-1] for n, m in llm.named_modules() if isinstance(m, Int8Linear)] == ["down_proj"]


def test_what_is_said_is_nearly_the_same(tiny_model, audio):
    settings = GenerationSettings(max_text_tokens=6, max_speech_seconds=0.5, stop_threshold=1.0, silence_seconds=None)
    prompt = 0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(0))
    exact, rounded = (
        SpectronPipeline(tiny_model(lively=True), GriffinLim(audio, iterations=1), settings, 0.5, weights)
        for weights in ("float32", "int8")
    )
    assert sum(isinstance(module, Int8Linear) for module in rounded.model.llm.modules()) == 2 * 7
    assert not any(isinstance(module, Int8Linear) for module in exact.model.llm.modules())
    (expected, _), (found, _) = (pipeline.generate([prompt]) for pipeline in (exact, rounded))
    assert found.lengths == expected.lengths
    difference = (found.log_mel[:, :4] - expected.log_mel[:, :4]).abs().mean()  # before what differs adds up
    assert 0 < difference < 0.1 * expected.log_mel.std()


def test_an_llm_without_linear_layers_is_refused():
    llm = HuggingFaceLLM(config={"model_type": "gpt2", "vocab_size": 259, "n_embd": 32, "n_layer": 2, "n_head": 2})
    with pytest.raises(UserError, match=r"--weights: .*no linear layers"):
        store_in_int8(llm)
