#!/usr/bin/env python3
"""What a manifest of millions of utterances costs: time to the first batch, time to resume, memory.

    python benchmarks/manifest_scale.py --rows 200000 2000000 20000000

For each size, a manifest is made up (all utterances lie in one file of noise), and a fresh process opens it, takes the
first batch, and goes on from the middle of the third epoch, as a resumed run does. One line of a table each.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import soundfile

from datamodules.librilight import LibriLightDataModule
from datamodules.manifest import PLAIN_SCHEMA, ROWS_PER_BATCH, SCHEMA, encode_names
from lit_spectron.llms.tokenizer import Tokenizer

RATE_HZ = 16000
ROWS_AT_ONCE = 500_000
UTTERANCES_A_FILE = 90  # as in Libri-Light
FILE_SECONDS = 60.0
TEXT = "and so it went on from day to day until nobody remembered how it had begun or who had been the first to speak "


def make_manifest(path: Path, rows: int) -> None:
    """Utterances of 3.6 to 20 s with texts of 15 characters a second, 90 a file name, 700 a speaker."""
    generator = np.random.default_rng(0)
    names = {
        "path": pa.array(["noise.flac", *(f"large/{i // 30}/book/{i}.flac" for i in range(rows // UTTERANCES_A_FILE))]),
        "speaker": pa.array([str(i) for i in range(rows // 700 + 1)]),
    }
    with pa.ipc.new_file(str(path), SCHEMA) as writer:
        for start in range(0, rows, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, rows - start)
            seconds = np.clip(generator.gamma(9.0, 1.4, count), 3.6, 20.0).round(3)
            columns = {
                "id": pa.array([f"large/book/utterance_{i}" for i in range(start, start + count)]),
                "path": pa.array(["noise.flac"] * count),
                "start_seconds": pa.array((FILE_SECONDS - seconds) * generator.random(count)),
                "duration_seconds": pa.array(seconds),
                "speaker": pa.array((np.arange(start, start + count) // 700).astype(str)),
                "text": pa.array([(TEXT * 3)[: int(15 * s)] for s in seconds]),
                "words": pa.nulls(count, SCHEMA.field("words").type),
            }
            table = encode_names(pa.table(columns, schema=PLAIN_SCHEMA), names)
            writer.write_table(table, max_chunksize=ROWS_PER_BATCH)


def measure(root: Path) -> dict[str, float]:
    """In a process of its own."""
    began = time.perf_counter()
    audio, llm = SimpleNamespace(sample_rate_hz=RATE_HZ), SimpleNamespace(tokenizer=Tokenizer())
    model = SimpleNamespace(llm=llm, audio=audio, positions_per_second=(10.0, 20.0))
    data = LibriLightDataModule(
        str(root), "rows.arrow", "few.arrow", "few.arrow", batch_size=None, batch_tokens=8000, max_seconds=20.0
    )
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(model=model), global_rank=0, world_size=1)
    data.setup("fit")
    opened = time.perf_counter()
    loader = data.train_dataloader()
    next(iter(loader))
    first = time.perf_counter()
    loader.load_state_dict({**loader.state_dict(), "epoch": 2, "batches": len(loader) // 2})
    next(iter(loader))
    resumed = time.perf_counter()
    return {
        "open": opened - began,
        "first_batch": first - began,
        "resume": resumed - first,
        "private_gib": private_kib() / 2**20,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "batches": len(loader),
    }


def private_kib() -> int:
    """Memory that is not the page cache's, now (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 2_000_000], help="utterances")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    print(
        "| utterances | file, GB | open, s | first batch, s | resume, s | peak memory, GiB | private, GiB | batches |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            noise = 0.1 * np.random.default_rng(0).standard_normal(round(FILE_SECONDS * RATE_HZ))
            soundfile.write(root / "noise.flac", noise, RATE_HZ, subtype="PCM_16")
            make_manifest(root / "rows.arrow", rows)
            make_manifest(root / "few.arrow", 100)
            command = [sys.executable, __file__, "--measure", str(root)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(output.splitlines()[-1])
            size = (root / "rows.arrow").stat().st_size / 1e9
            times = " | ".join(f"{found[name]:.1f}" for name in ("open", "first_batch", "resume"))
            memory = f"{found['peak_gib']:.2f} | {found['private_gib']:.2f}"
            print(f"| {rows:,} | {size:.2f} | {times} | {memory} | {found['batches']:,} |", flush=True)


if __name__ == "__main__":
    main()
