"""What `predict` writes."""

from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

import lightning as L
import torch

from callbacks.evidence import Evidence
from lit_spectron.errors import UserError
from lit_spectron.files import make_folder
from lit_spectron.model import split_waveform
from lit_spectron.outputs import write_continuation


class PredictionWriter(L.Callback):
    """Writes the same four files for each utterance as the command `generate`, named by its id (percent-encoded).

    Args:
        directory: Where to; null for ``predictions`` in the run's folder. It must be empty, so that nothing in it is of
            another checkpoint or other prompts.
    """

    def __init__(self, directory: str | None = None):
        self.directory = directory

    def setup(self, trainer, pl_module, stage: str) -> None:
        """
        Raises:
            UserError: The folder holds something, or can't be had.
        """
        if stage != "predict":
            return
        self.folder = Path(self.directory) if self.directory else Path(trainer.log_dir or ".") / "predictions"
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise UserError(f"prediction.directory: {self.folder} is not empty; remove it, or name another")

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if outputs is None:
            return
        make_folder(self.folder)
        model = pl_module.model
        sounds = Evidence(batch, outputs, pl_module.vocoder).continuations
        prompt, _ = split_waveform(batch.waveform, batch.lengths, batch.prompt_samples)
        prompt_log_mel, prompt_frames = model.log_mel(prompt, batch.prompt_samples)
        for index, name in enumerate(batch.ids):
            write_continuation(
                self.folder,
                quote(name, safe=" "),
                model.audio,
                outputs,
                index,
                torch.from_numpy(sounds[index]),
                prompt_log_mel[index, : prompt_frames[index]],
                {"utterance": name, "reference": batch.text[index], "settings": asdict(pl_module.generation)},
            )
