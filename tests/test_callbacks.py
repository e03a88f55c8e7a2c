import itertools
import json
import math
import pickle
import random
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jiwer
import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks import (
    Evidence,
    GenerationHealth,
    LogPerplexity,
    MeanOpinionScore,
    PredictionWriter,
    References,
    SpeakerSimilarity,
    SpokenQA,
    Throughput,
    WordErrorRate,
)
from callbacks.base import FreeRunningMetric, Ratio
from callbacks.evidence import shared_evidence
from callbacks.references import jumble
from callbacks.report import as_markdown
from callbacks.spoken_qa import answer_words, is_right
from callbacks.throughput import flop_counter
from lit_spectron.audio import AudioSpec, LogMelSpectrogram
from lit_spectron.errors import UserError
from lit_spectron.types import Generation, SpeechBatch
from lit_spectron.word_errors import count_errors, english_words, match_beginning, words
from tests.judges import (
    EVENTS,
    CountingRecognizer,
    EchoAnswerer,
    LengthRecognizer,
    LetterScorer,
    LevelPredictor,
    MomentEmbedder,
    Playback,
)


def random_words(rng: random.Random, longest: int) -> list[str]:
    return [rng.choice(["a", "b", "c"]) for _ in range(rng.randint(0, longest))]


@pytest.fixture
def generation() -> Generation:
    """Two continuations of 4 and 2 frames: half of the first is silent, none of the second."""
    loud, silent = torch.zeros(8), torch.full((8,), -9.0)
    return Generation(
        text=["one too", "Three, four! five"],
        text_stop_reason=["eos", "eos"],
        log_mel=torch.stack([torch.stack([loud, loud, silent, silent]), torch.stack([loud, loud, silent, silent])]),
        lengths=torch.tensor([4, 2]),
        stop_reason=["stop", "length"],
        silence_level_db=torch.tensor([-40.0, -40.0]),
    )


def test_words():
    assert words("Well, X-ray! Don't_stop  ÉTÉ 42") == ["well", "x", "ray", "don't", "stop", "été", "42"]
    assert words(" -- ") == []


def test_count_errors_is_jiwers():
    rng = random.Random(0)
    for _ in range(200):
        reference, hypothesis = random_words(rng, 6), random_words(rng, 6)
        if reference:
            expected = round(jiwer.wer(" ".join(reference), " ".join(hypothesis)) * len(reference))
        else:
            expected = len(hypothesis)
        assert count_errors(reference, hypothesis) == expected


def test_match_beginning_is_the_best_of_all_beginnings():
    rng = random.Random(1)
    for _ in range(300):
        reference, hypothesis = random_words(rng, 5), random_words(rng, 7)
        distances = [count_errors(reference, hypothesis[:n]) for n in range(len(hypothesis) + 1)]
        assert match_beginning(reference, hypothesis) == (min(distances), distances.index(min(distances)))


def test_ratio():
    ratio = Ratio()
    ratio.update(1, 4)
    ratio.update(2, 2)
    assert ratio.compute() == 0.5
    ratio.reset()
    ratio.update(0, 0)
    assert ratio.compute().isnan()


@pytest.fixture
def evidence(batch, generation, audio) -> Evidence:
    """Of "one two" and "three four five", prompts "one" and "three": half silence, then a tone."""
    return Evidence(batch(), generation, Playback(audio, [tone(800), tone(400)]))


def tone(samples: int) -> Tensor:
    return 0.3 * torch.sin(torch.arange(samples) * 0.3)


def values(metric: FreeRunningMetric) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


def test_word_error_rate(evidence):
    metric = WordErrorRate()
    metric.update(evidence)
    assert values(metric) == pytest.approx({"wer_text": 1 / 5, "wer_prompt": 0})
    assert metric.rows["utterance0"]["wer_text"] == pytest.approx(0.5)
    assert metric.rows["utterance1"] == {"wer_text": 0.0, "wer_prompt": 0.0}
    evidence.batch.prompt_text, evidence.generation.text = ["two", None], ["one", ""]
    metric.update(evidence)
    assert values(metric) == pytest.approx({"wer_text": (1 + 0 + 1 + 3) / 10, "wer_prompt": 1 / 3})
    metric.reset()
    assert not metric.rows and all(np.isnan(v) for v in values(metric).values())


