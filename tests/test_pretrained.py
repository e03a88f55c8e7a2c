"""Pre-trained parts are loaded once, at the start of a training: afterwards the checkpoint is enough."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSpeechSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from lit_spectron.llms import HuggingFaceLLM
from lit_spectron.llms.tokenizer import byte_tokenizer
from lit_spectron.masking import prefix_lm_mask
from tests.test_cli import ROOT, subprocess_call
from tests.tiny import ENCODERS, LLMS

SMOLLM2 = Path.home() / ".cache/lit_spectron/models/SmolLM2-135M-Instruct"


def save_sources(folder: Path) -> tuple[Path, Path]:
    """Tiny stand-ins for downloads: a Whisper and an LLM with its tokenizer, as Hugging Face saves them."""
    torch.manual_seed(0)
    fields = dict(ENCODERS["WhisperEncoder"]["config"])
    whisper = AutoModelForSpeechSeq2Seq.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    whisper.save_pretrained(folder / "whisper")
    fields = dict(LLMS["HuggingFaceLLM"]["config"])
    llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    llm.save_pretrained(folder / "llm")
    PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token="<eos>").save_pretrained(folder / "llm")
    return folder / "whisper", folder / "llm"


@pytest.mark.slow
def test_resuming_and_testing_need_no_source(tmp_path):
    whisper, llm = save_sources(tmp_path / "sources")
    options = {
        "model.encoder.init_args.source": whisper,
        "model.llm.init_args.source": llm,
        "model.statistics_batches": 1,
        "model.generated_utterances": 2,
        "model.generation.max_speech_seconds": 0.2,
        "data.root": "data/sequences",
        "data.train_cuts": "libriheavy_cuts_train.jsonl.gz",
        "data.val_cuts": "libriheavy_cuts_validation.jsonl.gz",
        "data.test_cuts": "libriheavy_cuts_test.jsonl.gz",
        "data.prompt_seconds": 1.5,
        "data.batch_size": 2,
        "trainer.val_check_interval": 2,
        "trainer.limit_val_batches": 1,
        "trainer.accelerator": "cpu",
        "trainer.logger.init_args.save_dir": tmp_path / "runs",
    }
    common = [part for key, value in options.items() for part in (f"--{key}", value)]
    config = ["--config", "conf/smollm2_whisper.yaml", *common]
    done = subprocess_call(["fit", *config, "--trainer.max_steps", 2])
    assert done.returncode == 0, done.stderr[-2000:]
    run = tmp_path / "runs/smollm2_whisper/version_0"
    last = run / "checkpoints/last.ckpt"
    trained = torch.load(last, weights_only=True)["state_dict"]
    # The encoder is frozen by this config: it is still the one that was loaded.
    loaded = AutoModelForSpeechSeq2Seq.from_pretrained(whisper).model.encoder.conv1.weight
    assert torch.equal(trained["model.encoder.encoder.conv1.weight"], loaded)

    shutil.rmtree(tmp_path / "sources")
    gone = subprocess_call(["fit", *config, "--trainer.max_steps", 3])
    assert gone.returncode == 2 and f"no such file or folder: {llm}" in gone.stderr.strip().splitlines()[-1]
    done = subprocess_call(["fit", *config, "--trainer.max_steps", 3, "--ckpt_path", last])
    assert done.returncode == 0, done.stderr[-2000:]
    resumed = tmp_path / "runs/smollm2_whisper/version_1"
    saved = yaml.safe_load((resumed / "config.yaml").read_text(encoding="utf-8"))
    assert saved["model"]["encoder"]["init_args"]["source"] == str(whisper)
    assert torch.load(resumed / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    done = subprocess_call(["test", *config, "--trainer.limit_test_batches", 1, "--ckpt_path", last])
    assert done.returncode == 0 and (run / "report.json").is_file(), done.stderr[-2000:]
    prompts = sorted((ROOT / "data/sequences/prompts").iterdir())[:1]
    done = subprocess_call(["generate", "--ckpt", last, "--out", tmp_path / "out", *prompts])
    assert done.returncode == 0 and len(list((tmp_path / "out").iterdir())) == 4, done.stderr[-2000:]


def write_gguf(path: Path, model: LlamaForCausalLM) -> None:
    """A Llama with a byte-level tokenizer as llama.cpp lays it out (query and key rows interleaved for its rotary)."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    # The last one is what transformers gives every such tokenizer as its unknown token.
    words = {**byte_tokenizer().get_vocab(), "<|endoftext|>": 259}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(words, key=words.get))
    writer.add_token_types([3] * 3 + [1] * 256 + [3])
    writer.add_token_scores([0.0] * 260)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "model.layers": "blk",
    }
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        for projection, count in heads.items():
            if projection in name:
                tensor = tensor.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)
        for old, new in names.items():
            name = name.replace(old, new)
        writer.add_tensor(name, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
def test_a_gguf_file_is_the_model_it_was_made_from(tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=260,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
        )
    ).eval()
    write_gguf(tmp_path / "model.gguf", model)
    llm = HuggingFaceLLM(str(tmp_path / "model.gguf")).eval()
    assert llm.tokenizer.decode(llm.tokenizer.encode("seven ships")) == "seven ships"
    tokens = torch.tensor([llm.tokenizer.encode("seven ships")])
    length = tokens.shape[1]
    mask = prefix_lm_mask(torch.tensor([0]), torch.tensor([length]), length, bidirectional=False)
    hidden, _ = llm(llm.embed(tokens), mask, torch.arange(length)[None])
    torch.testing.assert_close(llm.logits(hidden), model(tokens).logits, atol=1e-4, rtol=1e-4)
    again = HuggingFaceLLM(**llm.rebuild_args())
    again.load_state_dict(llm.state_dict())


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason=f"no SmolLM2 at {SMOLLM2}")
@torch.no_grad()
def test_smollm2_is_not_damaged_by_the_wrapping():
    """Logits to 1e-4 and the same greedy text as Hugging Face's own, without any speech."""
    llm = HuggingFaceLLM(str(SMOLLM2)).eval()
    own = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32).eval()
    tokens = torch.tensor([llm.tokenizer.encode("The ship left the harbour at dawn, and the captain")])
    length = tokens.shape[1]
    mask = prefix_lm_mask(torch.tensor([0]), torch.tensor([length]), length, bidirectional=False)
    hidden, _ = llm(llm.embed(tokens), mask, torch.arange(length)[None])
    torch.testing.assert_close(llm.logits(hidden), own(tokens).logits, atol=1e-4, rtol=1e-4)
    wanted = own.generate(tokens, max_new_tokens=24, do_sample=False)
    cache, new, found = llm.new_cache(), tokens, tokens
    while found.shape[1] < wanted.shape[1]:
        seen = found.shape[1] - new.shape[1]
        mask = prefix_lm_mask(torch.tensor([0]), torch.tensor([found.shape[1]]), found.shape[1], bidirectional=False)
        positions = torch.arange(seen, found.shape[1])[None]
        hidden, cache = llm(llm.embed(new), mask[:, :, seen:], positions, cache)
        new = llm.logits(hidden[:, -1:]).argmax(-1)
        found = torch.cat([found, new], dim=1)
    assert found.tolist() == wanted.tolist()
