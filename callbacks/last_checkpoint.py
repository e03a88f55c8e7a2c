"""`last.ckpt`: never older than a few steps, and at the end the very last step."""

import os
import signal
import subprocess
import sys
import threading
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.tensor import DTensor

from lit_spectron.errors import UserError

# Processes that train together have to agree before one of them stops to save.
STEPS_BETWEEN_QUESTIONS = 10


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/last.ckpt`` up to date, and nothing else.

    At the signal USR1 training ends, with exit code 0: it finishes its step (some more where processes train together),
    saves, and has SLURM put the job back into its queue if it is one (``scontrol requeue``). At TERM and INT (Ctrl-C)
    it does the same with exit codes 143 and 130 and nothing queued; told twice, it ends at once. Lightning's own
    handlers of these signals give way: they save in the middle of a step, when a batch was taken but nothing learned
    from it and other processes may be elsewhere, or not at all.

    Weights that are not finite any more are not saved: training ends with an error, and what was saved before stays.

    Args:
        every_n_train_steps: Steps between two saves.
    """

    def __init__(self, every_n_train_steps: int = 100):
        super().__init__(save_last=True, save_top_k=0, every_n_train_steps=every_n_train_steps)
        self._told_to_end: int | None = None  # by this signal
        self._step_of_question = 0
        self._of_interrupts: Any = None  # the handler that there was before

    def setup(self, trainer, pl_module, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, self._tell)

    def on_train_start(self, trainer, pl_module) -> None:
        super().on_train_start(trainer, pl_module)
        if threading.current_thread() is threading.main_thread():
            # Not before Lightning's own, which it would call first; Lightning removes it when training is over.
            signal.signal(signal.SIGTERM, self._tell)
            self._of_interrupts = signal.signal(signal.SIGINT, self._tell)
        # Lightning's processes would ask one another about the signal in every step, and wait for their devices.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None

    def _tell(self, number: int, *_) -> None:
        self._told_to_end = number
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._heed_interrupts()

    def _heed_interrupts(self) -> None:
        """As before training."""
        if self._of_interrupts is not None:
            signal.signal(signal.SIGINT, self._of_interrupts)
            self._of_interrupts = None

    def on_exception(self, trainer, pl_module, exception) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._heed_interrupts()

    def on_train_batch_end(self, trainer, *args) -> None:
        super().on_train_batch_end(trainer, *args)
        step, every = trainer.global_step, STEPS_BETWEEN_QUESTIONS if trainer.world_size > 1 else 1
        if step == self._step_of_question or step % every:
            return
        self._step_of_question = step
        if trainer.strategy.reduce_boolean_decision(self._told_to_end is not None, all=False):
            self._save_if_new(trainer)
            trainer._logger_connector.update_train_step_metrics()  # Lightning would log this step after this hook
            number = self._told_to_end or signal.SIGUSR1  # where another process was told
            to_be_queued = number == signal.SIGUSR1
            if trainer.is_global_zero and to_be_queued:
                requeue()
            elif trainer.is_global_zero:
                print(f"interrupted; saved step {step}", file=sys.stderr)
            raise SystemExit(0 if to_be_queued else 128 + number)

    def on_train_end(self, trainer, pl_module) -> None:
        # Lightning's own leaves the tail of a run out where its length is no multiple of the interval.
        self._save_if_new(trainer)
        self._heed_interrupts()

    def _save_if_new(self, trainer) -> None:
        if self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_last_checkpoint(self, trainer, monitor_candidates) -> None:
        # Where processes share parameters, each looks at its own part.
        trained = (p.detach() for p in trainer.lightning_module.parameters() if p.requires_grad)
        own = (p.to_local() if isinstance(p, DTensor) else p for p in trained)
        if not trainer.strategy.reduce_boolean_decision(all(bool(p.isfinite().all()) for p in own)):
            last = self._last_global_step_saved
            kept = f"the last checkpoint is of step {last}" if last else "none was saved before"
            raise UserError(f"training has diverged: weights are not finite at step {trainer.global_step}; {kept}")
        super()._save_last_checkpoint(trainer, monitor_candidates)


def requeue() -> None:
    """Puts this process's job back into SLURM's queue, if it has one; SLURM then ends it."""
    if job := os.environ.get("SLURM_JOB_ID"):
        if "SLURM_ARRAY_JOB_ID" in os.environ:
            job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        subprocess.run(["scontrol", "requeue", job], check=True)
