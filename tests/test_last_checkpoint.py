"""What becomes of a training that is told to end."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from callbacks import LastCheckpoint
from lit_spectron.errors import UserError


class Linear(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.told_in: int | None = None  # batch
        self.told_by = signal.SIGUSR1
        self.steps = 0

    def training_step(self, batch, index):
        if index == self.told_in:
            os.kill(os.getpid(), self.told_by)
        self.steps += 1
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module: Linear, folder: Path, start: Path | None = None, every_n_train_steps: int = 100, **options) -> None:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(
        max_steps=6,
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[LastCheckpoint(every_n_train_steps)],
        **quiet,
        **options,
    )
    trainer.fit(module, DataLoader(torch.ones(6, 2, 4), batch_size=None), ckpt_path=start)


@pytest.mark.parametrize("array", [False, True])
def test_it_saves_has_its_job_queued_again_and_ends(tmp_path, monkeypatch, array):
    slurm = tmp_path / "scontrol"
    slurm.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    slurm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    if array:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    module = Linear()
    module.told_in = 2
    with pytest.raises(SystemExit) as end:
        fit(module, tmp_path)
    assert end.value.code == 0 and module.steps == 3
    assert (tmp_path / "asked").read_text().split() == ["requeue", "70_3" if array else "77"]
    last = tmp_path / "checkpoints/last.ckpt"
    state = torch.load(last, weights_only=True)
    assert state["global_step"] == 3 and torch.equal(state["state_dict"]["layer.weight"], module.layer.weight)
    resumed = Linear()
    fit(resumed, tmp_path / "again", last)
    assert resumed.steps == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_terminate_it_saves_and_ends(tmp_path, monkeypatch, number):
    monkeypatch.setenv("SLURM_JOB_ID", "77")  # of a job that must not be queued again: there is no scontrol to ask
    monkeypatch.setenv("PATH", str(tmp_path))
    before = signal.getsignal(number)
    module = Linear()
    module.told_in, module.told_by = 2, number
    with pytest.raises(SystemExit) as end:
        fit(module, tmp_path)
    assert end.value.code == 128 + number and module.steps == 3
    assert signal.getsignal(number) == before
    resumed = Linear()
    fit(resumed, tmp_path / "again", tmp_path / "checkpoints/last.ckpt")
    assert resumed.steps == 3
    assert signal.getsignal(number) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_a_whole_group_is_told_ends_as_cleanly_with_workers(tmp_path, number):
    """Ctrl-C, and what `timeout` sends, reach the process that reads audio, too."""
    command = [sys.executable, "-m", "lit_spectron", "fit", "--config", "conf/quickstart.yaml", "--data.workers", "1"]
    command += ["--trainer.max_steps", "100000", "--trainer.logger.init_args.save_dir", str(tmp_path)]
    checkpoints = tmp_path / "quickstart/version_0/checkpoints"
    heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # what runs the tests may ignore it
    with (
        (tmp_path / "log").open("w+") as log,
        subprocess.Popen(
            [*command, "--trainer.log_every_n_steps", "1"],
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=heed,
        ) as process,
    ):
        metrics = tmp_path / "quickstart/version_0/metrics.csv"
        while process.poll() is None and not metrics.is_file():  # it trains
            time.sleep(0.1)
        os.killpg(process.pid, number)
        assert process.wait(60) == 128 + number
        log.seek(0)
        assert "Traceback" not in (said := log.read()) and "interrupted; saved step" in said
    assert (checkpoints / "last.ckpt").is_file()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


class Diverging(Linear):
    """Its loss is no number from the fourth step on."""

    def training_step(self, batch, index):
        return super().training_step(batch, index) * (float("nan") if self.steps > 3 else 1.0)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    with pytest.raises(UserError, match=r"diverged: .* at step 4; the last checkpoint is of step 2"):
        fit(Diverging(), tmp_path, every_n_train_steps=2)
    state = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 2 and state["state_dict"]["layer.weight"].isfinite().all()


class Counting(Linear):
    """Fails where processes ask one another more often than they have to."""

    def on_train_start(self):
        self.asked, broadcast = 0, torch.distributed.broadcast

        def counted(*arguments, **options):
            self.asked += 1
            return broadcast(*arguments, **options)

        torch.distributed.broadcast = counted

    def on_train_end(self):
        assert self.trainer.global_step and not self.asked


@pytest.mark.slow
def test_no_step_asks_other_processes_about_a_signal(tmp_path):
    fit(Counting(), tmp_path, devices=2, strategy="ddp_spawn")
