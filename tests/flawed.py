"""A corpus with every known flaw, and what tests of its preparation share."""

import json
from pathlib import Path

import numpy as np
import soundfile

from datamodules.manifest import Manifest
from datamodules.preparation import Settings, prepare
from lit_spectron.errors import UserError

RATE = 16000


def settings(root: Path, **changes) -> Settings:
    values = {
        "root": str(root),
        "layout": "librilight",
        "cuts": (),
        "audio_prefix": "download/librilight",
        "text_index": 0,
        "sample_rate_hz": RATE,
        "min_seconds": 1.0,
        "max_seconds": 4.0,
        "max_gap_seconds": 1.0,
        "verify": False,
        "recognizer": None,
        "language": None,
        "word_times": False,
        "min_characters_per_second": 1.0,
        "max_characters_per_second": 40.0,
        "max_disagreement": None,
        "val_share": 0.2,
        "test_share": 0.2,
    }
    return Settings(**{**values, **changes})


def run(root: Path, out: Path, jobs: int = 1, shard: tuple[int, int] = (0, 1), **changes) -> dict:
    prepare(settings(root, **changes), out, jobs, shard, "cpu", 4)
    return json.loads((out / "report.json").read_text()) if (out / "report.json").is_file() else {}


def noise(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    shape = (round(seconds * rate), channels) if channels > 1 else round(seconds * rate)
    return 0.1 * np.random.default_rng(round(1000 * seconds)).standard_normal(shape)


def add(root: Path, name: str, samples: np.ndarray, description: dict | None, rate: int = RATE) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="PCM_16")
    if description is not None:
        path.with_suffix(".json").write_text(json.dumps(description), encoding="utf-8")
    return path


def flawed_corpus(root: Path) -> int:
    """A tree in Libri-Light's layout with every known flaw; returns its samples at 16 kHz, as far as headers tell."""
    whole = {"speaker": "a", "voice_activity": [[0.5, 2.0], [2.2, 3.9], [5.5, 8.0]]}
    add(root, "small/a/one/good.flac", noise(9.0), whole)
    add(root, "medium/a/two/good.flac", noise(9.0), whole)  # one speaker in two folders
    add(root, "small/b/één/größe_日本.wav", noise(6.0), {"speaker": "é", "voice_activity": [[0.0, 3.0], [4.5, 5.0]]})
    truncated = add(
        root, "small/b/x/truncated.flac", noise(8.0), {"speaker": "b", "voice_activity": [[0, 3], [4.5, 7.5]]}
    )
    truncated.write_bytes(truncated.read_bytes()[: truncated.stat().st_size // 2])
    add(root, "small/b/x/empty.wav", np.zeros(0), {"speaker": "b", "voice_activity": [[0, 1]]})
    (root / "small/b/x/zero_bytes.flac").touch()
    add(root, "small/b/x/rate.wav", noise(3.0, 22050), {"speaker": "b", "voice_activity": [[0, 3]]}, 22050)
    add(root, "small/b/x/stereo.wav", noise(2.0, channels=2), {"speaker": "b", "voice_activity": [[0, 2]]})
    add(root, "small/c/x/silent.flac", noise(2.0), {"speaker": "c", "voice_activity": []})
    add(root, "small/c/x/no_activity.flac", noise(2.0), {"speaker": "c"})
    add(root, "small/c/x/no_description.flac", noise(2.0), None)
    add(root, "small/c/x/broken_description.flac", noise(2.0), None).with_suffix(".json").write_text("{")
    add(root, "small/c/x/beyond.flac", noise(3.0), {"speaker": "c", "voice_activity": [[0.5, 99.0]]})
    add(root, "small/d/x/long.flac", noise(60.0), {"speaker": "d", "voice_activity": [[0.0, 60.0]]})
    seconds = 9 + 9 + 6 + 8 + 2 + 2 + 2 + 2 + 2 + 3 + 60
    return seconds * RATE


def total(report: dict, rate: int = RATE) -> int:
    return sum(fate["samples_by_rate"].get(str(rate), 0) for fate in report["fates"].values())


def rows(out: Path, root: Path) -> list:
    found = []
    for split in ("train", "val", "test"):
        try:
            found += list(Manifest.open(out / f"{split}.arrow", root))
        except UserError:  # an empty split
            continue
    return found


def contents(out: Path) -> dict[str, bytes]:
    tables = ("train.arrow", "val.arrow", "test.arrow", "dropped.tsv")
    names = (*tables, "report.json", "report.md", "problems.txt", "lengths.png")
    return {name: (out / name).read_bytes() for name in names}
