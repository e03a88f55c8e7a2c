"""The account of a preparation: what became of every second of the input, and why."""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.sources import KEPT, Piece
from lit_spectron.files import appearing_whole

SPLITS = ("train", "val", "test")
PROBLEMS_SHOWN = 20
BINS = 20  # of the histogram of lengths


@dataclass
class Account:
    """Sums over pieces.

    Attributes:
        samples: By fate and sampling rate.
        pieces: By fate.
        notes: What happened to kept audio, and how often.
        problems: What is wrong, by file, in order; the first thing of each.
    """

    samples: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    pieces: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    problems: dict[str, str] = field(default_factory=dict)

    def add(self, piece: Piece, times: int = 1) -> None:
        """Counts a piece; -1 times takes it back."""
        self.samples[piece.fate][piece.rate_hz] += times * piece.samples
        self.pieces[piece.fate] += times
        if piece.problem:
            self.problems.setdefault(*piece.problem)

    def merge(self, other: "Account") -> None:
        for fate, samples in other.samples.items():
            self.samples[fate] += samples
        self.pieces += other.pieces
        self.notes += other.notes
        self.problems = other.problems | self.problems

    def seconds(self, fate: str) -> float:
        return sum(samples / rate for rate, samples in self.samples[fate].items())

    def lines(self) -> list[str]:
        """The problems, one line each; bytes of a name that are not UTF-8 are written as ``\\xe9``."""
        lines = [" ".join(f"{file}: {what}".split()) for file, what in self.problems.items()]
        return [line.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for line in lines]

    def to_json(self) -> str:
        samples = {fate: sorted(counts.items()) for fate, counts in self.samples.items()}
        return json.dumps([samples, self.pieces, self.notes, self.problems])

    @classmethod
    def from_json(cls, text: str) -> "Account":
        samples, pieces, notes, problems = json.loads(text)
        account = cls(pieces=Counter(pieces), notes=Counter(notes), problems=problems)
        for fate, counts in samples.items():
            account.samples[fate] = Counter(dict(map(tuple, counts)))
        return account


def write_report(
    out: Path, settings: dict[str, Any], account: Account, splits: dict[str, tuple[np.ndarray, int]]
) -> None:
    """Writes `report.json`, `report.md`, `problems.txt` and `lengths.png`.

    Args:
        out: Folder to write into.
        settings: Of the preparation.
        account: Of all of the input.
        splits: Of each split the utterances' seconds (N,), and its number of speakers.
    """
    fates = sorted(account.pieces, key=lambda fate: (fate != KEPT, -account.seconds(fate), fate))
    report = {
        "settings": settings,
        "fates": {
            fate: {
                "pieces": account.pieces[fate],
                "seconds": round(account.seconds(fate), 3),
                "samples_by_rate": {str(rate): n for rate, n in sorted(account.samples[fate].items())},
            }
            for fate in fates
        },
        "notes": {name: n for name, n in sorted(account.notes.items()) if n},
        "problems": len(account.problems),
        "splits": {
            split: {"utterances": len(seconds), "seconds": round(float(seconds.sum()), 3), "speakers": speakers}
            for split, (seconds, speakers) in splits.items()
        },
    }
    texts = {
        "report.json": json.dumps(report, indent=1),
        "report.md": markdown(report, account, splits),
        "problems.txt": "\n".join(account.lines()),
    }
    for name, text in texts.items():
        with appearing_whole(out / name) as partial:
            partial.write_text(text + "\n" * bool(text), encoding="utf-8")
    _draw_lengths(out / "lengths.png", {split: seconds for split, (seconds, _) in splits.items()})


def markdown(report: dict[str, Any], account: Account, splits: dict[str, tuple[np.ndarray, int]]) -> str:
    """The report to read."""
    total = sum(account.seconds(fate) for fate in account.pieces)
    lines = ["# Preparation", "", "| what became of the input | pieces | hours | share |", "|---|---:|---:|---:|"]
    for fate, row in report["fates"].items():
        lines.append(
            f"| {fate} | {row['pieces']:,} | {row['seconds'] / 3600:,.4f} | {row['seconds'] / max(total, 1e-9):.2%} |"
        )
    lines += [f"| all | {account.pieces.total():,} | {total / 3600:,.4f} | |", ""]
    lines += [f"- {name}: {n:,} times" for name, n in report["notes"].items()]
    lines += [
        "",
        "| split | utterances | hours | speakers | seconds: shortest, median, longest |",
        "|---|---:|---:|---:|---|",
    ]
    for split, row in report["splits"].items():
        seconds = splits[split][0]
        spread = ", ".join(f"{x:.1f}" for x in np.quantile(seconds, [0, 0.5, 1])) if len(seconds) else ""
        lines.append(
            f"| {split} | {row['utterances']:,} | {row['seconds'] / 3600:,.2f} | {row['speakers']} | {spread} |"
        )
    speakers = sum(count for _, count in splits.values())
    for split, (seconds, _) in splits.items():
        if not len(seconds):
            share = "lower shares give" if split == "train" else f"--{split}_share {1 / max(speakers, 1):.2g} gives"
            lines.append(f"- {split} is empty: too few speakers ({speakers}); {share} it one")
    lines += [
        "",
        "No speaker is in two splits.",
        "",
        "```",
        *histogram(np.concatenate([s for s, _ in splits.values()])),
        "```",
    ]
    lines += ["", f"{len(account.problems)} problems, one line each in problems.txt", ""]
    lines += [f"- {line}" for line in account.lines()[:PROBLEMS_SHOWN]]
    return "\n".join(lines)


def histogram(seconds: np.ndarray) -> list[str]:
    """Lengths as lines of text."""
    if not len(seconds):
        return []
    counts, edges = np.histogram(seconds, BINS)
    widths = np.ceil(50 * counts / counts.max()).astype(int)
    rows = zip(edges[:-1], edges[1:], counts, widths, strict=True)
    return [f"{a:6.1f} .. {b:6.1f} s {n:10,} {'#' * width}" for a, b, n, width in rows]


def _draw_lengths(path: Path, seconds: dict[str, np.ndarray]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.hist(list(seconds.values()), BINS * 2, stacked=True, label=list(seconds))
    axes.set(xlabel="length of utterance (s)", ylabel="utterances")
    axes.legend()
    with appearing_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
