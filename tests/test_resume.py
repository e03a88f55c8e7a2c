"""A run that was stopped and goes on is the run that was never stopped: the same batches and losses, bit for bit."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from lit_spectron.checkpoint import read_checkpoint
from lit_spectron.cli import main
from lit_spectron.module import LitSpectron

STEPS = 11  # of 3 batches an epoch


def options_of_fit(corpus: Path, out: Path) -> list[str]:
    return [
        *("fit", "--config", "conf/quickstart.yaml", "--trainer.logger.init_args.save_dir", str(out)),
        *("--data.root", str(corpus), "--data.train_cuts", "cuts.jsonl.gz", "--data.val_cuts", "copy.jsonl.gz"),
        *("--data.test_cuts", "copy.jsonl.gz", "--data.prompt_seconds", "0.5", "--data.batch_size", "3"),
        *("--data.prompt_split", "random", "--data.max_prompt_seconds", "1.0"),
        *("--model.llm", "conf/llm/llama_tiny.yaml", "--model.optimizer.total_steps", str(STEPS)),
        *("--trainer.log_every_n_steps", "1", "--trainer.val_check_interval", "5", "--model.generated_utterances", "2"),
        *("--model.generation.max_speech_seconds", "0.2", "--model.generation.max_text_tokens", "2"),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    ]


def fit_processes(corpus: Path, out: Path, *arguments: str, processes: int) -> None:
    base = options_of_fit(corpus, out)
    if processes == 1:
        main([*base, *arguments])
        return
    command = [sys.executable, "-m", "lit_spectron", *base, *arguments]
    several = ["--trainer.devices", str(processes), "--trainer.strategy", "ddp"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *several], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def curve(out: Path, version: int) -> dict[int, tuple[str, ...]]:
    with (out / f"quickstart/version_{version}/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return {int(row["step"]): tuple(v for k, v in row.items() if k.startswith("train/")) for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "workers", "processes"), [(4, (0, 0), 1), (6, (0, 0), 1), (5, (2, 0), 1), (4, (0, 2), 1), (5, (0, 1), 2)]
)
def test_resumed_equals_uninterrupted(corpus, tmp_path, repository, monkeypatch, stop, workers, processes):
    monkeypatch.chdir(repository)
    fit = partial(fit_processes, processes=processes)
    fit(corpus, tmp_path / "whole", "--trainer.max_steps", str(STEPS))
    whole = curve(tmp_path / "whole", 0)
    assert len(whole) == STEPS and len(set(whole.values())) == STEPS
    fit(corpus, tmp_path / "cut", "--trainer.max_steps", str(stop), "--data.workers", str(workers[0]))
    last = tmp_path / "cut/quickstart/version_0/checkpoints/last.ckpt"
    more = ("--ckpt_path", str(last), "--data.workers", str(workers[1]))
    fit(corpus, tmp_path / "cut", "--trainer.max_steps", str(STEPS), *more)
    assert {**curve(tmp_path / "cut", 0), **curve(tmp_path / "cut", 1)} == whole
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_stopped_at_random_moments(corpus, tmp_path, repository):
    """Anywhere in a step, in a validation round, while a checkpoint is written: what was saved last goes on."""
    steps, chooser = 80, random.Random(0)
    callback = {"class_path": "callbacks.LastCheckpoint", "init_args": {"every_n_train_steps": 1}}
    (tmp_path / "callbacks.yaml").write_text(json.dumps({"trainer": {"callbacks": [callback]}}))
    more = ["--config", str(tmp_path / "callbacks.yaml"), "--trainer.max_steps", str(steps)]

    def start(out: Path, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "lit_spectron", *options_of_fit(corpus, out), *more, *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, cwd=repository, stderr=subprocess.PIPE, text=True)

    def finish(process: subprocess.Popen, exit_code: int = 0) -> None:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == exit_code, errors[-3000:]

    finish(start(tmp_path / "whole"))
    whole = curve(tmp_path / "whole", 0)
    assert len(whole) == steps
    signals = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL]
    seen, begun, arguments = {}, [], []
    for version, number in enumerate([*signals, None]):
        process = start(tmp_path / "cut", *arguments)
        rows = tmp_path / f"cut/quickstart/version_{version}/metrics.csv"
        if number is not None:
            while process.poll() is None and not rows.is_file():
                time.sleep(0.01)
            time.sleep(chooser.uniform(0, 1))
            process.send_signal(number)
        finish(process, {None: 0, signal.SIGTERM: 128 + signal.SIGTERM}.get(number, -signal.SIGKILL))
        of_version = curve(tmp_path / "cut", version)
        assert of_version.items() <= whole.items()
        seen |= of_version
        begun.append(min(of_version))
        last = rows.parent / "checkpoints/last.ckpt"
        arguments = ["--ckpt_path", str(last)] if last.exists() else arguments
    assert begun == sorted(set(begun)) and max(seen) == steps - 1
    assert len(whole) - len(seen) <= len(signals)  # a step that was saved, and not yet written down
    shutil.rmtree(tmp_path)


def terminate(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fill_disk(checkpoints: Path) -> None:
    (checkpoints / ".last.ckpt.part").symlink_to("/dev/full")


@pytest.mark.slow
@pytest.mark.parametrize(("interrupt", "exit_code", "saved"), [(terminate, 128 + signal.SIGTERM, 7), (fill_disk, 2, 6)])
def test_interrupted_equals_uninterrupted(
    corpus, tmp_path, repository, monkeypatch, capsys, interrupt, exit_code, saved
):
    """In the seventh step, with a checkpoint every other one."""
    monkeypatch.chdir(repository)
    callback = {"class_path": "callbacks.LastCheckpoint", "init_args": {"every_n_train_steps": 2}}
    (tmp_path / "callbacks.yaml").write_text(json.dumps({"trainer": {"callbacks": [callback]}}))
    fit = partial(fit_processes, processes=1)
    options = ("--config", str(tmp_path / "callbacks.yaml"), "--trainer.max_steps", str(STEPS))
    fit(corpus, tmp_path / "whole", *options)
    cut = tmp_path / "cut/quickstart/version_0/checkpoints"
    step = LitSpectron.training_step

    def interrupted_step(module: LitSpectron, *arguments):
        if module.global_step == 6:
            interrupt(cut)
        return step(module, *arguments)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(LitSpectron, "training_step", interrupted_step)
        fit(corpus, tmp_path / "cut", *options)
    assert end.value.code == exit_code
    assert interrupt == terminate or "no space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert read_checkpoint(cut / "last.ckpt")["global_step"] == saved
    fit(corpus, tmp_path / "cut", *options, "--ckpt_path", str(cut / "last.ckpt"))
    before, after = (curve(tmp_path / "cut", version) for version in (0, 1))
    assert min(before) == 0 and min(after) == saved
    assert {**before, **after} == curve(tmp_path / "whole", 0)
    shutil.rmtree(tmp_path)
