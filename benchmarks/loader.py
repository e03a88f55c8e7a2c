#!/usr/bin/env python3
"""Seconds of audio a second that loaders deliver, from the same files, in one run.

    python benchmarks/loader.py --root data/librilight --cuts libriheavy_cuts_small.jsonl.gz

Readers, in turn, several rounds: soundfile alone (each utterance read, and nothing else), our loader, and lhotse's
K2SpeechRecognitionDataset over the same cuts and batches of the same budget (`pip install -e ".[lhotse]"`), each in the
training process and in one worker of torch's DataLoader, which hands over the same batches (soundfile alone hands its
samples over, too). The table gives the medians of each, by the clock and by the CPU time of both processes together,
and their ratios to those of soundfile alone in the same place. On a busy machine, trust the CPU time (Linux).
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.cuts import LIBRIHEAVY_PREFIX, read_cuts, write_cuts
from datamodules.loading import Collate, PromptSplit, ResumableLoader, UtteranceDataset
from datamodules.manifest import Manifest
from datamodules.sampling import BatchLimits, PlannedBatchSampler
from lit_spectron.llms.tokenizer import Tokenizer

RATE_HZ = 16000
BATCH_SECONDS = 160.0


def cpu_seconds() -> float:
    """That this process and its workers have taken so far, all threads."""
    processes = [os.getpid(), *(worker.pid for worker in multiprocessing.active_children())]
    times = [Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[11:13] for number in processes]
    return sum(int(user) + int(system) for user, system in times) / os.sysconf("SC_CLK_TCK")


def planned(manifest: Manifest) -> PlannedBatchSampler:
    return PlannedBatchSampler(manifest.numbers("duration_seconds"), BatchLimits(None, BATCH_SECONDS), True)


class SoundfileAlone(Dataset):
    """Batches of samples in a row, without padding, text or checks."""

    def __init__(self, manifest: Manifest):
        self.manifest = manifest

    def __getitem__(self, batch: list[int]) -> torch.Tensor:
        utterances = [self.manifest[index] for index in batch]
        counts = [round(utterance.duration_seconds * RATE_HZ) for utterance in utterances]
        samples = torch.empty(sum(counts))
        parts = np.split(samples.numpy(), np.cumsum(counts)[:-1])
        for utterance, part in zip(utterances, parts, strict=True):
            with soundfile.SoundFile(utterance.path) as file:
                file.seek(round(utterance.start_seconds * RATE_HZ))
                file.read(out=part)
        return samples


def in_batches(dataset: Any, sampler: Any, workers: int) -> DataLoader:
    return DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=workers, persistent_workers=workers > 0)


def soundfile_alone(manifest: Manifest, workers: int) -> Callable[[], Iterator[float]]:
    loader = in_batches(SoundfileAlone(manifest), planned(manifest), workers)
    return lambda: (len(samples) / RATE_HZ for samples in loader)


def ours(manifest: Manifest, workers: int) -> Callable[[], Iterator[float]]:
    dataset = UtteranceDataset(manifest, RATE_HZ, PromptSplit("fixed", 3.0, 3.0, 0.5, 0))
    loader = ResumableLoader(dataset, planned(manifest), Collate("train", Tokenizer(), RATE_HZ), workers)
    return lambda: (float(batch.lengths.sum()) / RATE_HZ for batch in loader)


def lhotse_k2(manifest: Manifest, folder: Path, workers: int) -> Callable[[], Iterator[float]]:
    from lhotse import CutSet
    from lhotse.dataset import AudioSamples, DynamicBucketingSampler, K2SpeechRecognitionDataset

    write_cuts(folder / "cuts.jsonl.gz", manifest)
    cuts = CutSet.from_file(folder / "cuts.jsonl.gz").drop_alignments().to_eager()
    sampler = DynamicBucketingSampler(cuts, max_duration=BATCH_SECONDS, shuffle=True, num_buckets=10, seed=0)
    loader = in_batches(K2SpeechRecognitionDataset(input_strategy=AudioSamples()), sampler, workers)
    return lambda: (float(batch["supervisions"]["num_samples"].sum()) / RATE_HZ for batch in loader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/sequences"), help="corpus folder")
    parser.add_argument("--cuts", default="libriheavy_cuts_train.jsonl.gz", help="manifest, relative to the root")
    parser.add_argument("--rounds", type=int, default=5, help="of each reader")
    arguments = parser.parse_args()
    utterances = read_cuts(arguments.root / arguments.cuts, Path(), LIBRIHEAVY_PREFIX, 0)
    manifest = Manifest.from_utterances(utterances, arguments.root.resolve())
    places = {"in the training process": 0, "one worker": 1}
    with tempfile.TemporaryDirectory() as folder:
        readers: dict[str, dict[str, Callable[[], Iterator[float]]]] = {}
        for place, workers in places.items():
            readers[place] = {
                "soundfile alone": soundfile_alone(manifest, workers),
                "ours": ours(manifest, workers),
            }
            try:
                readers[place]["lhotse"] = lhotse_k2(manifest, Path(folder), workers)
            except ImportError:
                print('lhotse is not installed: pip install -e ".[lhotse]" -c constraints.txt')
        speeds: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        for number in range(arguments.rounds + 1):
            for place, of_place in readers.items():
                for name, read in of_place.items():
                    began = time.perf_counter(), cpu_seconds()
                    seconds = sum(read())
                    if number:  # the first round warms files and workers up
                        clock, cpu = time.perf_counter() - began[0], cpu_seconds() - began[1]
                        speeds[place, name].append((seconds / clock, seconds / cpu))
    print("| where | reader | seconds of audio a second | of soundfile alone | a second of CPU | of soundfile alone |")
    print("|---|---|---:|---:|---:|---:|")
    medians = {key: [statistics.median(column) for column in zip(*rows, strict=True)] for key, rows in speeds.items()}
    for (place, name), values in medians.items():
        of_alone = zip(values, medians[place, "soundfile alone"], strict=True)
        cells = " | ".join(f"{value:,.0f} | {value / alone:.2f}" for value, alone in of_alone)
        print(f"| {place} | {name} | {cells} |")


if __name__ == "__main__":
    main()