def test_word_errors_of_speech(evidence):
    """ "too" is heard as "to", "four five" as "four"; the second prompt, without word times, as "three"."""
    evidence.batch.prompt_text = ["one", None]
    evidence.batch.prompt_samples = torch.tensor([8000, 9000])
    metric = WordErrorRate(LengthRecognizer(((800, "To!"), (400, "four"), (8000, "never asked"), (9000, "three"))))
    metric.update(evidence)
    found = values(metric)
    assert found["wer_speech"] == pytest.approx((1 + 1) / (1 + 2)) and found["wer_prompt"] == 0
    assert found["gated_ratio"] == found["wer_speech_left_out"] == found["wer_prompt_left_out"] == 0
    assert metric.rows["utterance1"] == {"wer_text": 0, "wer_prompt": 0, "wer_speech": 0.5, "gated_ratio": 0}


def test_silence_is_not_listened_to_and_counted(batch, generation, audio):
    evidence = Evidence(batch(), generation, Playback(audio, [torch.zeros(800), tone(400)]))
    metric = WordErrorRate(LengthRecognizer(((400, " ".join(["four"] * 30)),)))
    metric.update(evidence)
    found = values(metric)
    assert found["gated_ratio"] == 1 and found["wer_speech"] == 1 and found["wer_speech_left_out"] == 0
    assert [t.gate for t in evidence.transcripts(metric.recognizer)] == ["silence", "endless"]


def test_what_an_evaluator_fails_on_is_named_counted_and_left_out(evidence):
    """Nobody else's score moves to its place."""
    speech = WordErrorRate(LengthRecognizer(((400, "four five"), (8000, "one"))))
    with pytest.warns(UserWarning, match="LengthRecognizer fails on the continuation of utterance0: 800"):
        speech.update(evidence)
    assert values(speech)["wer_speech_left_out"] == 1 and values(speech)["wer_speech"] == 0
    assert "wer_speech" not in speech.rows["utterance0"] and speech.rows["utterance1"]["wer_speech"] == 0
    voice = SpeakerSimilarity(MomentEmbedder(500), suffix="_moments")
    with pytest.warns(UserWarning, match="MomentEmbedder fails on the continuation of utterance1: too short"):
        voice.update(evidence)
    assert values(voice)["speaker_similarity_moments_left_out"] == 1
    assert voice.rows["utterance0"]["speaker_similarity_moments"] > 0
    assert voice.rows["utterance1"].keys() == {"speaker_similarity_moments_left_out"}


def test_english_words():
    pytest.importorskip("whisper_normalizer")
    assert english_words("Mr. Ray's colours: twenty-five, don't") == [
        "mister",
        "ray",
        "is",
        "colors",
        "25",
        "do",
        "not",
    ]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_speaker_similarity(batch, generation, audio):
    """Over two batches, of which a speaker says three, another one and a third one."""
    metric, speakers = SpeakerSimilarity(MomentEmbedder()), [["a", "b"], ["a", "c"], ["a", "b"]]
    prompts, continuations = [], []
    for seed, names in enumerate(speakers):
        this, sounds = batch(seed=seed), [torch.randn(800) * 0.1 * (seed + 1), torch.rand(400)]
        this.speakers, this.ids = names, [f"{seed}{name}" for name in names]
        evidence = Evidence(this, generation, Playback(audio, sounds))
        metric.update(evidence)
        moments = [
            [MomentEmbedder().embed_one(w, 0, "cpu").numpy() for w in x]
            for x in (evidence.prompts, evidence.continuations)
        ]
        prompts, continuations = prompts + moments[0], continuations + moments[1]
    names = [name for batch_speakers in speakers for name in batch_speakers]
    own = np.mean([cosine(p, c) for p, c in zip(prompts, continuations, strict=True)])
    others = [
        np.mean([cosine(p, c) for c, b in zip(continuations, names, strict=True) if a != b])
        for p, a in zip(prompts, names, strict=True)
    ]
    found = values(metric)
    assert found["speaker_similarity"] == pytest.approx(own, abs=1e-6)
    assert found["speaker_similarity_mismatched"] == pytest.approx(np.mean(others), abs=1e-6)
    assert metric.rows["1c"]["speaker_similarity"] == pytest.approx(cosine(prompts[3], continuations[3]), abs=1e-6)


