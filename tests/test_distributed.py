"""However many processes test, they find the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_spectron.cli import main

ROOT = Path(__file__).parents[1]
IDS = [f"small/s{n}/book/book_0000_{i}" for i in range(3) for n in range(3)]
CALLBACKS = """
trainer:
  callbacks:
  - class_path: callbacks.WordErrorRate
    init_args:
      recognizer: tests.judges.CountingRecognizer
  - class_path: callbacks.SpeakerSimilarity
    init_args:
      embedder: tests.judges.MomentEmbedder
  - class_path: callbacks.GenerationHealth
  - class_path: callbacks.LastCheckpoint
"""


def command(corpus: Path, *arguments: object, processes: int = 1) -> None:
    base = [
        *("--config", "conf/quickstart.yaml", "--config", corpus / "judges.yaml"),
        *("--data.root", corpus, "--data.train_cuts", "cuts.jsonl.gz", "--data.val_cuts", "copy.jsonl.gz"),
        *("--data.test_cuts", "copy.jsonl.gz", "--data.prompt_seconds", "0.5", "--data.batch_size", 3),
        *("--model.generation.max_speech_seconds", 0.4, "--model.generation.max_text_tokens", 3),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    ]
    call = list(map(str, [arguments[0], *base, *arguments[1:]]))
    if processes == 1:
        main(call)
        return
    call = [
        sys.executable,
        "-m",
        "lit_spectron",
        *call,
        "--trainer.strategy",
        "ddp",
        "--trainer.devices",
        str(processes),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_test_finds_the_same_by_two_processes(corpus, tmp_path, monkeypatch):
    """Of seven utterances in batches of three, which one process halves, and of one, that leaves another nothing."""
    monkeypatch.chdir(ROOT)
    judges = corpus / "judges.yaml"
    judges.write_text(CALLBACKS + "  - class_path: callbacks.References\n")
    fit = ("--trainer.max_steps", 1, "--trainer.limit_val_batches", 0, "--trainer.logger.init_args.save_dir", tmp_path)
    command(corpus, "fit", *fit)
    checkpoint = tmp_path / "quickstart/version_0/checkpoints/last.ckpt"
    for count in (7, 1):
        if count == 1:  # which nobody else could continue
            judges.write_text(CALLBACKS)
        (corpus / "ids.txt").write_text("\n".join(IDS[::-1][:count]))
        for processes in (1, 2):
            test = ("--ckpt_path", checkpoint, "--data.test_ids", corpus / "ids.txt")
            command(corpus, "test", *test, "--report.directory", tmp_path / f"{count}_{processes}", processes=processes)
        alone, together = (json.loads((tmp_path / f"{count}_{n}/report.json").read_text()) for n in (1, 2))
        assert len(alone["samples"]) == count and alone["metrics"]["test/wer_speech"] is not None
        for name in ("metrics", "intervals", "samples", "references", "by_speaker", "best", "worst"):
            assert rounded(together[name]) == rounded(alone[name]), name
        written = [{p.name for p in (tmp_path / f"{count}_{n}/samples").iterdir()} for n in (1, 2)]
        assert written[0] == written[1]


def rounded(value):
    """Without losses: they are means over batches, and the second process makes other batches."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items() if not k.startswith("test/loss")}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return round(value, 3) if isinstance(value, float) else value
