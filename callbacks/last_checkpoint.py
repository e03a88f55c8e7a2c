"""`last.ckpt`: never older than a few steps, and at the end the very last step."""

import os
import signal
import subprocess
import threading

from lightning.pytorch.callbacks import ModelCheckpoint

# Processes that train together have to agree before one of them stops to save.
STEPS_BETWEEN_QUESTIONS = 10


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/last.ckpt`` up to date, and nothing else.

    At the signal USR1 training ends, with exit code 0: it finishes its step (some more where processes train together),
    saves, and has SLURM put the job back into its queue if it is one (``scontrol requeue``). Lightning's own handler of
    that signal gives way: it saves in the middle of a step, when a batch was taken but nothing learned from it, and
    other processes may be elsewhere.

    Args:
        every_n_train_steps: Steps between two saves.
    """

    def __init__(self, every_n_train_steps: int = 100):
        super().__init__(save_last=True, save_top_k=0, every_n_train_steps=every_n_train_steps)
        self._told_to_end = False
        self._step_of_question = 0

    def setup(self, trainer, pl_module, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, self._tell)

    def _tell(self, *_) -> None:
        self._told_to_end = True

    def on_train_batch_end(self, trainer, *args) -> None:
        super().on_train_batch_end(trainer, *args)
        step, every = trainer.global_step, STEPS_BETWEEN_QUESTIONS if trainer.world_size > 1 else 1
        if step == self._step_of_question or step % every:
            return
        self._step_of_question = step
        if trainer.strategy.reduce_boolean_decision(self._told_to_end, all=False):
            self._save_if_new(trainer)
            if trainer.is_global_zero:
                requeue()
            raise SystemExit(0)

    def on_train_end(self, trainer, pl_module) -> None:
        # Lightning's own leaves the tail of a run out where its length is no multiple of the interval.
        self._save_if_new(trainer)

    def _save_if_new(self, trainer) -> None:
        if self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))


def requeue() -> None:
    """Puts this process's job back into SLURM's queue, if it has one; SLURM then ends it."""
    if job := os.environ.get("SLURM_JOB_ID"):
        if "SLURM_ARRAY_JOB_ID" in os.environ:
            job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        subprocess.run(["scontrol", "requeue", job], check=True)
