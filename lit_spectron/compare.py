"""Runs side by side, by the reports that `test` wrote."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_spectron.bootstrap import interval, resampled_ratios
from lit_spectron.errors import UserError
from lit_spectron.files import appearing_whole, make_folder
from lit_spectron.tables import markdown_table, with_interval

LONGEST_LABEL = 40  # characters of a row's name in the plot: its end tells rows apart
Counts = Mapping[str, Mapping[str, tuple[float, float]]]


@dataclass(frozen=True)
class Row:
    """One run, or one of the references that it was judged beside.

    Attributes:
        name: The folder as it was given; of a reference, with its name.
        metrics: Values by name; None where there was nothing to count.
        intervals: 95 % bounds, of metrics over utterances.
        counts: Of each utterance, numerator and denominator of each metric.
    """

    name: str
    metrics: Mapping[str, float | None]
    intervals: Mapping[str, tuple[float, float]]
    counts: Counts


def read_report(path: Path) -> list[Row]:
    """The rows of a run folder or a ``report.json``: the run itself, then its references.

    Raises:
        UserError: There is no report, or it can't be read as one.
    """
    file = path / "report.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such report; `python -m lit_spectron test` writes it")
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        counts = {name: sample.get("counts", {}) for name, sample in report["samples"].items()}
        rows = [_row(str(path), {**report, "counts": counts})]
        return rows + [_row(f"{path} ({name})", found) for name, found in report.get("references", {}).items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not a report of `test`, or damaged: {type(error).__name__}: {error}") from error


def _row(name: str, found: dict[str, Any]) -> Row:
    metrics = {k: None if v is None else float(v) for k, v in found["metrics"].items()}
    bounds = {k: (float(low), float(high)) for k, (low, high) in found.get("intervals", {}).items()}
    counts = {
        utterance: {metric: (float(a), float(b)) for metric, (a, b) in row.items()}
        for utterance, row in found["counts"].items()
    }
    return Row(name, metrics, bounds, counts)


def difference(first: Counts, second: Counts, metric: str) -> tuple[float, tuple[float, float] | None, int] | None:
    """How much higher a metric is in the second, over the utterances that were judged in both.

    Returns:
        The difference, its 95 % interval by drawing utterances, the same ones for both, and how many there are; None
        where they share fewer than two.
    """
    shared = sorted(name for name in first.keys() & second.keys() if metric in first[name] and metric in second[name])
    if len(shared) < 2:
        return None
    a, b = (np.array([counts[name][metric] for name in shared]) for counts in (first, second))
    if not a[:, 1].sum() or not b[:, 1].sum():
        return None
    drawn = resampled_ratios(*b.T) - resampled_ratios(*a.T)
    value = b[:, 0].sum() / b[:, 1].sum() - a[:, 0].sum() / a[:, 1].sum()
    return float(value), interval(drawn), len(shared)


def comparison(rows: list[Row]) -> str:
    """Tables in Markdown: the metrics, and how they differ from the first row's."""
    metrics = sorted({name for row in rows for name in row.metrics})
    values = [
        [row.name, *(with_interval(row.metrics[m], row.intervals.get(m)) if m in row.metrics else "" for m in metrics)]
        for row in rows
    ]
    lines = ["Values with 95 % bootstrap intervals over utterances.", "", *markdown_table(["run", *metrics], values)]
    differing: list[list[str]] = []
    compared = [m for m in metrics if any(m.removeprefix("test/") in row for row in rows[0].counts.values())]
    for row in rows[1:]:
        found = [difference(rows[0].counts, row.counts, metric.removeprefix("test/")) for metric in compared]
        differing.append([row.name, *("" if d is None else f"{with_interval(*d[:2])}, {d[2]}" for d in found)])
    if compared and differing:
        lines += [
            "",
            f"Minus {rows[0].name}, on the utterances judged in both: difference [95 % interval], utterances.",
            "",
        ]
        lines += markdown_table(["run", *compared], differing)
    return "\n".join(lines) + "\n"


def draw(rows: list[Row], path: Path) -> None:
    """One panel a metric that any row has an interval of, one bar a row, intervals as error bars."""
    from matplotlib.figure import Figure

    metrics = sorted({name for row in rows for name in row.intervals})
    columns = min(4, max(1, len(metrics)))
    lines = -(-len(metrics) // columns) or 1
    figure = Figure(figsize=(3.2 * columns, 0.9 * lines + 0.3 * len(rows) * lines + 0.6), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for panel, metric in zip(panels, metrics, strict=False):
        for place, row in enumerate(rows):
            value, bounds = row.metrics.get(metric), row.intervals.get(metric)
            if value is None:
                continue
            spread = [[max(0.0, value - bounds[0])], [max(0.0, bounds[1] - value)]] if bounds else None
            panel.barh(place, value, xerr=spread, capsize=3, color=f"C{place % 10}")
        panel.set_title(metric, fontsize=9)
        panel.set_yticks(range(len(rows)), [row.name[-LONGEST_LABEL:] for row in rows], fontsize=7)
        panel.tick_params(axis="x", labelsize=7)
    panels[0].invert_yaxis()
    for panel in panels[len(metrics) :]:
        panel.axis("off")
    with appearing_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def compare(runs: list[Path], out: Path | None = None, report: Callable[[str], object] = print) -> None:
    """Reports a comparison of runs, and of the references of the first that has any; with ``out`` also writes it there,
    and a plot beside it.

    Raises:
        UserError: A run has no report, or a damaged one; ``out`` is a folder or the plot itself.
    """
    if out is not None and (out.is_dir() or out.suffix == ".png"):
        raise UserError(f"--out: {out} is no Markdown file; the plot goes beside it")
    found = [read_report(path) for path in runs]
    references = next((rows[1:] for rows in found if rows[1:]), [])
    rows = [rows[0] for rows in found] + references
    text = comparison(rows)
    report(text)
    if out is None:
        return
    make_folder(out.parent)
    with appearing_whole(out) as path:
        path.write_text(text, encoding="utf-8")
    draw(rows, out.with_suffix(".png"))