def test_one_speaker_has_no_floor(evidence):
    evidence.batch.speakers = ["a", "a"]
    metric = SpeakerSimilarity(MomentEmbedder())
    metric.update(evidence)
    assert np.isnan(values(metric)["speaker_similarity_mismatched"]) and values(metric)["speaker_similarity"] > 0


def test_log_perplexity(evidence):
    metric = LogPerplexity(LengthRecognizer(((800, "one two"), (400, ""))), LetterScorer())
    metric.update(evidence)
    assert values(metric) == {"log_perplexity": 3, "log_perplexity_total": 6, "log_perplexity_left_out": 1}
    assert metric.rows["utterance1"].keys() == {"log_perplexity_left_out"}


def test_mean_opinion_score(evidence):
    metric = MeanOpinionScore(LevelPredictor())
    metric.update(evidence)
    levels = [1 + 4 * float(sound.abs().mean()) for sound in (tone(800), tone(400))]
    assert values(metric) == pytest.approx({"mos": np.mean(levels), "mos_left_out": 0}, abs=1e-5)


def test_spoken_qa(evidence):
    evidence.batch.text, evidence.generation.text = (
        ["Who wrote it?", "Where?"],
        ["who wrote it emile zola", "where ants"],
    )
    evidence.batch.answers = [["Zola", "Émile Zola"], ["The Ant"]]
    metric = SpokenQA(LengthRecognizer(((800, "By Zo la."), (400, "The ant."))))
    metric.update(evidence)
    assert values(metric) == {"qa_accuracy_text": 0.5, "qa_accuracy_speech": 0.5, "qa_accuracy_speech_left_out": 0}
    assert metric.rows["utterance0"] == {"qa_accuracy_text": 1, "qa_accuracy_speech": 0}


def test_knowledge_kept_is_of_what_was_known(evidence):
    """The LLM alone, which only repeats the question, knows the first; the model, in the end, the second."""
    evidence.batch.text, evidence.generation.text = ["Is it red?", "Who?"], ["is it red no", "who bob"]
    evidence.batch.answers = [["red"], ["Bob"]]
    metric = SpokenQA(llm_alone=EchoAnswerer())
    metric.update(evidence)
    found = values(metric)
    assert found["qa_accuracy_text"] == found["qa_accuracy_llm_alone"] == 0.5
    assert found["qa_knowledge_kept"] == 1 and found["qa_accuracy_llm_alone_left_out"] == 0
    assert metric.counts["utterance1"] == {
        "qa_accuracy_text": (1, 1),
        "qa_accuracy_llm_alone": (0, 1),
        "qa_knowledge_kept": (1, 0),
    }


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        ("It's in New-York City", ["new york"], True),
        ("the question, Paris", ["PARIS!"], True),
        ("parisian", ["paris"], False),
        ("about 1,000 of them", ["1000"], True),
        ("an u.s. citizen", ["The US", "canada"], True),
        ("the a", ["The"], False),
        ("", ["x"], False),
    ],
)
def test_right_answers(answer, right, expected):
    assert is_right(answer_words(answer), right) is expected
    assert answer_words("The U.S.'s Café-bar, 1,000") == ["uss", "cafe", "bar", "1000"]


def test_a_question_is_no_answer(evidence):
    evidence.batch.text, evidence.generation.text = ["Is it red?", "Is it red?"], ["is it red blue", "is it red red"]
    evidence.batch.answers = [["red"], ["red"]]
    metric = SpokenQA()
    metric.update(evidence)
    assert [metric.rows[name]["qa_accuracy_text"] for name in evidence.batch.ids] == [0, 1]


def test_generation_health(evidence):
    metric = GenerationHealth(repetition_words=2)
    evidence.generation.text[1] = "one two one two"
    metric.update(evidence)
    found = values(metric)
    assert found["stop_rate"] == 0.5 and found["silence_ratio"] == pytest.approx(2 / 6)
    assert found["frame_copy_ratio"] == pytest.approx((2 + 1) / (3 + 1))
    assert found["repetition"] == pytest.approx(1 / (1 + 3)) and np.isnan(found["steady_ratio"])
    assert found["length_ratio"] == pytest.approx((800 + 400) / (8000 + 16000))
    assert metric.rows["utterance0"] == pytest.approx(
        {"stop_rate": 1, "silence_ratio": 0.5, "frame_copy_ratio": 2 / 3, "length_ratio": 0.1, "repetition": 0}
    )


