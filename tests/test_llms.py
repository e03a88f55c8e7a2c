"""Language models against Hugging Face's own, and masks against an explicit reference."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedTokenizerFast

from lit_spectron.errors import UserError
from lit_spectron.llms import HuggingFaceLLM
from lit_spectron.llms.hugging_face import LoraSettings
from lit_spectron.llms.tokenizer import byte_tokenizer
from lit_spectron.masking import lengths_to_mask, prefix_lm_mask

SIZE = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
FAMILIES = {
    "llama": {"model_type": "llama", **SIZE},
    "qwen2": {"model_type": "qwen2", **SIZE},
    "qwen3": {"model_type": "qwen3", **SIZE},
    "mistral": {"model_type": "mistral", **SIZE, "sliding_window": 4},
    "gemma": {"model_type": "gemma", **SIZE},
    "gemma2": {"model_type": "gemma2", **SIZE, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "gemma3": {
        "model_type": "gemma3_text",
        **SIZE,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "gpt2": {"model_type": "gpt2", "vocab_size": 259, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
}
# Capped attention logits, which sdpa can't compute.
ATTENTION = {"gemma2": "eager"}


@pytest.fixture(params=FAMILIES)
def llm(request) -> HuggingFaceLLM:
    torch.manual_seed(0)
    return HuggingFaceLLM(config=FAMILIES[request.param], attention=ATTENTION.get(request.param, "sdpa")).eval()


def causal(length: int) -> torch.Tensor:
    return prefix_lm_mask(torch.tensor([0]), torch.tensor([length]), length, bidirectional=False)


@torch.no_grad()
def test_logits_are_the_models_own(llm):
    tokens = torch.randint(259, (1, 12), generator=torch.Generator().manual_seed(1))
    hidden, _ = llm(llm.embed(tokens), causal(12), torch.arange(12)[None])
    torch.testing.assert_close(llm.logits(hidden), llm.network(tokens).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_greedy_text_is_the_models_own(llm):
    tokens = torch.tensor([[5, 17, 200]])
    llm.network.generation_config.eos_token_id = None
    own = llm.network.generate(tokens, max_new_tokens=9, do_sample=False, pad_token_id=0)
    cache, new = llm.new_cache(), tokens
    for _ in range(9):
        seen = tokens.shape[1] - new.shape[1]
        positions = torch.arange(seen, tokens.shape[1])[None]
        hidden, cache = llm(llm.embed(new), causal(tokens.shape[1])[:, :, seen:], positions, cache)
        new = llm.logits(hidden[:, -1:]).argmax(-1)
        tokens = torch.cat([tokens, new], dim=1)
    assert tokens.tolist() == own.tolist()


@torch.no_grad()
def test_padding_and_holes_in_the_cache_change_nothing(llm):
    """Two samples of different length side by side, continued by one step, as `generate` does it."""
    generator = torch.Generator().manual_seed(2)
    embeddings, step = torch.randn(2, 9, 32, generator=generator), torch.randn(2, 1, 32, generator=generator)
    lengths, prefix = torch.tensor([6, 9]), torch.tensor([3, 4])
    cache = llm.new_cache()
    positions = torch.arange(9).expand(2, 9)
    first, cache = llm(embeddings, prefix_lm_mask(prefix, lengths, 9, True), positions, cache)
    cached = torch.cat([lengths_to_mask(lengths, 9), torch.ones(2, 1, dtype=torch.bool)], dim=1)
    second, _ = llm(step, cached[:, None, None], lengths[:, None], cache)
    for i, length in enumerate(lengths.tolist()):
        cache = llm.new_cache()
        mask = prefix_lm_mask(prefix[i : i + 1], lengths[i : i + 1], length, True)
        alone, cache = llm(embeddings[i : i + 1, :length], mask, torch.arange(length)[None], cache)
        torch.testing.assert_close(first[i, :length], alone[0], atol=1e-5, rtol=1e-5)
        last = torch.ones(1, 1, 1, length + 1, dtype=torch.bool)
        alone, _ = llm(step[i : i + 1], last, torch.tensor([[length]]), cache)
        torch.testing.assert_close(second[i], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", [0, 5, 12, 40])
@torch.no_grad()
def test_the_cache_takes_its_room_once(llm, positions):
    """Twelve positions, by seven and then one by one, are those of a cache of transformers, which grows every step."""
    embeddings = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(4))
    caches, places = (llm.new_cache(positions), DynamicCache()), []
    for start, end in [(0, 7), *((i, i + 1) for i in range(7, 12))]:
        mask, numbers = causal(end)[:, :, start:].expand(2, -1, -1, -1), torch.arange(start, end).expand(2, -1)
        ours, theirs = (llm(embeddings[:, start:end], mask, numbers, cache)[0] for cache in caches)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        assert caches[0].get_seq_length() == end
        places.append([(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in caches[0].layers])
    changes = sum(a != b for a, b in pairwise(places))
    assert changes == (0 if positions >= 12 else 1)  # doubled


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_prefix_mask_against_an_explicit_reference(attention, bidirectional):
    """One layer of attention, written out query by query: which keys are seen, and how they are weighted."""
    torch.manual_seed(0)
    llm = HuggingFaceLLM(config={**FAMILIES["llama"], "num_hidden_layers": 1}, attention=attention).eval()
    assert llm.network.config._attn_implementation == attention
    layer = llm.network.model.layers[0]
    seen: dict[str, torch.Tensor] = {}
    layer.self_attn.register_forward_hook(
        lambda _module, _args, kwargs, out: seen.update(out=out[0], **kwargs), with_kwargs=True
    )
    prefix, lengths = torch.tensor([3, 5]), torch.tensor([7, 9])
    mask = prefix_lm_mask(prefix, lengths, 9, bidirectional)
    llm(torch.randn(2, 9, 32), mask, torch.arange(9).expand(2, 9))
    attn, states, (cos, sin) = layer.self_attn, seen["hidden_states"], seen["position_embeddings"]

    def heads(projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (-1, 8)).transpose(1, 2)

    def rotate(x: torch.Tensor) -> torch.Tensor:
        return x * cos[:, None] + torch.cat([-x[..., 4:], x[..., :4]], dim=-1) * sin[:, None]

    q, k = rotate(heads(attn.q_proj(states))), rotate(heads(attn.k_proj(states))).repeat_interleave(2, dim=1)
    v = heads(attn.v_proj(states)).repeat_interleave(2, dim=1)
    for b in range(2):
        p, length = int(prefix[b]), int(lengths[b])
        for i in range(length):
            last = p if bidirectional and i < p else i + 1
            weights = (q[b, :, i : i + 1] @ k[b, :, :last].mT / 8**0.5).softmax(-1)
            expected = attn.o_proj((weights @ v[b, :, :last]).transpose(0, 1).flatten())
            torch.testing.assert_close(seen["out"][b, i], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bidirectional", [True, False])
@torch.no_grad()
def test_what_the_mask_forbids_is_not_seen_and_what_it_allows_is(llm, bidirectional):
    """Each input is changed in turn: exactly the outputs that may see it change (four positions: inside any window)."""
    mask = prefix_lm_mask(torch.tensor([2]), torch.tensor([4]), 4, bidirectional)
    embeddings, positions = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(3)), torch.arange(4)[None]
    before, _ = llm(embeddings, mask, positions)
    for i in range(4):
        changed = embeddings.clone()
        changed[:, i] *= -1
        moved = (llm(changed, mask, positions)[0] - before).abs().amax(-1)[0] > 1e-5
        assert moved.tolist() == mask[0, 0, :, i].tolist()


def save_pretrained(folder: Path, family: str, **special: str) -> str:
    torch.manual_seed(1)
    fields = dict(FAMILIES[family])
    AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields)).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), **special).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@torch.no_grad()
def test_rebuilt_from_plain_values(tmp_path, family):
    source = save_pretrained(tmp_path, family, eos_token="<eos>", bos_token="<sos>", pad_token="<eos>")
    llm = HuggingFaceLLM(source)
    assert llm.tokenizer.pad_id == llm.tokenizer.eos_id != llm.tokenizer.sos_id
    arguments = json.loads(json.dumps(llm.rebuild_args()))
    for file in tmp_path.iterdir():
        file.unlink()
    again = HuggingFaceLLM(**arguments)
    again.load_state_dict(llm.state_dict())
    embeddings = torch.randn(1, 5, 32)
    first, second = (m.eval()(embeddings, causal(5), torch.arange(5)[None])[0] for m in (llm, again))
    assert torch.equal(first, second)
    assert (
        again.tokenizer.encode("Füße") == llm.tokenizer.encode("Füße")
        and again.tokenizer.special == llm.tokenizer.special
    )


def test_special_tokens_where_some_are_missing(tmp_path):
    source = save_pretrained(tmp_path / "a", "llama", eos_token="<eos>")
    tokenizer = HuggingFaceLLM(source).tokenizer
    assert tokenizer.sos_id == tokenizer.eos_id == tokenizer.pad_id == 2
    source = save_pretrained(tmp_path / "b", "llama", bos_token="<sos>")
    with pytest.raises(UserError, match="no eos token"):
        HuggingFaceLLM(source)


def test_a_family_that_is_not_known_well_enough_is_refused(tmp_path):
    folder = tmp_path / "granite"
    config = AutoConfig.for_model("granite", **SIZE, logits_scaling=8.0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token="<eos>").save_pretrained(folder)
    with pytest.raises(UserError, match="granite does more"):
        HuggingFaceLLM(str(folder))


def test_a_family_that_masks_by_itself_is_refused(tmp_path):
    config = AutoConfig.for_model(
        "gpt_neo", vocab_size=259, hidden_size=32, num_layers=1, num_heads=2, attention_types=[[["global"], 1]]
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token="<eos>").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="by itself: no prefix LM"):
        HuggingFaceLLM(str(tmp_path), attention="eager")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"special_tokens": {"eos": "x"}}, "special_tokens: belong to"),
        ({}, "exactly one of source"),
        ({"source": "x", "config": {"model_type": "llama"}}, "exactly one of source"),
        ({"config": {"hidden_size": 32}}, "model_type"),
        ({"config": {**FAMILIES["llama"], "vocab_size": 100}}, "259 tokens, the model only 100"),
        ({"source": "/nowhere/at/all"}, "no such file or folder: /nowhere/at/all"),
        ({"source": "nobody/nothing"}, "nobody/nothing can't be loaded"),
        ({"source": "/nowhere/model.gguf"}, "no such file or folder: /nowhere/model.gguf"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        HuggingFaceLLM(**arguments)


def test_attention_that_a_family_lacks_is_refused():
    with pytest.raises(UserError, match="gemma2 has no sdpa"):
        HuggingFaceLLM(config=FAMILIES["gemma2"])


def test_more_positions_than_the_table_has():
    llm = HuggingFaceLLM(config=FAMILIES["gpt2"])
    with pytest.raises(UserError, match="64 positions"):
        llm(torch.zeros(1, 65, 32), causal(65), torch.arange(65)[None])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_lora_trains_adapters_only(family):
    pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    llm = HuggingFaceLLM(config=FAMILIES[family], lora=LoraSettings(rank=2, alpha=4))
    trained = {name for name, p in llm.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert not any("lm_head" in name for name in trained)
    embeddings = torch.randn(1, 5, 32)
    torch.manual_seed(0)
    plain = HuggingFaceLLM(config=FAMILIES[family]).eval()
    first, second = (m.eval()(embeddings, causal(5), torch.arange(5)[None])[0] for m in (llm, plain))
    torch.testing.assert_close(first, second)  # adapters begin at zero
    first.sum().backward()
    assert all(p.grad is not None for name, p in llm.named_parameters() if name in trained)


def test_a_lora_target_that_matches_nothing_is_an_error():
    pytest.importorskip("peft", reason="peft is not installed")
    with pytest.raises(UserError, match="q_prj matches no"):
        HuggingFaceLLM(config=FAMILIES["llama"], lora=LoraSettings(targets=["v_proj", "q_prj"]))
    with pytest.raises(UserError, match="proj matches no"):
        HuggingFaceLLM(config=FAMILIES["llama"], lora=LoraSettings(targets=["proj"]))
