import json
import os
import pickle
import re
from dataclasses import asdict, is_dataclass
from pathlib import Path

import jsonargparse
import numpy as np
import pytest
import torch
import yaml
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WavLMConfig,
    WavLMForXVector,
)

import lit_spectron.evaluators
from lit_spectron.errors import UserError
from lit_spectron.evaluators import (
    CausalLMAnswerer,
    CausalLMScorer,
    DistillMosPredictor,
    DnsmosPredictor,
    EcapaEmbedder,
    Evaluator,
    HuggingFaceRecognizer,
    ResemblyzerEmbedder,
    Transcript,
    WavLMEmbedder,
    WhisperRecognizer,
)
from lit_spectron.evaluators.base import QUIETEST_SPEECH_DB, is_endless, loudest_frame_db, resample
from lit_spectron.llms.tokenizer import byte_tokenizer
from tests.discovery import implementations
from tests.judges import LengthRecognizer, MomentEmbedder
from tests.tiny import ENCODERS

ROOT = Path(__file__).parents[1]
IMPLEMENTATIONS = implementations(lit_spectron.evaluators, Evaluator)
FROM_THE_HUB = [
    CausalLMAnswerer,
    CausalLMScorer,
    EcapaEmbedder,
    HuggingFaceRecognizer,
    WavLMEmbedder,
    WhisperRecognizer,
]


def test_levels():
    tone = np.sin(2 * np.pi * 220 * np.arange(16000) / 16000).astype(np.float32)
    assert loudest_frame_db(tone, 16000) == pytest.approx(10 * np.log10(0.5), abs=0.1)
    assert loudest_frame_db(np.concatenate([np.zeros(32000, np.float32), 0.01 * tone]), 16000) > QUIETEST_SPEECH_DB
    for silence in (np.zeros(16000, np.float32), 0.001 * tone, np.zeros(0, np.float32)):
        assert loudest_frame_db(silence, 16000) < QUIETEST_SPEECH_DB


def test_what_can_not_be_said_in_the_time():
    assert is_endless("in the latest " * 21, 2.0) and is_endless("one two three four", 0.1)
    assert not is_endless("he spoke as fast as anyone could follow", 2.0)


def test_gates():
    """What is silent is not listened to; what is endless is heard and dropped; everything keeps its place."""
    tone = np.sin(np.arange(16000) * 0.1).astype(np.float32)
    waveforms = [tone[:8000], np.zeros(4000, np.float32), tone[:400], tone]
    texts = ((8000, "hello"), (400, "on and on and on"), (16000, "world"))
    heard = LengthRecognizer(texts).transcribe(waveforms, 16000)
    assert [(t.text, t.gate) for t in heard] == [("hello", None), ("", "silence"), ("", "endless"), ("world", None)]
    assert LengthRecognizer(texts).transcribe(waveforms[1:2], 16000)[0].gate == "silence"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda c: c.__name__)
def test_contract(implementation: type[Evaluator]):
    """Arguments alone make an evaluator: cheap to make, to send to another process, to compare."""
    one, other = implementation(), implementation()
    assert one == other and hash(one) == hash(other) and pickle.loads(pickle.dumps(one)) == one
    assert implementation.__name__ in one.name and is_dataclass(one) and not isinstance(one, nn.Module)
    assert {type(value) for value in vars(one).values()} <= {str, int, bool, type(None)}