def test_noise_hum_and_silence_are_no_speech(batch, audio):
    generator, seconds = torch.Generator().manual_seed(0), 2
    noise = 0.1 * torch.randn(seconds * audio.sample_rate_hz, generator=generator)
    hum = 0.3 * torch.sin(torch.arange(len(noise)) * 0.05)
    syllables = noise * (torch.arange(len(noise)) * 2 * np.pi * 4 / audio.sample_rate_hz).sin().clamp(min=0.01)
    sounds = torch.stack([noise, hum, torch.zeros_like(noise), syllables])
    log_mel, lengths = LogMelSpectrogram(audio)(sounds, torch.full((4,), len(noise)))
    texts, level = [""] * 4, torch.full((4,), -40.0)
    generation = Generation(texts, ["eos"] * 4, log_mel, lengths, ["length"] * 4, level)
    metric = GenerationHealth()
    metric.update(Evidence(batch([1.0] * 4, texts=["a b"] * 4), generation, Playback(audio, sounds)))
    steady, silent, copied = (
        [metric.rows[f"utterance{i}"][name] for i in range(4)]
        for name in ("steady_ratio", "silence_ratio", "frame_copy_ratio")
    )
    assert min(steady[:3]) > 0.95 and steady[3] < 0.05
    assert silent[2] == 1 and max(silent[:2]) == 0 and copied[2] == 1 and copied[0] == 0


def test_rows_and_metrics_begin_anew_each_round(batch, generation):
    metric = WordErrorRate()
    module = SimpleNamespace(vocoder=None, device=torch.device("cpu"))
    module.vocoder = Playback(AudioSpec(), [])
    metric.on_validation_batch_end(None, module, generation, batch(), 0)
    metric.on_validation_batch_end(None, module, None, batch(), 1)  # a batch that was not decoded
    assert len(metric.rows) == 2 and metric.metrics["wer_text"].update_called
    metric.on_test_epoch_start(None, L.LightningModule())
    assert not metric.rows and not metric.metrics["wer_text"].update_called


def test_nothing_is_worked_out_twice(batch, generation, audio):
    """Callbacks with equal evaluators, each built on its own, share network, vocoder and findings."""
    EVENTS.clear()
    texts = ((800, "two"), (400, "four five"))
    vocoder, logged = Playback(audio, [tone(800), tone(400)]), {}
    module = SimpleNamespace(vocoder=vocoder, device=torch.device("cpu"), log_dict=lambda v, **_: logged.update(v))
    callbacks = [
        WordErrorRate(LengthRecognizer(texts)),
        SpokenQA(LengthRecognizer(texts)),
        LogPerplexity(LengthRecognizer(texts), LetterScorer()),
        SpeakerSimilarity(MomentEmbedder()),
        SpeakerSimilarity(MomentEmbedder(), suffix="_again"),
    ]
    for callback in callbacks:
        callback.on_test_epoch_start(None, module)
    for _ in range(2):
        this = batch()
        this.answers = [["two"], ["six"]]
        for callback in callbacks:
            callback.on_test_batch_end(None, module, generation, this, 0)
    seconds = shared_evidence(this, generation, vocoder).seconds
    for callback in callbacks:
        callback.on_test_epoch_end(None, module)
    assert vocoder.calls == 2 and EVENTS["LengthRecognizer asked"] == 2 * 2 and EVENTS["MomentEmbedder asked"] == 2 * 4
    assert EVENTS["LengthRecognizer loaded"] <= 1 and EVENTS["LetterScorer loaded"] <= 1
    assert seconds.keys() == {"generation", "vocoder", "LengthRecognizer", "LetterScorer", "MomentEmbedder"}
    assert logged["test/wer_speech"] == pytest.approx(1 / 3) and logged["test/qa_accuracy_speech"] == 0.5
    assert shared_evidence.cache_info().currsize == 0


class Uncopyable:
    def __deepcopy__(self, _):
        raise AssertionError("a model is not to be copied")

    def log(self) -> None: ...


