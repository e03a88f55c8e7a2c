"""`report.json` and `report.md` after `test`."""

import json
import platform
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import lightning as L
import torch

from callbacks.base import FreeRunningMetric
from callbacks.evidence import shared_evidence
from lit_spectron import __version__
from lit_spectron.files import appearing_whole
from lit_spectron.module import LitSpectron
from lit_spectron.types import Generation, SpeechBatch


class Report(L.Callback):
    """Writes what a test found: every metric, the same by speaker, and every sample.

    Args:
        directory: Where to; null for the run's folder.
    """

    def __init__(self, directory: str | None = None):
        self.directory = directory
        self._samples: dict[str, dict[str, Any]] = {}
        self._seconds: list[dict[str, float]] = []

    def on_test_epoch_start(self, trainer, pl_module) -> None:
        self._samples, self._seconds = {}, []

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if outputs is not None:
            self._add(pl_module, batch, outputs)
            # Still grows while the callbacks after this one judge the batch.
            self._seconds.append(shared_evidence(batch, outputs, pl_module.vocoder).seconds)

    def _add(self, module: LitSpectron, batch: SpeechBatch, generation: Generation) -> None:
        audio = module.model.audio
        for i, name in enumerate(batch.ids):
            self._samples[name] = {
                "speaker": batch.speakers[i],
                "reference": batch.text[i],
                "generated": generation.text[i],
                "text_stop_reason": generation.text_stop_reason[i],
                "stop_reason": generation.stop_reason[i],
                "seconds": round(audio.frames_to_seconds(int(generation.lengths[i])), 3),
            }

    def on_test_end(self, trainer, pl_module) -> None:
        for callback in trainer.callbacks:
            if isinstance(callback, FreeRunningMetric):
                for name, row in callback.rows.items():
                    self._samples.setdefault(name, {}).update(row)
        self._gather(trainer.world_size)
        if not trainer.is_global_zero:
            return
        evaluators = {
            e.name: e.version for c in trainer.callbacks if isinstance(c, FreeRunningMetric) for e in c.evaluators
        }
        report = {
            # NaN is no JSON, and stands for a metric that had nothing to count.
            "metrics": {
                k: None if v.isnan() else float(v)
                for k, v in sorted(trainer.callback_metrics.items())
                if k.startswith("test/")
            },
            "by_speaker": self._by_speaker(),
            "seconds": dict(sum(map(Counter, self._seconds), Counter())),  # of all processes
            "checkpoint": trainer.ckpt_path,
            "versions": {"lit_spectron": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "evaluators": evaluators,
            "samples": self._samples,
        }
        directory = Path(self.directory or trainer.log_dir or ".")
        directory.mkdir(parents=True, exist_ok=True)
        with appearing_whole(directory / "report.json") as path:
            path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        with appearing_whole(directory / "report.md") as path:
            path.write_text(as_markdown(report), encoding="utf-8")
        print(f"report: {directory / 'report.md'}")

    def _gather(self, processes: int) -> None:
        """What every process found."""
        if processes > 1:
            shares: list[Any] = [None] * processes
            torch.distributed.all_gather_object(shares, (self._samples, [dict(s) for s in self._seconds]))
            self._samples = {name: sample for samples, _ in shares for name, sample in samples.items()}
            self._seconds = [seconds for _, spent in shares for seconds in spent]

    def _by_speaker(self) -> dict[str, dict[str, float]]:
        """Means over each speaker's utterances."""
        groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for sample in self._samples.values():
            groups[sample["speaker"]].append(sample)
        table = {}
        for speaker, samples in sorted(groups.items()):
            names = dict.fromkeys(k for s in samples for k, v in s.items() if isinstance(v, float) and k != "seconds")
            means = {k: sum(s[k] for s in samples if k in s) / sum(k in s for s in samples) for k in names}
            table[speaker] = {"utterances": len(samples), **means}
        return table


def as_markdown(report: dict[str, Any]) -> str:
    """A report as tables."""
    lines = ["# Test report", "", f"Checkpoint: `{report['checkpoint']}`", "", "| metric | value |", "|---|---|"]
    lines += [
        f"| {name} | {'none' if value is None else f'{value:.4f}'} |" for name, value in report["metrics"].items()
    ]
    if report["by_speaker"]:
        names = list(dict.fromkeys(k for row in report["by_speaker"].values() for k in row))
        lines += ["", "## By speaker (means over utterances)", "", "| speaker | " + " | ".join(names) + " |"]
        lines += ["|---" * (len(names) + 1) + "|"]
        for speaker, row in report["by_speaker"].items():
            cells = [str(row[n]) if n == "utterances" else f"{row[n]:.4f}" if n in row else "" for n in names]
            lines.append(f"| {speaker} | " + " | ".join(cells) + " |")
    lines += ["", "## Samples", "", "| utterance | reference | generated | stop | seconds |", "|---|---|---|---|---|"]
    for name, s in report["samples"].items():
        cells = [name, s["reference"], s["generated"], s["stop_reason"], f"{s['seconds']:.2f}"]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