@pytest.mark.parametrize("path", sorted((ROOT / "conf/evaluator").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_parses(path: Path):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--evaluator", type=Evaluator, sub_configs=True)
    evaluator = parser.instantiate(parser.parse_args([f"--evaluator={path}"])).evaluator
    written = yaml.safe_load(path.read_text(encoding="utf-8"))["init_args"]
    # Every argument is in the file, for its user to see.
    assert written == asdict(evaluator) and evaluator == type(evaluator)()


def test_every_implementation_has_a_config():
    paths = (ROOT / "conf/evaluator").glob("*.yaml")
    names = {yaml.safe_load(path.read_text(encoding="utf-8"))["class_path"].rsplit(".", 1)[1] for path in paths}
    assert names == {implementation.__name__ for implementation in IMPLEMENTATIONS}


@pytest.mark.parametrize("implementation", FROM_THE_HUB, ids=lambda c: c.__name__)
def test_what_can_not_be_had_is_one_line(implementation, tmp_path):
    if implementation is EcapaEmbedder:
        pytest.importorskip("speechbrain")
    key = f"{implementation.__name__}.source"
    (tmp_path / "empty").mkdir()
    for source in ("nobody/nothing", str(tmp_path / "nowhere"), str(tmp_path / "empty")):
        evaluator = implementation(source=source)
        for attempt in (evaluator.require, lambda e=evaluator: e.loaded("cpu")):
            with pytest.raises(UserError, match=rf"^{key}: .*{source}.*$") as caught:
                attempt()
            assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=rf"hf download nobody/nothing.* set {key} to its folder"):
        implementation(source="nobody/nothing").require()


def test_a_package_that_is_missing_is_one_line(monkeypatch):
    monkeypatch.setattr(DnsmosPredictor, "package", "no-such-package")
    with pytest.raises(UserError, match=r"DnsmosPredictor: no package no-such-package: pip install .*evaluation"):
        DnsmosPredictor().require()


def test_code_in_weights_is_not_run(tmp_path):
    pytest.importorskip("speechbrain")

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"weight": Trap()}, tmp_path / "embedding_model.ckpt")
    with pytest.raises(UserError, match="no weights of this network"):
        EcapaEmbedder(str(tmp_path)).loaded("cpu")
    assert not (tmp_path / "sprung").exists()


def save_language_model(folder: Path, **special: str) -> None:
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=259, n_positions=64, n_embd=16, n_layer=2, n_head=2)).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), **special).save_pretrained(folder)


@pytest.mark.parametrize("bos", [True, False])
def test_text_scores_are_hugging_faces_loss(tmp_path, bos):
    save_language_model(tmp_path, eos_token="<eos>", **({"bos_token": "<sos>"} if bos else {}))
    model = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    texts = ["Hello there.", "x", ""]
    scores = CausalLMScorer(str(tmp_path)).score(texts)
    tokenizer = byte_tokenizer()
    for text, score in zip(texts, scores, strict=True):
        ids = [tokenizer.token_to_id("<sos>")] * bos + tokenizer.encode(text).ids
        assert score.tokens == max(0, len(ids) - 1)
        if score.tokens:
            tokens = torch.tensor([ids])
            assert score.nats / score.tokens == pytest.approx(model(tokens, labels=tokens).loss.item(), abs=1e-5)


def test_the_version_is_that_of_the_weights(tmp_path):
    for number in range(2):
        save_language_model(tmp_path / str(number))
    save_language_model(tmp_path / "2", bos_token="<sos>")
    torch.manual_seed(1)
    GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=16, n_layer=2, n_head=2)).save_pretrained(tmp_path / "3")
    versions = [CausalLMScorer(str(tmp_path / str(number))).version for number in range(4)]
    assert versions[0] == versions[1] == versions[2] != versions[3]
    assert re.fullmatch(r"transformers [\d.]+, weights [0-9a-f]{12}", versions[0])


def test_another_recogniser(tmp_path):
    """A random Wav2Vec2 writes what its likeliest letters are."""
    torch.manual_seed(0)
    letters = {letter: i for i, letter in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghij"])}
    (tmp_path / "vocab.json").write_text(json.dumps(letters))
    Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    config = {**ENCODERS["Wav2Vec2Encoder"]["config"], "vocab_size": len(letters)}
    config.pop("model_type")
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**config, hidden_act="gelu", initializer_range=1.0)).eval()
    model.save_pretrained(tmp_path)
    waveform = torch.randn(8000).numpy() * 0.1
    heard = HuggingFaceRecognizer(str(tmp_path)).recognize([waveform], 16000, "cpu")
    inputs = Wav2Vec2FeatureExtractor()(waveform, sampling_rate=16000, return_tensors="pt").input_values
    ids = model(inputs).logits.argmax(-1)[0].unique_consecutive().tolist()
    names = {i: letter for letter, i in letters.items()}
    expected = "".join(" " if names[i] == "|" else names[i] for i in ids if i != 0)
    assert heard == [Transcript(expected.replace("<s>", "").replace("</s>", "").replace("<unk>", "").strip())]


def speech(samples: int = 24000) -> np.ndarray:
    generator = torch.Generator().manual_seed(samples)
    return (0.1 * torch.randn(samples, generator=generator)).cumsum(0).sin().mul(0.5).numpy()


