"""What `predict` writes."""

from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

import lightning as L
import torch

from callbacks.evidence import Evidence
from lit_spectron.model import split_waveform
from lit_spectron.outputs import write_continuation


class PredictionWriter(L.Callback):
    """Writes the same four files for each utterance as the command `generate`, named by its id (percent-encoded).

    Args:
        directory: Where to; null for ``predictions`` in the run's folder.
    """

    def __init__(self, directory: str | None = None):
        self.directory = directory

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if outputs is None:
            return
        directory = Path(self.directory) if self.directory else Path(trainer.log_dir or ".") / "predictions"
        directory.mkdir(parents=True, exist_ok=True)
        model = pl_module.model
        sounds = Evidence(batch, outputs, pl_module.vocoder).continuations
        prompt, _ = split_waveform(batch.waveform, batch.lengths, batch.prompt_samples)
        prompt_log_mel, prompt_frames = model.log_mel(prompt, batch.prompt_samples)
        for index, name in enumerate(batch.ids):
            write_continuation(
                directory,
                quote(name, safe=" "),
                model.audio,
                outputs,
                index,
                torch.from_numpy(sounds[index]),
                prompt_log_mel[index, : prompt_frames[index]],
                {"utterance": name, "reference": batch.text[index], "settings": asdict(pl_module.generation)},
            )
