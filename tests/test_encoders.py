"""Every encoder of the package keeps the slot's promises; then each against Hugging Face's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSpeechSeq2Seq,
    GenerationConfig,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
    WhisperTokenizer,
)

from lit_spectron import encoders
from lit_spectron.audio import AudioSpec, SpecAugment
from lit_spectron.encoders import (
    SpeechEncoder,
    Wav2Vec2BertEncoder,
    Wav2Vec2Encoder,
    WhisperEncoder,
    WhisperTranscriptEncoder,
)
from lit_spectron.encoders.whisper import search_settings
from lit_spectron.errors import UserError
from lit_spectron.masking import lengths_to_mask
from lit_spectron.model import SpectronModel
from lit_spectron.word_errors import count_errors, words
from tests.discovery import implementations
from tests.tiny import ENCODERS

ENCODER_CLASSES = implementations(encoders, SpeechEncoder)
LAYERED = [c for c in ENCODER_CLASSES if "config" in ENCODERS.get(c.__name__, {})]
SHARED = Path(__file__).parents[2] / "shared"
every_encoder = pytest.mark.parametrize("cls", ENCODER_CLASSES, ids=lambda c: c.__name__)


def build(cls: type[SpeechEncoder], audio: AudioSpec, **changes) -> SpeechEncoder:
    torch.manual_seed(0)
    return cls(audio, **{**ENCODERS[cls.__name__], **changes}).eval()


def noise(audio: AudioSpec, *seconds: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise that falls silent at each length, (B, T), and the lengths."""
    lengths = torch.tensor([audio.seconds_to_samples(s) for s in seconds])
    waveform = torch.randn(len(seconds), int(lengths.max()), generator=torch.Generator().manual_seed(1)) * 0.1
    return waveform * lengths_to_mask(lengths, waveform.shape[1]), lengths


def variants(cls: type[SpeechEncoder]) -> list[dict]:
    found: list[dict] = [{}]
    if cls in LAYERED and cls is not WhisperTranscriptEncoder:
        found += [{"layer": layer} for layer in (1, "weighted")]
    if cls is Wav2Vec2Encoder:
        config = ENCODERS[cls.__name__]["config"]
        found += [
            {"config": {**config, "model_type": family, "feat_extract_norm": norm, "do_stable_layer_norm": stable}}
            for family in ("wav2vec2", "hubert", "wavlm")
            for norm, stable in (("group", False), ("layer", True))
        ]
        found.append({"normalize_waveform": True})
    return found


every_variant = pytest.mark.parametrize(
    ("cls", "changes"),
    [(c, v) for c in ENCODER_CLASSES for v in variants(c)],
    ids=lambda v: getattr(v, "__name__", None),
)


@every_variant
@torch.no_grad()
def test_shapes_rate_and_padding(cls, changes, audio: AudioSpec):
    encoder = build(cls, audio, **changes)
    waveform, lengths = noise(audio, 0.5, 1.27, 0.9)
    features, feature_lengths = encoder(waveform, lengths)
    assert features.shape == (3, int(feature_lengths.max()), encoder.output_dim) and features.isfinite().all()
    assert encoder.sample_rate_hz == audio.sample_rate_hz
    expected = lengths / encoder.sample_rate_hz * encoder.frames_per_second
    if cls is WhisperTranscriptEncoder:  # as many as there are tokens, and two
        assert (feature_lengths >= 2).all() and (feature_lengths <= expected + 3).all()
    else:
        assert ((feature_lengths - expected).abs() <= 1.5).all()
    for i, n in enumerate(feature_lengths.tolist()):
        alone, length = encoder(waveform[i : i + 1, : lengths[i]], lengths[i : i + 1])
        assert int(length) == n == alone.shape[1]
        torch.testing.assert_close(features[i, :n], alone[0], atol=2e-5, rtol=1e-4)


