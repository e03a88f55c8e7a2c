#!/usr/bin/env python3
"""Makes (or checks) the synthetic "call and answer" speech corpus in data/sequences.

Two well-known sequences are told in turn: a speaker says a word of each (the call, "Monday, March") and then goes on
with both (the answer, "Tuesday, April, Wednesday"). The call determines the answer, and there are hundreds of calls, so
a spoken language model has to hear the words, and can be asked to continue texts, and voices, that it was never trained
on. The layout is Libri-Light's, the manifests are Libriheavy's (one gzipped JSON cut per line).

    python scripts/make_sequences_corpus.py --output data/sequences            # synthesise everything
    python scripts/make_sequences_corpus.py --output data/sequences --check    # re-read it and assert every promise

Needs the shared libraries of flite and eSpeak NG; on Debian or Ubuntu:

    apt-get install flite espeak-ng
"""

from __future__ import annotations

import argparse
import ctypes
import gzip
import json
import random
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import numpy as np
import soundfile
import soxr
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SAMPLE_RATE = 16000
CALL_SECONDS = 1.5  # the call, and nothing but the call, fills this much of every utterance
CALL_SPEECH_SECONDS = 1.35  # the call's speech is made to fit into this
ANSWER_SPEECH_SECONDS = 2.1
PAUSE_SECONDS = 0.12  # what is left of the silence between two words of a phrase
GAP_SECONDS = 0.3  # silence between two utterances of one file
GRID = 160  # utterances begin and end on multiples of 10 ms, so that their times are exact in decimals
LEVEL_DB = -24.0  # RMS of the active speech of an utterance, relative to full scale
FRAME_SECONDS = 0.005
SILENCE_DB = -40.0  # a frame is silent where its peak lies this far below the phrase's peak
OPUS_COMPRESSION = 0.93  # of libsndfile, 0 to 1: about 19 kbit/s
SEEK_ERROR = 3e-3  # between a stretch that is sought out and the same of the whole file: Opus decoders settle in
QUIET = 3e-3  # Opus leaves so much in digital silence
SEED = 20240229
MAXIMUM_BYTES = 20_000_000
AUDIO_ROOT = "download/librilight"  # the prefix that Libriheavy's manifests give to every recording
SUBSET = "small"
SPLITS = ("train", "validation", "test")
MANIFESTS = (*SPLITS, "validation_unseen_voice", "test_unseen_voice")  # of an unseen voice, apart from the others
CALL_WORDS, ANSWER_WORDS = 2, 3
TRAINING_TEXTS = 450  # that each seen voice says, of its own choice
CHAPTER_TEXTS = 90  # utterances in one file
PROMPTS = 2  # calls of each voice of the test splits that are written as files of their own
HELD_OUT_TEXTS = 20  # in validation and in test each

# Sequences whose words a speech recogniser writes as one expects.
FAMILIES = {
    "weekdays": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "months": "January February March April May June July August September October November December",
    "seasons": "spring summer autumn winter",
    "winds": "north east south west",
    "medals": "gold silver bronze",
}


@dataclass(frozen=True)
class Voice:
    """A speaker: which engine says it, how fast, and in which split it is heard."""

    name: str
    engine: str  # "flite" or "espeak"
    model: str  # the engine's own name of the voice
    pace: float  # duration stretch (flite) or words per minute (eSpeak NG)
    unseen: str | None = None  # the only split of a voice that training never hears
    raised: float = 1.0  # played this much faster (and synthesised as much slower): higher pitch, shorter vocal tract
    pitch: int = 50  # eSpeak NG's own, 0 to 99
    pause: float = PAUSE_SECONDS  # silence that is left between two words of a phrase


VOICES = (
    Voice("slt", "flite", "slt", 0.94),
    Voice("rms", "flite", "rms", 0.86),
    Voice("low", "flite", "slt", 0.94, raised=0.86),
    Voice("kid", "flite", "rms", 0.86, raised=1.25),
    Voice("us", "espeak", "en-us", 158, unseen="validation", pitch=60),
    Voice("kal", "flite", "kal16", 1.05, unseen="test"),
)


