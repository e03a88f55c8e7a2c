#!/usr/bin/env python3
"""Seconds of audio a second that loaders deliver, from the same files, in one run.

    python benchmarks/loader.py --root data/librilight --cuts libriheavy_cuts_small.jsonl.gz

Four readers, in turn, several rounds: soundfile alone (reading each utterance and nothing else), our loader in the
training process, our loader with one worker, and lhotse's K2SpeechRecognitionDataset over the same cuts and batches of
the same budget (`pip install -e ".[lhotse]"`). The table gives the median of each, and its ratio to soundfile alone.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from datamodules.cuts import LIBRIHEAVY_PREFIX, read_cuts, write_cuts
from datamodules.loading import Collate, PromptSplit, ResumableLoader, UtteranceDataset
from datamodules.manifest import Manifest
from datamodules.sampling import BatchLimits, PlannedBatchSampler
from lit_spectron.llms.tokenizer import Tokenizer

RATE_HZ = 16000
BATCH_SECONDS = 160.0


def soundfile_alone(manifest: Manifest) -> Iterator[float]:
    for utterance in manifest:
        with soundfile.SoundFile(utterance.path) as file:
            file.seek(round(utterance.start_seconds * RATE_HZ))
            samples = file.read(round(utterance.duration_seconds * RATE_HZ), dtype="float32")
        yield len(samples) / RATE_HZ


def ours(manifest: Manifest, workers: int) -> Callable[[Manifest], Iterator[float]]:
    sampler = PlannedBatchSampler(manifest.numbers("duration_seconds"), BatchLimits(None, BATCH_SECONDS), True)
    dataset = UtteranceDataset(manifest, RATE_HZ, PromptSplit("fixed", 3.0, 3.0, 0.5, 0))
    loader = ResumableLoader(dataset, sampler, Collate("train", Tokenizer(), RATE_HZ), workers)

    def read(_: Manifest) -> Iterator[float]:
        for batch in loader:
            yield float(batch.lengths.sum()) / RATE_HZ

    return read


def lhotse_k2(manifest: Manifest, folder: Path) -> Callable[[Manifest], Iterator[float]]:
    from lhotse import CutSet
    from lhotse.dataset import AudioSamples, DynamicBucketingSampler, K2SpeechRecognitionDataset
    from torch.utils.data import DataLoader

    write_cuts(folder / "cuts.jsonl.gz", manifest)
    cuts = CutSet.from_file(folder / "cuts.jsonl.gz").to_eager()
    dataset = K2SpeechRecognitionDataset(input_strategy=AudioSamples())

    def read(_: Manifest) -> Iterator[float]:
        sampler = DynamicBucketingSampler(cuts, max_duration=BATCH_SECONDS, shuffle=True, num_buckets=10, seed=0)
        for batch in DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=0):
            yield float(batch["supervisions"]["num_samples"].sum()) / RATE_HZ

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/sequences"), help="corpus folder")
    parser.add_argument("--cuts", default="libriheavy_cuts_train.jsonl.gz", help="manifest, relative to the root")
    parser.add_argument("--rounds", type=int, default=5, help="of each reader")
    arguments = parser.parse_args()
    utterances = read_cuts(arguments.root / arguments.cuts, Path(), LIBRIHEAVY_PREFIX, 0)
    manifest = Manifest.from_utterances(utterances, arguments.root.resolve())
    readers = {
        "soundfile alone": soundfile_alone,
        "ours, in the training process": ours(manifest, 0),
        "ours, one worker": ours(manifest, 1),
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            readers["lhotse, in the training process"] = lhotse_k2(manifest, Path(folder))
        except ImportError:
            print('lhotse is not installed: pip install -e ".[lhotse]" -c constraints.txt')
        speeds: dict[str, list[float]] = {name: [] for name in readers}
        for number in range(arguments.rounds + 1):
            for name, read in readers.items():
                began = time.perf_counter()
                seconds = sum(read(manifest))
                if number:  # the first round warms files and workers up
                    speeds[name].append(seconds / (time.perf_counter() - began))
    alone = statistics.median(speeds["soundfile alone"])
    print("| reader | seconds of audio a second | of soundfile alone |\n|---|---:|---:|")
    for name, values in speeds.items():
        print(f"| {name} | {statistics.median(values):,.0f} | {np.median(values) / alone:.2f} |")


if __name__ == "__main__":
    main()