def test_references(batch, generation, audio, monkeypatch):
    """The same metrics of real speech, of the vocoder's copy of it, and of another reader; the clock counts all."""
    monkeypatch.setattr("callbacks.evidence.time", SimpleNamespace(perf_counter=itertools.count().__next__))
    this = batch()
    real = [this.waveform[i, n:end].numpy() for i, (n, end) in enumerate(((8000, 16000), (8000, 24000)))]
    others = {"utterance0": real[1], "utterance1": tone(600).numpy()}
    heard = ((8000, "two"), (16000, "four five"), (800, "too"), (400, "fear five"), (600, "v w"))
    metrics = [
        WordErrorRate(LengthRecognizer(heard)),
        SpeakerSimilarity(MomentEmbedder()),
        LogPerplexity(LengthRecognizer(heard), LetterScorer()),
        MeanOpinionScore(LevelPredictor()),
        GenerationHealth(2),
        references := References(),
    ]
    log_mel = LogMelSpectrogram(audio)
    module = SimpleNamespace(
        model=SimpleNamespace(audio=audio, log_mel=log_mel),
        vocoder=Playback(audio, [tone(800), tone(400)]),
        device=torch.device("cpu"),
    )

    def another(split: str, name: str, rate: int) -> np.ndarray:
        assert split == "test" and rate == audio.sample_rate_hz
        return others[name]

    datamodule = SimpleNamespace(continuation_by_another=another, speakers=lambda _: {"a", "b"})
    trainer = SimpleNamespace(callbacks=metrics, datamodule=datamodule)
    for metric in metrics:
        metric.log = Uncopyable().log  # as Lightning does, with the trainer behind it
    EVENTS.clear()
    for callback in metrics:
        callback.on_test_epoch_start(trainer, module)
    for callback in metrics:
        callback.on_test_batch_end(trainer, module, generation, this, 0)
    seconds = shared_evidence(this, generation, module.vocoder).seconds
    assert seconds["LengthRecognizer"] == 4 and seconds["vocoder"] == 2  # one a call by this clock
    # Two continuations of the model's, of which this vocoder plays one again as a copy, two real ones, and one that is
    # only a floor: the other floor is the second utterance's ceiling. A floor's opinion score means nothing.
    sounds = {"LengthRecognizer": 2 + 1 + 2 + 1, "MomentEmbedder": 2 + 2 + 1 + 2 + 1, "LevelPredictor": 2 + 1 + 2}
    assert {name: EVENTS[f"{name} asked"] for name in sounds} == sounds
    later = replace(this)
    for callback in metrics:
        callback.on_test_batch_end(trainer, module, generation, later, 1)
    again = {"LengthRecognizer": 2, "MomentEmbedder": 2 + 2, "LevelPredictor": 2}  # the model's row alone
    assert {name: EVENTS[f"{name} asked"] - count for name, count in sounds.items()} == again
    references.on_test_epoch_end(trainer, module)
    found = {row: {k: float(v) for k, v in row_values.items()} for row, row_values in references.values.items()}
    ceiling, resynthesis, floor = found["ceiling"], found["resynthesis"], found["floor"]
    assert ceiling["test/wer_speech"] == ceiling["test/wer_prompt"] == 0
    # "two" and "four five" are "too" by this vocoder, which plays the same whatever the spectrogram is.
    assert resynthesis["test/wer_speech"] == 1
    assert floor["test/wer_speech"] >= 1 and floor["test/log_perplexity"] == 10 / 4
    assert values(metrics[0])["wer_speech"] == pytest.approx(1 / 3)  # the model's own, untouched
    moments = [MomentEmbedder().embed([w], 0)[0] for w in (*(this.waveform[i, :8000].numpy() for i in (0, 1)), *real)]
    own = np.mean([float(moments[i] @ moments[i + 2]) for i in (0, 1)])
    assert ceiling["test/speaker_similarity"] == pytest.approx(own, abs=1e-6)
    assert ceiling["test/mos"] == pytest.approx(np.mean([1 + 4 * abs(w).mean() for w in real]), abs=1e-5)
    named = {row: {name.removeprefix("test/") for name in row_values} for row, row_values in found.items()}
    assert "wer_text" not in named["ceiling"] | named["resynthesis"] and "wer_text" in named["floor"]
    assert not {"mos", "stop_rate", "silence_ratio"} & named["floor"] and "wer_prompt" not in named["resynthesis"]
    assert {"mos", "speaker_similarity", "silence_ratio", "log_perplexity"} <= named["resynthesis"]