@every_variant
def test_every_parameter_learns(cls, changes, audio: AudioSpec):
    encoder = build(cls, audio, **changes).train()
    features, _ = encoder(*noise(audio, 0.8, 1.0))
    (features * torch.randn(features.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    trained = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    # A key's bias adds the same to every score of a query: softmax forgets it.
    still = [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
    assert [name for name in still if "k_proj.bias" not in name and "linear_k.bias" not in name] == []


@every_variant
@torch.no_grad()
def test_rebuilt_from_plain_values(cls, changes, audio: AudioSpec):
    arguments = {**ENCODERS[cls.__name__], **changes}
    encoder = build(cls, audio, **changes)
    again = cls(audio, **{**arguments, **json.loads(json.dumps(encoder.rebuild_args()))}).eval()
    again.load_state_dict(encoder.state_dict())
    batch = noise(audio, 0.8, 1.0)
    assert torch.equal(encoder(*batch)[0], again(*batch)[0])


@pytest.mark.parametrize(
    ("cls", "changes"),
    [(c, v) for c in (Wav2Vec2Encoder, Wav2Vec2BertEncoder) for v in variants(c) if "layer" not in v],
)
@torch.no_grad()
def test_layers_are_those_of_hugging_face(cls, changes, audio: AudioSpec):
    """The n-th layer is `hidden_states[n]`; a weighted sum that weights one layer only is that layer."""
    batch = noise(audio, 1.0)
    whole, weighted = build(cls, audio, **changes), build(cls, audio, **changes, layer="weighted")
    if cls is Wav2Vec2Encoder:
        inputs = batch[0] if not changes.get("normalize_waveform") else (batch[0] - batch[0].mean()) / batch[0].std()
    else:
        features, _ = whole.filter_bank(*batch)
        inputs = features[:, : features.shape[1] // 2 * 2].unflatten(1, (-1, 2)).flatten(2)
    states = whole.model(inputs, output_hidden_states=True).hidden_states
    for n in (1, 2):
        single = build(cls, audio, **changes, layer=n)
        torch.testing.assert_close(single(*batch)[0], states[n], atol=1e-4, rtol=1e-4)
        weighted.choice.weights[:] = -100.0
        weighted.choice.weights[n] = 100.0
        torch.testing.assert_close(weighted(*batch)[0], states[n], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cls", LAYERED, ids=lambda c: c.__name__)
def test_what_is_loaded_and_what_is_rebuilt_learn_the_same(cls, audio: AudioSpec, tmp_path):
    fields = dict(ENCODERS[cls.__name__]["config"])
    auto_class = AutoModelForSpeechSeq2Seq if cls.__name__.startswith("Whisper") else AutoModel
    auto_class.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields)).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    loaded = cls(audio, source=str(tmp_path))
    rebuilt = cls(audio, **loaded.rebuild_args())
    trained = [{n for n, p in encoder.named_parameters() if p.requires_grad} for encoder in (loaded, rebuilt)]
    assert trained[0] == trained[1]


@pytest.mark.parametrize("cls", LAYERED, ids=lambda c: c.__name__)
def test_mistakes_are_named(cls, audio: AudioSpec):
    for layer in (3, 0) if {"layer": 1} in variants(cls) else ():
        with pytest.raises(UserError, match="1 to 2"):
            build(cls, audio, layer=layer)
    with pytest.raises(UserError, match="no such file or folder: /nowhere"):
        cls(audio, source="/nowhere")
    with pytest.raises(UserError, match="exactly one of source"):
        cls(audio, source="x", config={})
    with pytest.raises(UserError, match=r"model\.encoder"):
        cls(audio, config={"model_type": "gpt2", "vocab_size": 4, "n_embd": 8, "n_layer": 1, "n_head": 2})
    with pytest.raises(UserError, match=r"model\.encoder\.config: .*heads"):
        cls(audio, config={"model_type": "llama", "hidden_size": 8, "num_attention_heads": 3})


def test_another_sampling_rate_is_refused(tiny_model):
    with pytest.raises(UserError, match=r"takes 16000 Hz, but model\.audio\.sample_rate_hz is 24000"):
        spec = AudioSpec(sample_rate_hz=24000)
        SpectronModel(spec, lambda a: build(WhisperEncoder, a), tiny_model().llm, lambda *_: tiny_model().decoder)


@pytest.mark.parametrize(
    "cls", [WhisperEncoder, WhisperTranscriptEncoder, Wav2Vec2BertEncoder], ids=lambda c: c.__name__
)
def test_spec_augment_masks_while_training_only(cls, audio: AudioSpec):
    encoder, plain = build(cls, audio, spec_augment=SpecAugment(2, 20, 2, 0.2)), build(cls, audio)
    batch = noise(audio, 1.0)
    assert torch.equal(encoder(*batch)[0], plain(*batch)[0])
    encoder.spec_augment.train()
    assert not torch.allclose(encoder(*batch)[0], plain(*batch)[0])


def test_whisper_hears_thirty_seconds_at_most(audio: AudioSpec):
    encoder = build(WhisperEncoder, audio)
    assert encoder(*noise(audio, 30.0))[0].shape[1] == 1500
    with pytest.raises(UserError, match="30 s"):
        encoder(*noise(audio, 30.1))


def real_speech(seconds: float) -> np.ndarray:
    path = min((Path(__file__).parents[1] / "data/sequences/small").rglob("*.opus"))
    samples, _ = soundfile.read(path, frames=int(16000 * seconds), dtype="float32")
    return samples


@torch.no_grad()
def test_whisper_is_hugging_faces_on_thirty_seconds(audio: AudioSpec, tmp_path):
    fields = dict(ENCODERS["WhisperEncoder"]["config"])
    whisper = AutoModelForSpeechSeq2Seq.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields)).eval()
    whisper.save_pretrained(tmp_path)
    compare_whisper(whisper, str(tmp_path), audio)


@torch.no_grad()
def test_transcripts_are_those_of_hugging_face(audio: AudioSpec, tmp_path):
    """Of 30 s: the same tokens as its `generate`, and the states that its decoder has before each of them."""
    fields = dict(ENCODERS["WhisperTranscriptEncoder"]["config"])
    whisper = AutoModelForSpeechSeq2Seq.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields)).eval()
    whisper.generation_config.update(begin_suppress_tokens=[2, 5], suppress_tokens=[7], no_timestamps_token_id=3)
    whisper.save_pretrained(tmp_path)
    compare_transcripts(whisper, str(tmp_path), audio)


