#!/usr/bin/env python3
"""Makes the synthetic "call and answer" speech corpus in data/sequences.

Two well-known sequences are told in turn: a speaker says a word of each (the call, "Monday, March") and then goes on
with both (the answer, "Tuesday, April, Wednesday"). The call determines the answer, and there are hundreds of calls, so
a spoken language model has to hear the words, and can be asked to continue texts, and voices, that it was never trained
on. The layout is Libri-Light's, the manifests are Libriheavy's (one gzipped JSON cut per line).

    python scripts/make_sequences_corpus.py --output data/sequences     # synthesise everything
    python scripts/check_sequences_corpus.py --output data/sequences    # re-read it and assert every promise

Needs the shared libraries of flite and eSpeak NG; on Debian or Ubuntu:

    apt-get install flite espeak-ng
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import soxr
from speech_engines import FRAME_SECONDS, Voice, active_frames, engine
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SAMPLE_RATE = 16000
CALL_SECONDS = 1.5  # the call, and nothing but the call, fills this much of every utterance
CALL_SPEECH_SECONDS = 1.35  # the call's speech is made to fit into this
ANSWER_SPEECH_SECONDS = 2.1
GAP_SECONDS = 0.3  # silence between two utterances of one file
GRID = 160  # utterances begin and end on multiples of 10 ms, so that their times are exact in decimals
LEVEL_DB = -24.0  # RMS of the active speech of an utterance, relative to full scale
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
# From an engine's output to an utterance


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


def audio_path(output: Path, cut: dict) -> Path:
    return output / Path(cut["recording"]["sources"][0]["source"]).relative_to(AUDIO_ROOT)


def words_of(cut: dict) -> list[str]:
    return [item[0] for item in cut["supervisions"][0]["alignment"]["word"]]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("data/sequences"), help="folder of the corpus")
    make_corpus(parser.parse_args().output)


if __name__ == "__main__":
    main()
