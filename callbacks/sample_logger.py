"""Text, audio and pictures of free-running samples in TensorBoard."""

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.evidence import shared_evidence
from lit_spectron.figures import spectrogram_figure
from lit_spectron.model import split_waveform
from lit_spectron.types import Generation, SpeechBatch


class SampleLogger(L.Callback):
    """Logs the first samples of every validation and test round.

    Each sample is a text (prompt, reference, generated), three sounds (prompt, the true continuation through the
    vocoder, the generated continuation) and one picture of the three spectrograms side by side.

    Args:
        samples: How many.
    """

    def __init__(self, samples: int = 4):
        self.samples = samples
        self._logged = 0

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        self._logged = 0

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self._log(trainer, pl_module, outputs, batch, "val")

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self._log(trainer, pl_module, outputs, batch, "test")

    def _log(self, trainer, module, generation: Generation | None, batch: SpeechBatch, stage: str) -> None:
        boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        count = min(self.samples - self._logged, len(batch))
        if generation is None or count <= 0 or not boards or not trainer.is_global_zero:
            return
        board, model, rate = boards[0], module.model, module.model.audio.sample_rate_hz
        prompt, truth = split_waveform(batch.waveform, batch.lengths, batch.prompt_samples)
        prompt_mel, prompt_frames = model.log_mel(prompt, batch.prompt_samples)
        truth_mel, truth_frames = model.log_mel(truth, batch.lengths - batch.prompt_samples)
        resynthesised = module.vocoder(truth_mel[:count], truth_frames[:count])
        spoken = shared_evidence(batch, generation, module.vocoder).continuations
        for i in range(count):
            tag, step = f"{stage}_sample_{self._logged + i}", trainer.global_step
            text = {
                "utterance": batch.ids[i],
                "prompt": batch.prompt_text[i] or "(no word times)",
                "reference": batch.text[i],
                "generated": generation.text[i],
                "stop": f"text {generation.text_stop_reason[i]}, speech {generation.stop_reason[i]}",
            }
            board.add_text(tag, "\n".join(f"- **{key}**: {value}" for key, value in text.items()), step)
            sounds = {
                "prompt": prompt[i, : batch.prompt_samples[i]],
                "true_continuation_resynthesised": resynthesised[i, : model.audio.frames_to_samples(truth_frames[i])],
                "generated": torch.from_numpy(spoken[i]),
            }
            for name, sound in sounds.items():
                board.add_audio(f"{tag}/{name}", sound.float().clamp(-1, 1).cpu()[None], step, sample_rate=rate)
            panels = {
                "prompt": prompt_mel[i, : prompt_frames[i]],
                "true continuation": truth_mel[i, : truth_frames[i]],
                "generated": generation.log_mel[i, : generation.lengths[i]],
            }
            board.add_figure(tag, spectrogram_figure(panels, model.audio, generation.text[i]), step)
        self._logged += count