@pytest.mark.skipif(not (SHARED / "models/whisper-tiny.en").is_dir(), reason="no Whisper weights in ../shared")
@torch.no_grad()
def test_pretrained_transcripts_are_those_of_hugging_face(audio: AudioSpec):
    source = str(SHARED / "models/whisper-tiny.en")
    whisper = AutoModelForSpeechSeq2Seq.from_pretrained(source, dtype=torch.float32).eval()
    tokens = compare_transcripts(whisper, source, audio)[0, 2:]
    encoder, speech = WhisperTranscriptEncoder(audio, source).eval(), torch.from_numpy(real_speech(3.0))[None]
    features, _ = encoder(speech, torch.tensor([48000]))
    probabilities, read = encoder.read(features)
    text = "".join(encoder.vocabulary[token] for token in read[0, 1:, 0].tolist())
    assert not probabilities[0, 0].any() and torch.allclose(probabilities[0, 1:].sum(1), torch.ones(1))
    wanted = words(WhisperTokenizer.from_pretrained(source).decode(tokens))[: len(words(text))]
    assert len(wanted) > 3 and count_errors(wanted, words(text)) <= 2


def test_a_multilingual_whisper_is_told_the_language():
    settings = GenerationConfig(
        decoder_start_token_id=1,
        eos_token_id=2,
        no_timestamps_token_id=9,
        lang_to_id={"<|en|>": 5, "<|de|>": 6},
        task_to_id={"transcribe": 7, "translate": 8},
    )
    wanted = {"start": [1, 6, 7, 9], "end": 2, "never": [], "not_first": []}
    assert search_settings(settings, "de") == wanted
    for language, message in ((None, "name one"), ("xx", "knows no xx")):
        with pytest.raises(UserError, match=rf"model\.encoder\.language: .*{message}"):
            search_settings(settings, language)
    with pytest.raises(UserError, match="knows no en"):
        search_settings(GenerationConfig(decoder_start_token_id=1, eos_token_id=2), "en")


