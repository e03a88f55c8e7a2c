"""On real speech, metrics are what an independent computation gives."""

from pathlib import Path
from types import SimpleNamespace

import jiwer
import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from callbacks import (
    Evidence,
    GenerationHealth,
    LogPerplexity,
    MeanOpinionScore,
    References,
    SpeakerSimilarity,
    WordErrorRate,
)
from datamodules import LibriLightDataModule
from datamodules.cuts import read_cuts
from lit_spectron.audio import AudioSpec, LogMelSpectrogram
from lit_spectron.audio_files import read_audio
from lit_spectron.evaluators import (
    CausalLMScorer,
    DistillMosPredictor,
    DnsmosPredictor,
    ResemblyzerEmbedder,
    WhisperRecognizer,
)
from lit_spectron.llms.tokenizer import byte_tokenizer
from lit_spectron.types import Generation, SpeechBatch
from lit_spectron.vocoders import GriffinLim
from lit_spectron.word_errors import words
from tests.judges import Playback
from tests.test_datamodules import with_model

ROOT = Path(__file__).parents[2] / "shared" / "data" / "librilight_mini"
WHISPER = Path(__file__).parents[2] / "shared" / "models" / "whisper-tiny.en"
pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason=f"no real speech at {ROOT}")
needs_whisper = pytest.mark.skipif(not WHISPER.is_dir(), reason=f"no recogniser at {WHISPER}")
PROMPT, END = 3 * 16000, 7 * 16000


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    """Three readers go on as they really did, and are taken to have written what they said."""
    audio = AudioSpec()
    cuts = read_cuts(ROOT / "libriheavy_cuts_small.jsonl.gz", ROOT, "download/librilight", 0)
    cuts = [cut for cut in cuts if 8 < cut.duration_seconds < 12][:3]
    waveforms = [torch.from_numpy(read_audio(cut.path, 16000)[:END]) for cut in cuts]
    texts = [" ".join(cut.text.split()[: round(7 / cut.duration_seconds * len(cut.text.split()))]) for cut in cuts]
    length = torch.tensor([END] * 3)
    continuations = torch.stack(waveforms)[:, PROMPT:]
    log_mel, frames = LogMelSpectrogram(audio)(continuations, length - PROMPT)
    batch = SpeechBatch(
        split="test",
        waveform=torch.stack(waveforms),
        lengths=length,
        prompt_samples=torch.tensor([PROMPT] * 3),
        tokens=torch.zeros(3, 0),
        token_lengths=torch.zeros(3),
        ids=[cut.id for cut in cuts],
        speakers=[cut.speaker for cut in cuts],
        text=texts,
        prompt_text=[None] * 3,
    )
    level = torch.full((3,), -60.0)
    generation = Generation(texts, ["eos"] * 3, log_mel, frames, ["stop"] * 3, level)
    return Evidence(batch, generation, Playback(audio, continuations))


def transcripts(waveforms: list[np.ndarray]) -> list[str]:
    """By Whisper's own interface, one after the other."""
    model = WhisperForConditionalGeneration.from_pretrained(WHISPER, dtype=torch.float32).eval()
    features, tokenizer = WhisperFeatureExtractor.from_pretrained(WHISPER), WhisperTokenizer.from_pretrained(WHISPER)
    heard = []
    for waveform in waveforms:
        inputs = features(waveform, sampling_rate=16000, return_tensors="pt").input_features
        heard.append(tokenizer.decode(model.generate(inputs)[0], skip_special_tokens=True))
    return heard


