"""A prepared manifest that is damaged, or says what can't be: one line, never a crash."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from datamodules.manifest import Manifest, Utterance
from lit_spectron.errors import UserError

SCRIPT = """
import random, sys
from pathlib import Path
from datamodules.manifest import Manifest
from lit_spectron.errors import UserError
path, chooser, refused = Path(sys.argv[1]), random.Random(0), 0
whole = path.read_bytes()
for _ in range(400):
    content, place = bytearray(whole), chooser.randrange(len(whole))
    content[place : place + 4] = chooser.randbytes(4)
    damaged = path.with_name("damaged.arrow")
    damaged.write_bytes(content)
    try:
        manifest = Manifest.open(damaged, Path())
        list(manifest), manifest.speakers(), manifest.text_bytes()
    except UserError as error:
        assert "damaged.arrow: " in str(error) and len(str(error).splitlines()) == 1, error
        refused += 1
print(refused)
"""


def write(path: Path, **changes) -> Manifest:
    """Eight utterances with word times, the third of them changed."""
    texts = [f"Côte number {i}" for i in range(8)]
    utterances = [Utterance(f"id{i}", Path(f"{i}.flac"), 1.0, 2.0, f"s{i}", text) for i, text in enumerate(texts)]
    manifest = Manifest.from_utterances(utterances)
    table = manifest.table.to_pydict()
    for name, value in changes.items():
        table[name][2] = value
    with pa.ipc.new_file(str(path), manifest.table.schema) as writer:
        writer.write_table(pa.table(table, schema=manifest.table.schema))
    return manifest


def test_any_damage_is_one_line_or_harmless(tmp_path):
    """In a process of its own, since what is feared ends it."""
    write(tmp_path / "rows.arrow")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "rows.arrow")]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 100


@pytest.mark.parametrize(
    "changes",
    [
        {"start_seconds": float("nan")},
        {"start_seconds": -0.5},
        {"duration_seconds": float("nan")},
        {"duration_seconds": 0.0},
        {"duration_seconds": float("inf")},
    ],
)
def test_impossible_times_are_named(tmp_path, changes):
    write(tmp_path / "rows.arrow", **changes)
    (value,) = changes.values()
    with pytest.raises(UserError, match=rf"rows\.arrow: damaged: utterance 2, id2 .*{value} s"):
        Manifest.open(tmp_path / "rows.arrow", tmp_path)