def test_of_one_speaker_there_is_no_floor():
    trainer = SimpleNamespace(callbacks=[], datamodule=SimpleNamespace(speakers=lambda _: {"kal"}))
    references = References()
    with pytest.warns(UserWarning, match="no row floor: split test holds no other speaker"):
        references.on_test_epoch_start(trainer, None)
    assert list(references.metrics) == ["ceiling", "resynthesis"]


def test_words_are_jumbled_the_same_way_each_time():
    assert jumble("a b c d e f", "u1") == jumble("a b c d e f", "u1") != jumble("a b c d e f", "u2")
    assert sorted(jumble("a b c d e f", "u1").split()) == list("abcdef")


def test_evaluators_are_in_no_checkpoint(evidence):
    metrics = [
        WordErrorRate(CountingRecognizer()),
        SpeakerSimilarity(MomentEmbedder()),
        LogPerplexity(CountingRecognizer(), LetterScorer()),
        MeanOpinionScore(LevelPredictor()),
    ]
    for metric in metrics:
        metric.update(evidence)
        assert metric.state_dict() == {} and not any(isinstance(v, nn.Module) for v in vars(evidence.batch).values())
        parts = [part for part in vars(metric).values() if isinstance(part, nn.Module)] + [*metric.metrics.values()]
        assert not any(list(part.parameters()) or part.state_dict() for part in parts)
    network = CountingRecognizer().loaded("cpu")
    assert network is metrics[0].recognizer.loaded("cpu") and len(pickle.dumps(metrics[0].recognizer)) < 300


def all_metrics() -> list[FreeRunningMetric]:
    return [
        WordErrorRate(CountingRecognizer()),
        SpeakerSimilarity(MomentEmbedder(420)),
        LogPerplexity(CountingRecognizer(), LetterScorer()),
        MeanOpinionScore(LevelPredictor()),
        SpokenQA(CountingRecognizer(), EchoAnswerer()),
        GenerationHealth(2),
    ]


def sample(index: int) -> Evidence:
    """A batch of one; of the last nothing can be embedded."""
    audio, generator = AudioSpec(), torch.Generator().manual_seed(index)
    frames = 50 + index if index < 6 else 2
    generation = Generation(
        text=[("one two three four " * index)[: 5 + 7 * index]],
        text_stop_reason=["eos"],
        log_mel=torch.randn(1, frames, 4, generator=generator),
        lengths=torch.tensor([frames]),
        stop_reason=["stop" if index % 2 else "length"],
        silence_level_db=torch.zeros(1),
    )
    batch = SpeechBatch(
        split="test",
        waveform=0.1 * torch.randn(1, 9000, generator=generator),
        lengths=torch.tensor([9000]),
        prompt_samples=torch.tensor([500 + index]),
        tokens=torch.zeros(1, 0),
        token_lengths=torch.zeros(1),
        ids=[f"u{index}"],
        speakers=["abc"[index % 3]],
        text=["one two three"],
        prompt_text=["one" if index % 2 else None],
        answers=[["two"]] if index % 3 else [[]],
    )
    sound = 0.02 * (1 + index) * torch.randn(audio.frames_to_samples(frames), generator=generator)
    return Evidence(batch, generation, Playback(audio, [sound]))


def results(indices: range) -> dict[str, float]:
    metrics = all_metrics()
    for metric in metrics:
        metric.start(SimpleNamespace(device=torch.device("cpu")))
    for index in indices:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "MomentEmbedder fails")
            for metric in metrics:
                metric.update(sample(index))
    return {name: value for metric in metrics for name, value in values(metric).items()}


SHARES = (4, 7)  # of seven samples, the first process's