def compare_transcripts(whisper, source: str, audio: AudioSpec) -> torch.Tensor:
    """Asserts equality; returns the tokens."""
    encoder = WhisperTranscriptEncoder(audio, source, tokens_per_second=0.8).eval()
    speech = np.resize(real_speech(10.0), 480000)
    heard = torch.from_numpy(WhisperFeatureExtractor()(speech, sampling_rate=16000)["input_features"])
    wanted = whisper.generate(heard, max_new_tokens=24, num_beams=1, return_timestamps=False)[0]
    features, lengths = encoder(torch.from_numpy(speech)[None], torch.tensor([480000]))
    start = encoder.search["start"]
    tokens = torch.cat([torch.tensor(start), wanted[wanted != encoder.search["end"]]])[None]
    states = whisper.model(heard, decoder_input_ids=tokens)
    torch.testing.assert_close(features[0, 0], states.encoder_last_hidden_state[0].mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features[0, 1:], states.last_hidden_state[0, len(start) - 1 :], atol=1e-4, rtol=1e-4)
    assert lengths.tolist() == [tokens.shape[1] - len(start) + 2]
    return tokens


def compare_whisper(whisper, source: str, audio: AudioSpec) -> tuple[float, float]:
    """Asserts equality on 30 s; returns the mean and the 5 % quantile of the cosines of 3 s with the same in 30 s."""
    encoder, extractor = WhisperEncoder(audio, source).eval(), WhisperFeatureExtractor()
    long = np.resize(real_speech(10.0), 480000)
    wanted = whisper.model.encoder(torch.from_numpy(extractor(long, sampling_rate=16000)["input_features"]))
    ours, _ = encoder(torch.from_numpy(long)[None], torch.tensor([480000]))
    torch.testing.assert_close(ours, wanted.last_hidden_state, atol=1e-4, rtol=1e-4)
    short = long[:48000]
    wanted = whisper.model.encoder(torch.from_numpy(extractor(short, sampling_rate=16000)["input_features"]))
    ours, _ = encoder(torch.from_numpy(short)[None], torch.tensor([48000]))
    cosine = torch.cosine_similarity(ours, wanted.last_hidden_state[:, :150], dim=-1)
    return float(cosine.mean()), float(cosine.quantile(0.05))


@pytest.mark.skipif(not (SHARED / "models/whisper-tiny.en").is_dir(), reason="no Whisper weights in ../shared")
@torch.no_grad()
def test_whispers_short_features_are_close_to_the_padded_ones(audio: AudioSpec):
    source = str(SHARED / "models/whisper-tiny.en")
    whisper = AutoModelForSpeechSeq2Seq.from_pretrained(source, dtype=torch.float32).eval()
    mean, low = compare_whisper(whisper, source, audio)
    assert mean > 0.95 and low > 0.85


@torch.no_grad()
def test_w2v_bert_is_hugging_faces(audio: AudioSpec):
    encoder, extractor = build(Wav2Vec2BertEncoder, audio), SeamlessM4TFeatureExtractor()
    for samples in (32000, 32160):  # an odd number of frames and an even one
        speech = real_speech(3.0)[:samples]
        inputs = extractor(speech, sampling_rate=16000, return_tensors="pt")
        wanted = encoder.model(**inputs).last_hidden_state[:, : int(inputs["attention_mask"].sum())]
        ours, _ = encoder(torch.from_numpy(speech)[None], torch.tensor([samples]))
        torch.testing.assert_close(ours, wanted, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_wav2vec2_is_hugging_faces_with_its_preprocessor(audio: AudioSpec, tmp_path):
    fields = dict(ENCODERS["Wav2Vec2Encoder"]["config"])
    model = AutoModel.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields)).eval()
    model.save_pretrained(tmp_path)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    extractor.save_pretrained(tmp_path)
    encoder = Wav2Vec2Encoder(audio, str(tmp_path)).eval()
    speech = real_speech(2.0)
    wanted = model(**extractor(speech, sampling_rate=16000, return_tensors="pt")).last_hidden_state
    ours, _ = encoder(torch.from_numpy(speech)[None], torch.tensor([len(speech)]))
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)
