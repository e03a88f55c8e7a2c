#!/usr/bin/env python3
"""Asserts everything that the corpus of make_sequences_corpus.py promises, and prints its counts."""

import argparse
import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import soundfile
from make_sequences_corpus import (
    ANSWER_WORDS,
    CALL_SECONDS,
    CALL_WORDS,
    GRID,
    MANIFESTS,
    MAXIMUM_BYTES,
    QUIET,
    SAMPLE_RATE,
    SEEK_ERROR,
    SPECIAL_TOKENS,
    SPLITS,
    SUBSET,
    VOICES,
    Text,
    audio_path,
    level_gain,
    manifest,
    read_manifest,
    seconds,
    split_texts,
    words_of,
)
from speech_engines import FRAME_SECONDS, active_frames, fail
from tokenizers import Tokenizer


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
    check_corpus(parser.parse_args().output)


if __name__ == "__main__":
    main()