@cache
def successors() -> dict[str, str]:
    """What follows each word; after a sequence's last word comes its first."""
    sequences = [words.split() for words in FAMILIES.values()]
    return {word: words[(i + 1) % len(words)] for words in sequences for i, word in enumerate(words)}


@dataclass(frozen=True)
class Text:
    """Two sequences in turn, from a word of each: "Monday March Tuesday April Wednesday"."""

    first: str
    second: str

    @property
    def words(self) -> tuple[str, ...]:
        follow = successors()
        return (self.first, self.second, follow[self.first], follow[self.second], follow[follow[self.first]])

    @property
    def call(self) -> tuple[str, ...]:
        return self.words[:CALL_WORDS]

    @property
    def answer(self) -> tuple[str, ...]:
        return self.words[CALL_WORDS:]

    @property
    def transcript(self) -> str:
        return " ".join(self.words)


@dataclass
class Phrase:
    """Mono speech at SAMPLE_RATE with one (start, end) in seconds per word."""

    samples: np.ndarray
    times: list[tuple[float, float]]

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


@dataclass
class Recording:
    """One audio file: (text, phrase) utterances in the order in which they are heard."""

    voice: Voice
    book: str
    split: str
    texts: list[Text]
    utterances: list[Phrase] = field(default_factory=list)

    @property
    def manifest(self) -> str:
        return self.split if self.voice.unseen is None else f"{self.split}_unseen_voice"

    @property
    def identifier(self) -> str:
        return f"{SUBSET}/{self.voice.name}/{self.book}/{self.book}_0000"


def fail(message: str) -> NoReturn:
    sys.exit(f"make_sequences_corpus: {message}")


# ---------------------------------------------------------------------------------------------------------------------
# Texts and splits


def all_texts() -> list[Text]:
    """Every pair of words of two different sequences, in either order."""
    families = [words.split() for words in FAMILIES.values()]
    return [Text(a, b) for one in families for other in families if one != other for a in one for b in other]


@cache
def split_texts() -> dict[str, list[Text]]:
    """The texts of each split, drawn at random; the same on every call. Training says every word in either place."""
    texts = all_texts()
    random.Random(SEED).shuffle(texts)
    cuts = (HELD_OUT_TEXTS, 2 * HELD_OUT_TEXTS)
    splits = {"validation": texts[: cuts[0]], "test": texts[cuts[0] : cuts[1]], "train": texts[cuts[1] :]}
    assert {text.first for text in splits["train"]} == {text.second for text in splits["train"]} == set(successors())
    return splits


def plan_recordings() -> list[Recording]:
    """Which voice says which texts in which file."""
    texts = split_texts()
    recordings = []
    for voice in VOICES:
        if voice.unseen is None:
            own = random.Random(f"{SEED} {voice.name}").sample(texts["train"], TRAINING_TEXTS)
            for start in range(0, TRAINING_TEXTS, CHAPTER_TEXTS):
                chapter = own[start : start + CHAPTER_TEXTS]
                recordings.append(Recording(voice, f"train_{start // CHAPTER_TEXTS}", "train", chapter))
        for split in SPLITS[1:]:
            if voice.unseen in (None, split):
                recordings.append(Recording(voice, split, split, list(texts[split])))
    return recordings


# ---------------------------------------------------------------------------------------------------------------------
# Engines. Each returns (samples, sample rate, word times). Words are joined by commas: said as a list, they are far
# easier to understand; the pauses this makes are cut short afterwards.

RawPhrase = tuple[np.ndarray, float, list[tuple[float, float]]]


