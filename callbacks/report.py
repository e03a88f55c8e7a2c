"""`report.json` and `report.md` after `test`."""

import json
import platform
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import lightning as L
import numpy as np
import torch
from torch import Tensor

from callbacks.base import FreeRunningMetric, gathered
from callbacks.evidence import Evidence, shared_evidence
from callbacks.references import References
from lit_spectron import __version__
from lit_spectron.audio_files import write_audio
from lit_spectron.bootstrap import intervals
from lit_spectron.errors import UserError
from lit_spectron.files import appearing_whole, make_folder
from lit_spectron.tables import markdown_table, with_interval

RANKED_BY = ("wer_speech", "wer_text", "wer_prompt")
MORE_IS_BETTER = ("speaker_similarity", "mos", "qa_", "stop_rate")


class Report(L.Callback):
    """Writes what a test found, by all processes: every metric with its 95 % interval, the same by speaker, the best
    and the worst samples with their sounds, and every sample.

    Args:
        directory: Where to; null for the run's folder.
        ranked_by: Metric of the best and the worst samples; null for the first of wer_speech, wer_text and wer_prompt
            that there is.
        ranked_samples: So many best and so many worst ones are written to ``samples/`` beside the report.
    """

    def __init__(self, directory: str | None = None, ranked_by: str | None = None, ranked_samples: int = 3):
        self.directory = directory
        self.ranked_by = ranked_by
        self.ranked_samples = ranked_samples

    def setup(self, trainer, pl_module, stage: str) -> None:
        names = [name for metric in _metrics(trainer) for name in metric.metrics]
        if stage == "test" and self.ranked_by and self.ranked_by not in names:
            raise UserError(
                f"report.ranked_by: no callback finds {self.ranked_by}, but {', '.join(names) or 'nothing'}"
            )
        self._ranked_by = self.ranked_by or next((name for name in RANKED_BY if name in names), None)

    def on_test_epoch_start(self, trainer, pl_module) -> None:
        self._samples: dict[str, dict[str, Any]] = {}
        self._seconds: list[dict[str, float]] = []
        self._sounds: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._unranked: Evidence | None = None

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if outputs is None:
            return
        evidence = shared_evidence(batch, outputs, pl_module.vocoder)
        # Both still grow while the callbacks after this one judge the batch.
        self._seconds.append(evidence.seconds)
        self._unranked = evidence
        for i, name in enumerate(batch.ids):
            self._samples[name] = {
                "speaker": batch.speakers[i],
                "reference": batch.text[i],
                "generated": outputs.text[i],
                "text_stop_reason": outputs.text_stop_reason[i],
                "stop_reason": outputs.stop_reason[i],
                "seconds": round(evidence.audio.frames_to_seconds(int(outputs.lengths[i])), 3),
            }

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        self._rank(trainer)

    def on_test_epoch_end(self, trainer, pl_module) -> None:
        self._rank(trainer)

    def _rank(self, trainer) -> None:
        """Keeps the sounds of the last batch where they are among the best and the worst so far."""
        evidence, self._unranked = self._unranked, None
        if evidence is None or self._ranked_by is None:
            return
        rows = {k: row for metric in _metrics(trainer) for k, row in metric.rows.items() if self._ranked_by in row}
        best, worst = self._extremes(rows)
        sounds = dict(zip(evidence.batch.ids, zip(evidence.prompts, evidence.continuations, strict=True), strict=True))
        self._sounds = {name: (self._sounds | sounds)[name] for name in dict.fromkeys(best + worst)}

    def _extremes(self, rows: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[str]]:
        """Names of the best and of the worst, each from its end."""
        by, sign = self._ranked_by or "", -1 if (self._ranked_by or "").startswith(MORE_IS_BETTER) else 1
        ordered = sorted((name for name, row in rows.items() if by in row), key=lambda n: (sign * rows[n][by], n))
        return ordered[: self.ranked_samples], ordered[::-1][: self.ranked_samples]

    def on_test_end(self, trainer, pl_module) -> None:
        metrics = _metrics(trainer)
        for metric in metrics:
            for name, found in metric.rows.items():
                self._samples.setdefault(name, {}).update(found)
        samples = _merged(gathered(self._samples))
        values = {k: v for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
        counts = joined_counts(metrics, values)
        references = {
            row: (callback.values[row], joined_counts(judges, callback.values[row]))
            for callback in trainer.callbacks
            if isinstance(callback, References)
            for row, judges in callback.metrics.items()
        }
        sounds = _merged(gathered(self._sounds))
        seconds = sum((Counter(found) for process in gathered(self._seconds) for found in process), Counter[str]())
        if not trainer.is_global_zero:
            return
        for name, row in counts.items():
            samples[name]["counts"] = row
        best, worst = self._extremes(samples)
        directory = Path(self.directory or trainer.log_dir or ".")
        rate = pl_module.vocoder.audio.sample_rate_hz
        if best:
            make_folder(directory / "samples")
        for name in dict.fromkeys(best + worst):
            for sound, suffix in zip(sounds[name], ("prompt.wav", "wav"), strict=True):
                write_audio(directory / "samples" / f"{file_name(name)}.{suffix}", sound, rate)
        report = {
            **figures(values, counts),
            "references": {row: {**figures(*found), "counts": found[1]} for row, found in references.items()},
            "by_speaker": by_speaker(samples),
            "ranked_by": self._ranked_by,
            "best": best,
            "worst": worst,
            "seconds": dict(seconds),  # of all processes together
            "checkpoint": trainer.ckpt_path,
            "versions": {"lit_spectron": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "evaluators": {e.name: e.version for metric in metrics for e in metric.evaluators},
            "samples": samples,
        }
        make_folder(directory)
        with appearing_whole(directory / "report.json") as path:
            path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        with appearing_whole(directory / "report.md") as path:
            path.write_text(as_markdown(report), encoding="utf-8")
        print(f"report: {directory / 'report.md'}")


def _metrics(trainer) -> list[FreeRunningMetric]:
    return [callback for callback in trainer.callbacks if isinstance(callback, FreeRunningMetric)]


def _merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """By name, whichever process found what."""
    return dict(sorted((name, value) for part in parts for name, value in part.items()))


def joined_counts(
    metrics: list[FreeRunningMetric], found: Mapping[str, Any]
) -> dict[str, dict[str, tuple[float, float]]]:
    """Of each utterance, numerators and denominators of what was found (``test/NAME``), by the metrics of all
    processes, so that each of them has to ask."""
    mine: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for metric in metrics:
        for name, row in metric.counts.items():
            mine[name] |= {k: pair for k, pair in row.items() if f"test/{k}" in found}
    return _merged(gathered(dict(mine)))


def figures(found: Mapping[str, Tensor], counts: dict[str, dict[str, tuple[float, float]]]) -> dict[str, Any]:
    """Metrics and their intervals; NaN is no JSON, and stands for a metric that had nothing to count.

    Args:
        found: Metrics by name, ``test/`` before it.
        counts: Of each utterance, numerator and denominator of each metric, by its bare name.
    """
    return {
        "metrics": {k: float(v) if v.isfinite() else None for k, v in sorted(found.items())},
        "intervals": {f"test/{name}": bounds for name, bounds in intervals(counts).items() if f"test/{name}" in found},
    }


def by_speaker(samples: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The metrics over each speaker's utterances alone."""
    sums: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for sample in samples.values():
        row = sums[sample["speaker"]]
        for name, pair in {"utterances": (1, 0), **sample.get("counts", {})}.items():
            row[name] = tuple(map(sum, zip(row.get(name, (0, 0)), pair, strict=True)))  # type: ignore[assignment]
    return {
        speaker: {"utterances": int(row.pop("utterances")[0])} | {k: a / b for k, (a, b) in row.items() if b}
        for speaker, row in sorted(sums.items())
    }


def file_name(utterance: str) -> str:
    return quote(utterance, safe=" ")


def as_markdown(report: dict[str, Any]) -> str:
    """A report as tables."""
    lines = ["# Test report", "", f"Checkpoint: `{report['checkpoint']}`", ""]
    columns = {"model": report, **report.get("references", {})}
    names = dict.fromkeys(name for column in columns.values() for name in column["metrics"])
    lines += markdown_table(
        ["metric", *columns],
        (
            [
                name,
                *(
                    with_interval(column["metrics"][name], column.get("intervals", {}).get(name))
                    if name in column["metrics"]
                    else ""
                    for column in columns.values()
                ),
            ]
            for name in names
        ),
    )
    lines += ["", "In brackets: 95 % bootstrap intervals over utterances."]
    if report["by_speaker"]:
        shown = list(dict.fromkeys(k for row in report["by_speaker"].values() for k in row))
        lines += ["", "## By speaker", ""]
        lines += markdown_table(
            ["speaker", *shown],
            (
                [who, *(str(row[n]) if n == "utterances" else f"{row[n]:.4f}" if n in row else "" for n in shown)]
                for who, row in report["by_speaker"].items()
            ),
        )
    samples, by = report["samples"], report.get("ranked_by")
    if report["seconds"]:
        speech = sum(sample["seconds"] for sample in samples.values())
        lines += [
            "",
            "## Time",
            "",
            f"{len(samples)} samples, {speech:.1f} s of generated speech; all rows together.",
            "",
        ]
        parts = sorted(report["seconds"].items(), key=lambda part: -part[1])
        lines += markdown_table(
            ["part", "seconds", "for a second of speech"],
            ([part, f"{seconds:.1f}", f"{seconds / speech:.3f}" if speech else ""] for part, seconds in parts),
        )
    for end in ("best", "worst"):
        if report.get(end):
            lines += [
                "",
                f"## The {end} by {by}",
                "",
                "Sounds: `samples/UTTERANCE.wav`, `samples/UTTERANCE.prompt.wav`.",
            ]
            rows = ([n, f"{samples[n][by]:.4f}", samples[n]["reference"], samples[n]["generated"]] for n in report[end])
            lines += ["", *markdown_table(["utterance", str(by), "reference", "generated"], rows)]
    lines += ["", "## Samples", ""]
    lines += markdown_table(
        ["utterance", "reference", "generated", "stop", "seconds"],
        ([n, s["reference"], s["generated"], s["stop_reason"], f"{s['seconds']:.2f}"] for n, s in samples.items()),
    )
    return "\n".join(lines) + "\n"
