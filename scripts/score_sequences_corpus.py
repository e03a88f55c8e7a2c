#!/usr/bin/env python3
"""Prints how well a Whisper recogniser understands each voice of the corpus that make_sequences_corpus.py makes.

The word error rate on the real audio is the ceiling for anything that is judged by transcribing generated audio. It
is given for whole utterances and for the answers alone (everything after the call).

    python scripts/score_sequences_corpus.py --corpus data/sequences --recognizer path/to/whisper-tiny.en
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import jiwer
import numpy as np
import soundfile
import torch
from make_sequences_corpus import CALL_SECONDS, CALL_WORDS, SAMPLE_RATE, audio_path, manifest, read_manifest
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import logging

BATCH = 10
Transcriber = Callable[[list[np.ndarray]], list[str]]


def normalise(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", "", text.lower()).split())


def load_transcriber(folder: Path) -> Transcriber:
    """A function from waveforms to normalised transcripts."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    processor = WhisperProcessor.from_pretrained(folder)
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def transcribe(waveforms: list[np.ndarray]) -> list[str]:
        transcripts = []
        for first in range(0, len(waveforms), BATCH):
            batch = waveforms[first : first + BATCH]
            features = processor(batch, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            tokens = model.generate(features, max_new_tokens=40)
            transcripts += map(normalise, processor.batch_decode(tokens, skip_special_tokens=True))
        return transcripts

    return transcribe


def load_cut(corpus: Path, cut: dict) -> np.ndarray:
    start, frames = round(cut["start"] * SAMPLE_RATE), round(cut["duration"] * SAMPLE_RATE)
    return soundfile.read(audio_path(corpus, cut), frames=frames, start=start, dtype="float32")[0]


def missed_words(references: list[str], transcripts: list[str]) -> Counter[str]:
    """How often each word is not recognised as itself."""
    result = jiwer.process_words(references, transcripts)
    return Counter(
        word
        for words, chunks in zip(result.references, result.alignments, strict=True)
        for chunk in chunks
        if chunk.type in ("substitute", "delete")
        for word in words[chunk.ref_start_idx : chunk.ref_end_idx]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("data/sequences"))
    parser.add_argument("--recognizer", type=Path, required=True, help="Hugging Face folder of a Whisper model")
    parser.add_argument("--splits", nargs="+", default=["validation", "test"])
    parser.add_argument("--errors", action="store_true", help="also print every wrong transcript and the words missed")
    arguments = parser.parse_args()
    transcribe = load_transcriber(arguments.recognizer)
    cuts = defaultdict(list)
    for split in arguments.splits:
        for cut in read_manifest(manifest(arguments.corpus, split)):
            cuts[cut["supervisions"][0]["speaker"]].append(cut)
    missed: Counter[str] = Counter()
    print("| voice | utterances | WER, whole | WER, answer alone |\n|---|---:|---:|---:|")
    for voice, own in cuts.items():
        audio = [load_cut(arguments.corpus, cut) for cut in own]
        references = [normalise(cut["supervisions"][0]["custom"]["texts"][0]) for cut in own]
        answers = [" ".join(reference.split()[CALL_WORDS:]) for reference in references]
        heard = transcribe(audio)
        heard_answers = transcribe([samples[round(CALL_SECONDS * SAMPLE_RATE) :] for samples in audio])
        rates = f"{jiwer.wer(references, heard):.3f} | {jiwer.wer(answers, heard_answers):.3f}"
        print(f"| {voice} | {len(own)} | {rates} |", flush=True)
        missed += missed_words(references, heard) + missed_words(answers, heard_answers)
        if arguments.errors:
            for reference, transcript in zip(references + answers, heard + heard_answers, strict=True):
                if reference != transcript:
                    print(f"    {reference} -> {transcript}")
    if arguments.errors:
        print(missed.most_common())


if __name__ == "__main__":
    main()