def test_ecapa_is_speechbrains(tmp_path):
    pytest.importorskip("speechbrain")
    embedder = EcapaEmbedder(str(tmp_path), channels=16)
    from speechbrain.inference.classifiers import EncoderClassifier
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    network = ECAPA_TDNN(80, channels=[16] * 4 + [48], attention_channels=128, lin_neurons=192)
    torch.save(network.state_dict(), tmp_path / "embedding_model.ckpt")
    (tmp_path / "label_encoder.txt").write_text("")
    (tmp_path / "hyperparams.yaml").write_text(
        f"""
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: 80
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: 80
    channels: [16, 16, 16, 16, 48]
    attention_channels: 128
    lin_neurons: 192
classifier: !new:torch.nn.Identity
modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    classifier: !ref <classifier>
label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
    paths:
        embedding_model: {tmp_path}/embedding_model.ckpt
""",
        encoding="utf-8",
    )
    published = EncoderClassifier.from_hparams(str(tmp_path), savedir=str(tmp_path / "saved"))
    for ours, waveform in zip(embedder.embed([speech(), speech(9000)], 16000), (speech(), speech(9000)), strict=True):
        theirs = published.encode_batch(torch.from_numpy(waveform)[None])[0, 0]
        assert float(ours @ theirs / theirs.norm()) == pytest.approx(1, abs=1e-4)


def test_wavlm_is_transformers(tmp_path):
    config = {**ENCODERS["Wav2Vec2Encoder"]["config"], "tdnn_dim": [8, 8], "tdnn_kernel": [3, 1]}
    config |= {"tdnn_dilation": [1, 1], "xvector_output_dim": 8}
    config.pop("model_type")
    model = WavLMForXVector(WavLMConfig(**config)).eval()
    model.save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    (ours,) = WavLMEmbedder(str(tmp_path)).embed([speech()], 16000)
    inputs = Wav2Vec2FeatureExtractor()(speech(), sampling_rate=16000, return_tensors="pt").input_values
    theirs = model(inputs).embeddings[0]
    torch.testing.assert_close(ours, theirs / theirs.norm(), atol=1e-5, rtol=0)
    with pytest.raises(RuntimeError):  # shorter than the network looks
        WavLMEmbedder(str(tmp_path)).embed([speech(100)], 16000)


def test_resemblyzer_is_its_own():
    encoder = pytest.importorskip("resemblyzer").VoiceEncoder("cpu", verbose=False)
    one, other = speech(), speech(30000)
    ours = ResemblyzerEmbedder().embed([one, other], 16000)
    a, b = encoder.embed_utterance(one), encoder.embed_utterance(other)
    assert float(ours[0] @ ours[1]) == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)


def test_dnsmos_is_speechmos():
    dnsmos = pytest.importorskip("speechmos.dnsmos")
    found = DnsmosPredictor("p808_mos").predict([speech()], 16000)
    assert found[0] == pytest.approx(dnsmos.run(speech(), 16000)["p808_mos"], abs=1e-5) and type(found[0]) is float
    with pytest.raises(ValueError, match="empty"):
        DnsmosPredictor().predict([speech(0)], 16000)


def test_distill_mos_is_its_own(capfd):
    network = pytest.importorskip("distillmos").ConvTransformerSQAModel().eval()
    capfd.readouterr()
    waveforms = [speech(), speech(30000), speech(9 * 16000)]  # padded to 7.7 s by the package, and more than those
    with torch.no_grad():
        expected = [network(torch.from_numpy(waveform)[None]).item() for waveform in waveforms]
    found = DistillMosPredictor().predict(waveforms, 16000)
    assert found == pytest.approx(expected, abs=1e-5) and type(found[0]) is float
    assert capfd.readouterr().out == ""
    with pytest.raises(ValueError, match="empty"):
        DistillMosPredictor().predict([speech(0)], 16000)


def test_resampling():
    pytest.importorskip("soxr")
    time = np.arange(48000) / 24000
    tone, expected = np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * 440 * np.arange(32000) / 16000)
    found = resample(tone.astype(np.float32), 24000, 16000)
    assert found.dtype == np.float32 and abs(found - expected)[500:-500].max() < 1e-3
    assert resample(tone, 16000, 16000) is tone


def test_an_embedding_without_direction_is_none():
    with pytest.raises(ValueError, match="direction"):
        MomentEmbedder().embed([np.full(9, np.nan, np.float32)], 16000)