@pytest.mark.slow
@needs_whisper
def test_word_errors_and_perplexity(evidence, tmp_path):
    torch.manual_seed(0)
    lm = GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=16, n_layer=2, n_head=2)).eval()
    lm.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), bos_token="<sos>").save_pretrained(tmp_path)
    recognizer = WhisperRecognizer(str(WHISPER), batch_size=2)
    speech, perplexity = WordErrorRate(recognizer), LogPerplexity(recognizer, CausalLMScorer(str(tmp_path)))
    speech.update(evidence)
    perplexity.update(evidence)

    prompts, heard = transcripts(evidence.prompts), transcripts(evidence.continuations)
    prompt_errors = errors = prompt_words = said = nats = tokens = 0
    for prompt, text, written in zip(prompts, heard, evidence.generation.text, strict=True):
        first, intended = " ".join(words(prompt)), words(written)
        counts = [jiwer.process_words(first, " ".join(intended[:n])) for n in range(1, len(intended) + 1)]
        distances = [c.substitutions + c.deletions + c.insertions for c in counts]
        end = distances.index(min(distances)) + 1
        prompt_errors, prompt_words = prompt_errors + min(distances), prompt_words + len(first.split())
        rest = intended[end:]
        errors += round(jiwer.wer(" ".join(rest), " ".join(words(text))) * len(rest))
        said += len(rest)
        ids = torch.tensor([[1, *byte_tokenizer().encode(text.strip()).ids]])
        nats += lm(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    found = speech.compute() | perplexity.compute()
    assert said > 15 and 0 < errors < said / 2
    assert float(found["wer_prompt"]) == pytest.approx(prompt_errors / prompt_words, abs=1e-4)
    assert float(found["wer_speech"]) == pytest.approx(errors / said, abs=1e-4)
    assert float(found["wer_text"]) == float(found["gated_ratio"]) == 0
    assert float(found["log_perplexity"]) == pytest.approx(nats / tokens, abs=1e-4)
    assert float(found["log_perplexity_total"]) == pytest.approx(nats / 3, abs=1e-3)


def test_speaker_similarity(evidence):
    encoder = pytest.importorskip("resemblyzer").VoiceEncoder("cpu", verbose=False)
    metric = SpeakerSimilarity(ResemblyzerEmbedder())
    metric.update(evidence)
    prompts, continuations = (
        np.stack([encoder.embed_utterance(w) for w in sounds]) for sounds in (evidence.prompts, evidence.continuations)
    )
    cosines = prompts @ continuations.T  # of unit length
    found = metric.compute()
    own, mismatched = found["speaker_similarity"], found["speaker_similarity_mismatched"]
    assert float(own) == pytest.approx(np.trace(cosines) / 3, abs=1e-4)
    assert float(mismatched) == pytest.approx((cosines.sum() - np.trace(cosines)) / 6, abs=1e-4)
    assert own > 0.8 > mismatched


@pytest.mark.slow
def test_mean_opinion_score(evidence):
    dnsmos = pytest.importorskip("speechmos.dnsmos")
    metric = MeanOpinionScore(DnsmosPredictor())
    metric.update(evidence)
    expected = np.mean([dnsmos.run(w, 16000)["ovrl_mos"] for w in evidence.continuations])
    assert float(metric.compute()["mos"]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_mean_opinion_score_by_distill_mos(evidence):
    network = pytest.importorskip("distillmos").ConvTransformerSQAModel().eval()
    metric = MeanOpinionScore(DistillMosPredictor(), suffix="_distill")
    metric.update(evidence)
    with torch.no_grad():
        expected = np.mean([network(torch.from_numpy(w)[None]).item() for w in evidence.continuations])
    assert float(metric.compute()["mos_distill"]) == pytest.approx(expected, abs=1e-4)


def test_real_speech_is_healthy(evidence):
    metric = GenerationHealth()
    metric.update(evidence)
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found["length_ratio"] == found["stop_rate"] == 1 and found["frame_copy_ratio"] < 0.01
    assert found["steady_ratio"] < 0.1 and found["silence_ratio"] < 0.5 and found["repetition"] == 0


@pytest.mark.slow
@needs_whisper
def test_references_lie_in_order():
    """Of the committed list of real utterances: what is said is heard best as it was recorded, worse through a
    poor vocoder, and hardly at all in another reader's words; a voice is more like itself than like others."""
    audio, config = AudioSpec(), Path(__file__).parents[1] / "conf/eval/librilight_mini.txt"
    cuts = {"test_cuts": "libriheavy_cuts_small.jsonl.gz", "test_ids": str(config), "max_skipped_share": 0.0}
    data = with_model(LibriLightDataModule(str(ROOT), **cuts))
    data.setup("test")
    pytest.importorskip("resemblyzer")
    metrics = [WordErrorRate(WhisperRecognizer(str(WHISPER))), SpeakerSimilarity(ResemblyzerEmbedder())]
    references = References()
    module = SimpleNamespace(
        model=SimpleNamespace(audio=audio, log_mel=LogMelSpectrogram(audio)),
        vocoder=GriffinLim(audio, iterations=0),  # with 32, copies are recognised as well as recordings
        device=torch.device("cpu"),
    )
    trainer = SimpleNamespace(callbacks=metrics, datamodule=data)
    references.on_test_epoch_start(trainer, module)
    for batch in data.test_dataloader():
        nothing = torch.full((len(batch), 1, audio.n_mels), audio.log_mel_floor)
        ones, ends = torch.ones(len(batch), dtype=torch.long), ["eos"] * len(batch)
        generation = Generation(batch.text, ends, nothing, ones, ends, torch.full((len(batch),), -60.0))
        references.on_test_batch_end(trainer, module, generation, batch, 0)
    references.on_test_epoch_end(trainer, module)
    ceiling, resynthesis, floor = (references.values[row] for row in ("ceiling", "resynthesis", "floor"))
    errors = [float(row["test/wer_speech"]) for row in (ceiling, resynthesis, floor)]
    voices = [float(row["test/speaker_similarity"]) for row in (ceiling, resynthesis, floor)]
    assert errors[0] < errors[1] < errors[2] and errors[0] < 0.15 and errors[2] > 0.8
    assert voices[0] > voices[1] > voices[2] and voices[0] > voices[2] + 0.2
    assert float(ceiling["test/speaker_similarity_mismatched"]) == pytest.approx(voices[2], abs=0.1)