def load_library(name: str, package: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        fail(f"cannot load {name}: install {package} (Debian, Ubuntu: apt-get install {package})")


class FliteWave(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    ]


class FliteVoice(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("features", ctypes.c_void_p)]


class Flite:
    """CMU flite. Word times come from its Token and Segment relations: ends of the first and last phones."""

    def __init__(self) -> None:
        self.library = load_library("libflite.so.1", "flite")
        pointer, text = ctypes.c_void_p, ctypes.c_char_p
        signatures = {
            "flite_synth_text": (pointer, [text, pointer]),
            "utt_wave": (ctypes.POINTER(FliteWave), [pointer]),
            "utt_relation": (pointer, [pointer, text]),
            "relation_head": (pointer, [pointer]),
            "item_next": (pointer, [pointer]),
            "ffeature_float": (ctypes.c_float, [pointer, text]),
            "feat_set_float": (None, [pointer, text, ctypes.c_float]),
            "delete_utterance": (None, [pointer]),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(self.library, name)
            function.restype, function.argtypes = result, arguments
        self.library.flite_init()
        self.voices: dict[str, ctypes.c_void_p] = {}

    def voice(self, model: str) -> ctypes._Pointer:
        if model not in self.voices:
            library = load_library(f"libflite_cmu_us_{model}.so.1", "flite")
            register = getattr(library, f"register_cmu_us_{model}")
            register.restype, register.argtypes = ctypes.POINTER(FliteVoice), [ctypes.c_char_p]
            self.voices[model] = register(None)
        return self.voices[model]

    def __call__(self, words: tuple[str, ...], voice: Voice, pace: float) -> RawPhrase:
        loaded = self.voice(voice.model)
        self.library.feat_set_float(loaded.contents.features, b"duration_stretch", pace)
        utterance = self.library.flite_synth_text(", ".join(words).encode(), ctypes.cast(loaded, ctypes.c_void_p))
        wave = self.library.utt_wave(utterance).contents
        samples = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).astype(np.float64) / 32768
        rate = wave.sample_rate
        times = []
        token = self.library.relation_head(self.library.utt_relation(utterance, b"Token"))
        while token:
            start = b"daughter1.R:SylStructure.daughter1.daughter1.R:Segment.p.end"
            end = b"daughtern.R:SylStructure.daughtern.daughtern.R:Segment.end"
            times.append((self.library.ffeature_float(token, start), self.library.ffeature_float(token, end)))
            token = self.library.item_next(token)
        self.library.delete_utterance(utterance)
        return samples, rate, times


class EspeakEvent(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


ESPEAK_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(EspeakEvent)
)


class Espeak:
    """eSpeak NG. Word starts are the samples of its WORD events; a word ends where the sound before the next does."""

    SYNCHRONOUS, RATE_PARAMETER, PITCH_PARAMETER, UTF8, WORD_EVENT = 2, 1, 3, 1, 1

    def __init__(self) -> None:
        self.library = load_library("libespeak-ng.so.1", "espeak-ng")
        self.sample_rate = self.library.espeak_Initialize(self.SYNCHRONOUS, 0, None, 0)
        if self.sample_rate <= 0:
            fail("eSpeak NG does not start: install espeak-ng-data")
        self.audio: list[np.ndarray] = []
        self.word_starts: list[int] = []
        self.callback = ESPEAK_CALLBACK(self.receive)  # kept, so that it is not collected while the engine holds it
        self.library.espeak_SetSynthCallback(self.callback)

    def receive(self, wave: ctypes._Pointer, count: int, events: ctypes._Pointer) -> int:
        if wave and count > 0:
            self.audio.append(np.ctypeslib.as_array(wave, (count,)).copy())
        number = 0
        while events[number].type != 0:
            if events[number].type == self.WORD_EVENT:
                self.word_starts.append(events[number].sample)
            number += 1
        return 0

    def __call__(self, words: tuple[str, ...], voice: Voice, pace: float) -> RawPhrase:
        if self.library.espeak_SetVoiceByName(voice.model.encode()) != 0:
            fail(f"eSpeak NG has no voice {voice.model}: install espeak-ng-data")
        self.audio, self.word_starts = [], []
        self.library.espeak_SetParameter(self.RATE_PARAMETER, round(pace), 0)
        self.library.espeak_SetParameter(self.PITCH_PARAMETER, voice.pitch, 0)
        text = ", ".join(words).encode() + b"\0"
        self.library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 1, 0, self.UTF8, None, None)
        self.library.espeak_Synchronize()
        samples = np.concatenate(self.audio).astype(np.float64) / 32768
        starts = [sample / self.sample_rate for sample in self.word_starts]
        limits = [*starts[1:], len(samples) / self.sample_rate]
        loud = np.flatnonzero(active_frames(samples, self.sample_rate)) * FRAME_SECONDS
        # The frame into which the next word's start falls, and the one before it, may hold some of that word.
        ends = [float(loud[loud < limit - 2 * FRAME_SECONDS][-1]) + FRAME_SECONDS for limit in limits]
        ends = [limit if limit - end < 4 * FRAME_SECONDS else end for end, limit in zip(ends, limits, strict=True)]
        return samples, self.sample_rate, list(zip(starts, ends, strict=True))