def find_shares(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", world_size=2, rank=rank)
    found = [results(range(share) if rank == 0 else range(share, 7)) for share in SHARES]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    """Also where one of them has nothing to judge."""
    torch.multiprocessing.spawn(find_shares, (tmp_path,), nprocs=2)
    alone = results(range(7))
    assert alone["speaker_similarity_left_out"] == 1 and not any(np.isnan(v) for v in alone.values())
    for rank in range(2):
        for found in json.loads((tmp_path / f"{rank}.json").read_text()):
            assert found == pytest.approx(alone, abs=1e-6)


class Steps(L.LightningModule):
    """A linear layer with the geometry of a model: 10 positions a second of prompt, 20 of speech."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)
        self.model = SimpleNamespace(audio=AudioSpec(), positions_per_second=(10.0, 20.0))
        self.logged: list[dict[str, float]] = []

    def training_step(self, *_):
        return self.layer(torch.ones(2, 4)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def log(self, name, value, **_):
        step = self.trainer.global_step
        if not self.logged or self.logged[-1]["step"] != step:
            self.logged.append({"step": step})
        self.logged[-1][name] = value


def test_throughput(batch):
    this, module = batch(), Steps()  # 1 + 1.5 s, of which prompts 0.5 s each; 7 + 15 bytes
    metric = Throughput(peak_flops_per_second=1e6)
    loader = DataLoader([this] * 7, batch_size=None)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    began = time.perf_counter()
    L.Trainer(max_steps=7, log_every_n_steps=3, callbacks=[metric], enable_model_summary=False, **options).fit(
        module, loader
    )
    seconds = time.perf_counter() - began
    assert [row["step"] for row in module.logged] == [3, 6]
    for row in module.logged:
        assert row["train/audio_seconds_per_second"] > 6 * 2.5 / seconds / 2
        positions = 10 * 1.0 + 20 * 1.5 + 22 + 2 * 2
        assert row["train/tokens_per_second"] / row["train/audio_seconds_per_second"] == pytest.approx(positions / 2.5)
        # Forward and gradient of the weights: two products of 2 by 4 by 4.
        steps_per_second = row["train/audio_seconds_per_second"] / 2.5
        flops = 2 * 2 * (2 * 4 * 4)
        assert row["train/model_flops_utilization"] == pytest.approx(flops * steps_per_second / 1e6, rel=1e-4)
        assert 0 < row["train/data_wait_share"] < 1 and 0.05 < row["train/peak_memory_gib"] < 100


@pytest.mark.parametrize("kernel", ["eager", "fused"])
def test_attention_counts_as_its_products_whatever_computes_it(kernel):
    batch, heads, queries, keys, width = 2, 3, 5, 7, 8
    query, key, value = (torch.randn(batch, heads, n, width, requires_grad=True) for n in (queries, keys, keys))
    with flop_counter() as counter:
        if kernel == "eager":
            out = (query @ key.transpose(2, 3)).softmax(-1) @ value
        else:
            mask = torch.ones(queries, keys, dtype=torch.bool).tril(2)
            out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out.sum().backward()
    product = 2 * batch * heads * queries * keys * width
    # Scores and values forward; a gradient of each operand of both backward.
    assert counter.get_total_flops() == (2 + 4) * product


def test_predictions_are_not_added_to_others(tmp_path):
    writer = PredictionWriter(str(tmp_path / "out"))
    for _ in range(2):  # a folder that is empty is as good as none
        writer.setup(SimpleNamespace(), None, "predict")
        (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out/old.json").touch()
    writer.setup(SimpleNamespace(), None, "fit")
    with pytest.raises(UserError, match=r"prediction\.directory: .*out is not empty"):
        writer.setup(SimpleNamespace(), None, "predict")


def test_report_in_markdown():
    sample = {"reference": "a | b", "generated": "c\nd", "stop_reason": "stop", "seconds": 4.0}
    report = {
        "checkpoint": "last.ckpt",
        "metrics": {"test/loss": 1.25, "test/wer_prompt": None},
        "by_speaker": {"slt": {"utterances": 2, "wer_text": 0.5}, "awb": {"utterances": 1}},
        "seconds": {"vocoder": 0.5, "generation": 2.0},
        "samples": {"u1": sample},
    }
    markdown = as_markdown(report)
    assert "| test/loss | 1.2500 |" in markdown and "| test/wer_prompt | none |" in markdown
    assert "| slt | 2 | 0.5000 |" in markdown and "| awb | 1 |  |" in markdown
    assert r"| u1 | a \| b | c d | stop | 4.00 |" in markdown
    assert "| generation | 2.0 | 0.500 |\n| vocoder | 0.5 | 0.125 |" in markdown
    tables = [block.splitlines() for block in markdown.split("\n\n") if block.startswith("|")]
    for table in tables:
        assert len({line.replace(r"\|", "").count("|") for line in table}) == 1
    assert len(tables) == 4 and json.dumps(report) and not math.isnan(report["metrics"]["test/loss"])
