"""`last.ckpt`: never older than a few steps, and at the end the very last step."""

from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/last.ckpt`` up to date, and nothing else.

    Args:
        every_n_train_steps: Steps between two saves.
    """

    def __init__(self, every_n_train_steps: int = 100):
        super().__init__(save_last=True, save_top_k=0, every_n_train_steps=every_n_train_steps)

    def on_train_end(self, trainer, pl_module) -> None:
        # Lightning's own leaves the tail of a run out where its length is no multiple of the interval.
        if self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