@cache
def engine(name: str) -> Flite | Espeak:
    return {"flite": Flite, "espeak": Espeak}[name]()


# ---------------------------------------------------------------------------------------------------------------------
# From an engine's output to an utterance


def active_frames(samples: np.ndarray, rate: float) -> np.ndarray:
    """Which frames of FRAME_SECONDS are louder than SILENCE_DB below the peak."""
    edges = np.round(np.arange(0, len(samples) / rate, FRAME_SECONDS) * rate).astype(int)
    peaks = np.maximum.reduceat(np.abs(samples), edges[edges < len(samples)])
    return peaks > peaks.max() * 10 ** (SILENCE_DB / 20)


def tighten(samples: np.ndarray, rate: float, times: list[tuple[float, float]], longest_pause: float) -> Phrase:
    """Cuts the silence around the phrase off and the pauses inside it short, at the sample rate of the engine."""
    # The engine knows where its words are; loudness decides only about the last hundredths of a second.
    active = np.flatnonzero(active_frames(samples, rate)) * FRAME_SECONDS
    begin = max(0.0, min(times[0][0], max(active[0], times[0][0] - 0.02)))
    finish = max(times[-1][0], min(times[-1][1], active[-1] + 0.01)) + 0.01
    pieces, moved, position, removed = [], [], begin, begin
    for number, (start, end) in enumerate(times):
        if number and (pause := start - times[number - 1][1]) > longest_pause:
            pieces.append(samples[round(position * rate) : round((times[number - 1][1] + longest_pause / 2) * rate)])
            position = start - longest_pause / 2
            removed += pause - longest_pause
        moved.append((max(0.0, float(start - removed)), float(min(end, finish) - removed)))
    pieces.append(samples[round(position * rate) : round(finish * rate)])
    return Phrase(np.concatenate(pieces), moved)


def synthesise(voice: Voice, words: tuple[str, ...], longest: float) -> Phrase:
    """Says the words as one phrase of at most `longest` seconds, faster than the voice's usual pace if need be."""
    pace = voice.pace * (voice.raised if voice.engine != "espeak" else 1 / voice.raised)
    for _ in range(4):
        samples, rate, times = engine(voice.engine)(words, voice, pace)
        assert len(times) == len(words), (voice.name, words, times)
        phrase = tighten(samples, rate, times, voice.pause * voice.raised)
        heard_rate = rate * voice.raised
        seconds = len(phrase.samples) / heard_rate
        if seconds <= longest:
            break
        hurry = 0.98 * longest / seconds
        pace *= hurry if voice.engine != "espeak" else 1 / hurry
    assert seconds <= longest, (voice.name, words, seconds)
    if heard_rate != SAMPLE_RATE:
        phrase.samples = soxr.resample(phrase.samples, heard_rate, SAMPLE_RATE, quality="HQ")
    limit = phrase.seconds
    phrase.times = [(min(start / voice.raised, limit), min(end / voice.raised, limit)) for start, end in phrase.times]
    fade_edges(phrase.samples)
    return phrase


def fade_edges(samples: np.ndarray, seconds: float = 0.004) -> None:
    """Takes the click out of a cut."""
    ramp = np.linspace(0, 1, round(seconds * SAMPLE_RATE))
    samples[: len(ramp)] *= ramp
    samples[-len(ramp) :] *= ramp[::-1]


def level_gain(phrases: list[np.ndarray]) -> float:
    """What brings the active speech of the phrases, taken together, to LEVEL_DB."""
    frame = round(FRAME_SECONDS * SAMPLE_RATE)
    loud = [samples[np.repeat(active_frames(samples, SAMPLE_RATE), frame)[: len(samples)]] for samples in phrases]
    return 10 ** (LEVEL_DB / 20) / float(np.sqrt(np.mean(np.concatenate(loud) ** 2)))


def make_utterance(voice: Voice, text: Text) -> Phrase:
    """The call in exactly CALL_SECONDS, the answer behind it, at one level."""
    generator = random.Random(f"{SEED} {voice.name} {text.transcript}")
    call = synthesise(voice, text.call, CALL_SPEECH_SECONDS)
    answer = synthesise(voice, text.answer, ANSWER_SPEECH_SECONDS)
    gain = level_gain([call.samples, answer.samples])
    lead = min(generator.uniform(0.02, 0.1), CALL_SECONDS - call.seconds - 0.02)
    call_at = round(lead * SAMPLE_RATE)
    answer_at = round((CALL_SECONDS + generator.uniform(0.02, 0.04)) * SAMPLE_RATE)
    end = answer_at + len(answer.samples) + round(generator.uniform(0.06, 0.09) * SAMPLE_RATE)
    samples = np.zeros(-(-end // GRID) * GRID)
    samples[call_at : call_at + len(call.samples)] = call.samples * gain
    samples[answer_at : answer_at + len(answer.samples)] = answer.samples * gain
    assert np.abs(samples).max() < 0.999, f"clipped: {voice.name} {text.transcript}"
    offsets = [(call_at / SAMPLE_RATE, call.times), (answer_at / SAMPLE_RATE, answer.times)]
    times = [(start + offset, stop + offset) for offset, own in offsets for start, stop in own]
    return Phrase(np.round(samples * 32768).astype(np.int16), times)


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def seconds(samples: int) -> float:
    return round(samples / SAMPLE_RATE, 6)


def write_recording(recording: Recording, output: Path) -> list[dict]:
    """Writes the Ogg Opus file and Libri-Light's JSON file beside it; returns a Libriheavy cut per utterance."""
    gap = np.zeros(round(GAP_SECONDS * SAMPLE_RATE), np.int16)
    pieces, starts, position = [gap], [], len(gap)
    for utterance in recording.utterances:
        starts.append(position)
        pieces += [utterance.samples, gap]
        position += len(utterance.samples) + len(gap)
    audio = output / f"{recording.identifier}.opus"
    audio.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(
        audio, np.concatenate(pieces), SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=OPUS_COMPRESSION
    )
    spans = [
        [seconds(start), seconds(start + len(utterance.samples))]
        for start, utterance in zip(starts, recording.utterances, strict=True)
    ]
    title = recording.book.replace("_", " ")
    book = {"id": recording.book, "title": title, "language": "English", "meta": {"genre": []}}
    details = {"speaker": recording.voice.name, "book_meta": book, "snr": None, "voice_activity": spans}
    audio.with_suffix(".json").write_text(json.dumps(details) + "\n", encoding="utf-8")
    source = {
        "id": recording.identifier,
        "sources": [{"type": "file", "channels": [0], "source": f"{AUDIO_ROOT}/{recording.identifier}.opus"}],
        "sampling_rate": SAMPLE_RATE,
        "num_samples": position,
        "duration": seconds(position),
        "channel_ids": [0],
    }
    cuts = zip(recording.texts, recording.utterances, starts, strict=True)
    return [make_cut(recording, source, number, *parts) for number, parts in enumerate(cuts)]


def make_cut(recording: Recording, source: dict, number: int, text: Text, utterance: Phrase, start: int) -> dict:
    """A cut as Libriheavy writes it. As in lhotse, times in a supervision count from the start of the cut."""
    identifier = f"{recording.identifier}_{number}"
    duration = seconds(len(utterance.samples))
    words = [
        [word, round(begin, 4), round(end - begin, 4), None]
        for word, (begin, end) in zip(text.words, utterance.times, strict=True)
    ]
    custom = {
        "texts": [text.transcript, text.transcript.upper()],
        "pre_texts": ["", ""],
    }
    supervision = {
        "id": identifier,
        "recording_id": recording.identifier,
        "start": 0,
        "duration": duration,
        "channel": 0,
        "language": "English",
        "speaker": recording.voice.name,
        "custom": custom,
        "alignment": {"word": words},
    }
    return {
        "id": identifier,
        "start": seconds(start),
        "duration": duration,
        "channel": 0,
        "supervisions": [supervision],
        "recording": source,
        "type": "MonoCut",
    }


def manifest(output: Path, split: str) -> Path:
    return output / f"libriheavy_cuts_{split}.jsonl.gz"


def write_manifest(path: Path, cuts: list[dict]) -> None:
    """Without a name and a time in the gzip header, equal cuts are equal bytes."""
    text = "".join(json.dumps(cut) + "\n" for cut in cuts)
    path.write_bytes(gzip.compress(text.encode("utf-8"), 9, mtime=0))


def read_manifest(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_prompts(output: Path, cuts: list[dict]) -> None:
    """The calls of each voice's first PROMPTS cuts as files of their own, to try `generate` with."""
    (output / "prompts").mkdir()
    counts: Counter[str] = Counter()
    for cut in cuts:
        voice = cut["supervisions"][0]["speaker"]
        counts[voice] += 1
        if counts[voice] <= PROMPTS:
            first, count = round(cut["start"] * SAMPLE_RATE), round(CALL_SECONDS * SAMPLE_RATE)
            samples, _ = soundfile.read(audio_path(output, cut), frames=count, start=first, dtype="int16")
            name = "_".join([voice, *words_of(cut)[:CALL_WORDS]]).lower()
            soundfile.write(output / "prompts" / f"{name}.flac", samples, SAMPLE_RATE, subtype="PCM_16")


TOKENIZER_SIZE = 512
SPECIAL_TOKENS = ["<pad>", "<sos>", "<eos>"]
# A word, with the space before it, a hyphen or apostrophe inside it included; or other signs; or white space.
PIECES = r" ?[\p{L}\p{N}]+(?:[-'][\p{L}\p{N}]+)*| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def make_tokenizer(texts: list[Text]) -> Tokenizer:
    """A byte-level BPE tokenizer in which each corpus word, cased or not, with a space or not, is one token.

    Whole words are put into the vocabulary directly (`ignore_merges` looks a piece up before it applies merges); merges
    learnt from the training texts fill the rest. Other text falls back to these and to bytes.
    """
    words = sorted({word for text in texts for word in text.words})
    forms = sorted({space + form for word in words for form in (word, word.lower()) for space in ("", "\u0120")})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = splitter
    room = TOKENIZER_SIZE - len(SPECIAL_TOKENS) - len(alphabet) - len(forms)
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + room, initial_alphabet=alphabet, show_progress=False, max_token_length=3
    )
    sentences = [text.transcript.lower() for text in texts] + [text.transcript for text in texts]
    learner.train_from_iterator(sentences, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    tokens = SPECIAL_TOKENS + alphabet + forms + ["".join(pair) for pair in merges]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return tokenizer


def make_corpus(output: Path) -> None:
    """Synthesises everything in a folder beside `output` and swaps it in at the end."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        fresh = Path(folder, "fresh")
        cuts: dict[str, list[dict]] = defaultdict(list)
        for recording in plan_recordings():
            recording.utterances = [make_utterance(recording.voice, text) for text in recording.texts]
            cuts[recording.manifest] += write_recording(recording, fresh)
            print(recording.identifier, len(recording.texts), file=sys.stderr)
        for split in MANIFESTS:
            write_manifest(manifest(fresh, split), cuts[split])
        write_prompts(fresh, [*cuts["test"], *cuts["test_unseen_voice"]])
        make_tokenizer(split_texts()["train"]).save(str(fresh / "tokenizer.json"))
        for kept in ("README.md", "LICENSE"):
            if (output / kept).exists():
                shutil.copy2(output / kept, fresh / kept)
        if output.exists():
            output.rename(Path(folder, "old"))
        fresh.rename(output)


# ---------------------------------------------------------------------------------------------------------------------
# Checking


def audio_path(output: Path, cut: dict) -> Path:
    return output / Path(cut["recording"]["sources"][0]["source"]).relative_to(AUDIO_ROOT)


def check_texts(cuts: dict[str, list[dict]]) -> None:
    """Splits are what they promise: no held-out text and no unseen voice in training."""
    spoken = {split: {tuple(words_of(cut)) for cut in cuts[split]} for split in MANIFESTS}
    texts = {split: {text.words for text in own} for split, own in split_texts().items()}
    assert spoken["train"] <= texts["train"] and not texts["train"] & (texts["validation"] | texts["test"])
    assert not texts["validation"] & texts["test"]
    voices = {split: {cut["supervisions"][0]["speaker"] for cut in cuts[split]} for split in MANIFESTS}
    for split in MANIFESTS[1:]:
        assert spoken[split] == texts[split.removesuffix("_unseen_voice")], split
        assert split in SPLITS or not voices[split] & voices["train"], split
    assert voices["train"] == voices["validation"] == voices["test"] == {v.name for v in VOICES if not v.unseen}


def words_of(cut: dict) -> list[str]:
    return [item[0] for item in cut["supervisions"][0]["alignment"]["word"]]


def check_cut(output: Path, cut: dict, whole: np.ndarray) -> None:
    """Reading the cut alone gives the samples of the whole file; words, level and silences are as promised."""
    supervision, recording = cut["supervisions"][0], cut["recording"]
    first, count = cut["start"] * SAMPLE_RATE, cut["duration"] * SAMPLE_RATE
    assert abs(first - round(first)) < 1e-6 and round(first) % GRID == 0 and round(count) % GRID == 0, cut["id"]
    first, count = round(first), round(count)
    assert recording["num_samples"] == len(whole) and recording["duration"] == seconds(len(whole))
    assert first + count <= len(whole) and supervision["duration"] == cut["duration"]
    samples, _ = soundfile.read(audio_path(output, cut), frames=count, start=first, dtype="float32")
    assert np.abs(samples - whole[first : first + count]).max() < SEEK_ERROR, f"not exact: {cut['id']}"
    words = supervision["alignment"]["word"]
    assert words_of(cut) == supervision["custom"]["texts"][0].split() and len(words) == CALL_WORDS + ANSWER_WORDS
    spans = [(start, start + length) for _, start, length, _ in words]
    assert all(length > 0.08 for _, _, length, _ in words), (cut["id"], words)
    assert all(end <= start + 1e-3 for (_, end), (start, _) in pairwise(spans)), (cut["id"], words)
    assert spans[0][0] >= 0 and spans[CALL_WORDS - 1][1] <= CALL_SECONDS <= spans[CALL_WORDS][0], (cut["id"], words)
    assert cut["duration"] - 0.12 < spans[-1][1] < cut["duration"] - 0.04, (cut["id"], words)
    boundary = round(CALL_SECONDS * SAMPLE_RATE)
    assert max(abs(samples[boundary - 160 : boundary + 160]).max(), abs(samples[-160:]).max()) < QUIET, cut["id"]
    loud = [np.flatnonzero(abs(part) > QUIET) for part in (samples[:boundary], samples[boundary:])]
    phrases = [samples[own[0] + at : own[-1] + at] for own, at in zip(loud, (0, boundary), strict=True)]
    assert max(map(longest_silence, phrases)) <= 0.3, cut["id"]
    assert max(abs(phrase).max() for phrase in phrases) < 0.999 and abs(20 * np.log10(level_gain(phrases))) < 0.5, cut[
        "id"
    ]


def longest_silence(samples: np.ndarray) -> float:
    runs = "".join("x" if active else " " for active in active_frames(samples, SAMPLE_RATE)).split("x")
    return max(map(len, runs)) * FRAME_SECONDS


def check_tokenizer(path: Path, texts: list[Text]) -> None:
    tokenizer = Tokenizer.from_file(str(path))
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2]
    for word in {word for text in texts for word in text.words}:
        for form in (word, word.lower()):
            assert len(tokenizer.encode(f" {form}").ids) == len(tokenizer.encode(form).ids) == 1, form
    samples = [text.transcript for text in texts]
    samples += [
        "Any other text, isn't it?  Two spaces;\n\ttabs, naïve café \u4f60\u597d \U0001f600 12.5%!",
        "",
        " ",
        "MONDAY",
    ]
    for sample in samples:
        assert tokenizer.decode(tokenizer.encode(sample).ids) == sample, sample
        assert not {0, 1, 2} & set(tokenizer.encode(sample).ids)
    assert sorted(tokenizer.get_vocab().values()) == list(range(tokenizer.get_vocab_size()))


def check_files(output: Path, cuts: list[dict]) -> None:
    """Every audio file is cut up without a rest, and has Libri-Light's JSON file beside it."""
    spans = defaultdict(list)
    for cut in cuts:
        spans[audio_path(output, cut)].append([cut["start"], round(cut["start"] + cut["duration"], 6)])
    assert set(spans) == set(output.glob(f"{SUBSET}/*/*/*.opus"))
    for path, own in spans.items():
        details = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        assert details["voice_activity"] == own and details["speaker"] == path.parts[-3], path
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    assert size <= MAXIMUM_BYTES, f"{size} bytes"
    print(f"{len(spans)} audio files, {size / 1e6:.2f} MB in all")


def check_corpus(output: Path) -> None:
    """Asserts everything that the corpus promises and prints the counts."""
    if not manifest(output, "train").exists():
        fail(f"there is no corpus in {output}")
    cuts = {split: read_manifest(manifest(output, split)) for split in MANIFESTS}
    everything = [cut for split in MANIFESTS for cut in cuts[split]]
    assert len({cut["id"] for cut in everything}) == len(everything)
    check_texts(cuts)
    audio: dict[Path, np.ndarray] = {}
    for cut in everything:
        path = audio_path(output, cut)
        if path not in audio:
            audio[path], rate = soundfile.read(path, dtype="float32")
            assert rate == SAMPLE_RATE and audio[path].ndim == 1 and soundfile.info(path).subtype == "OPUS"
        check_cut(output, cut, audio[path])
    check_tokenizer(output / "tokenizer.json", [text for own in split_texts().values() for text in own])
    check_files(output, everything)
    print_counts(cuts)


def print_counts(cuts: dict[str, list[dict]]) -> None:
    print("| split | voice | utterances | minutes | mean answer, s |\n|---|---|---:|---:|---:|")
    for split in MANIFESTS:
        for voice in VOICES:
            lengths = [cut["duration"] for cut in cuts[split] if cut["supervisions"][0]["speaker"] == voice.name]
            if lengths:
                mean = np.mean(lengths) - CALL_SECONDS
                print(f"| {split} | {voice.name} | {len(lengths)} | {sum(lengths) / 60:.1f} | {mean:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("data/sequences"), help="folder of the corpus")
    parser.add_argument("--check", action="store_true", help="check the corpus in --output instead of making it")
    arguments = parser.parse_args()
    if arguments.check:
        check_corpus(arguments.output)
    else:
        make_corpus(arguments.output)


if __name__ == "__main__":
    main()
