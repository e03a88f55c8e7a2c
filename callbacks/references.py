"""What the model's figures lie between: real speech, the vocoder's copy of it, and another reader at random."""

import random
from dataclasses import replace
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from callbacks.base import FreeRunningMetric
from callbacks.evidence import Evidence, shared_evidence
from lit_spectron.errors import UserError
from lit_spectron.evaluators import Evaluator, SpeechRecognizer, Transcript
from lit_spectron.model import split_waveform

ReferenceRow = Literal["ceiling", "resynthesis", "floor"]
# Beginnings of names of metrics that would say nothing of a row, or hold by construction.
MEANINGLESS: dict[str, tuple[str, ...]] = {
    "ceiling": ("qa_", "wer_text", "stop_rate", "length_ratio"),
    "resynthesis": ("qa_", "wer_text", "wer_prompt", "repetition", "stop_rate", "length_ratio"),
    "floor": (
        *("qa_", "mos", "gated_ratio", "speaker_similarity_mismatched", "repetition", "stop_rate", "length_ratio"),
        *("silence_ratio", "frame_copy_ratio", "steady_ratio"),
    ),
}


class References(L.Callback):
    """Judges, in `test`, what was really said instead of what the model says, by the same metrics as the model.

    ``ceiling``: the true text and the true continuation as it was recorded.
    ``resynthesis``: the same text, and the log-mel of the true continuation through the model's vocoder: what a
    perfect spectrogram would reach.
    ``floor``: another speaker's true continuation, and words in random order: the transcript's as text, and those
    that a recogniser hears as speech.

    `Report` writes them beside the model. Where there is one speaker only, there is no floor, and a warning says so.
    Metrics that would say nothing of a row are left out of it (`MEANINGLESS`).

    Args:
        rows: Which of them.
    """

    def __init__(self, rows: list[ReferenceRow] = ["ceiling", "resynthesis", "floor"]) -> None:  # noqa: B006 - for YAML
        self.rows = rows

    def _possible_rows(self, datamodule: L.LightningDataModule) -> list[ReferenceRow]:
        """All, but for the floor where there is no second speaker."""
        speakers = getattr(datamodule, "speakers", None)  # questions' data module has none, nor continuations
        if "floor" not in self.rows or speakers is None or len(speakers("test")) > 1:
            return self.rows
        rank_zero_warn("callbacks.References: no row floor: split test holds no other speaker")
        return [row for row in self.rows if row != "floor"]

    def on_test_epoch_start(self, trainer, pl_module) -> None:
        own = [callback for callback in trainer.callbacks if isinstance(callback, FreeRunningMetric)]
        self.metrics: dict[str, list[FreeRunningMetric]] = {
            row: [metric.fresh() for metric in own if not all(n.startswith(MEANINGLESS[row]) for n in metric.metrics)]
            for row in self._possible_rows(trainer.datamodule)
        }
        self._found: dict[tuple[Evaluator, str | bytes], Any] = {}
        for metrics in self.metrics.values():
            for metric in metrics:
                metric.start(pl_module)

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if outputs is None:
            return
        rest = batch.lengths - batch.prompt_samples
        if not bool((rest > 0).all()):
            raise UserError("callbacks.References: utterances without a continuation, such as questions, have none")
        model, vocoder = pl_module.model, pl_module.vocoder
        given = shared_evidence(batch, outputs, vocoder)
        # What is one utterance's ceiling is another's floor, in some later batch.
        self._found |= given.found
        given.found = self._found
        _, sound = split_waveform(batch.waveform, batch.lengths, batch.prompt_samples)
        log_mel, frames = model.log_mel(sound, rest)
        stops = ["stop"] * len(batch)
        truth = replace(outputs, text=batch.text, log_mel=log_mel, lengths=frames, stop_reason=stops)
        for row, metrics in self.metrics.items():
            if row == "ceiling":
                evidence = Evidence(
                    batch, truth, vocoder, [s[:n].cpu().numpy() for s, n in zip(sound, rest, strict=True)]
                )
            elif row == "resynthesis":
                evidence = Evidence(batch, truth, vocoder)
            else:
                rate, data = model.audio.sample_rate_hz, trainer.datamodule
                others = [data.continuation_by_another("test", name, rate) for name in batch.ids]
                jumbled = [jumble(text, name) for text, name in zip(batch.text, batch.ids, strict=True)]
                evidence = JumbledEvidence(batch, replace(truth, text=jumbled), vocoder, others)
            evidence.share(given)
            for metric in metrics:
                metric.update(evidence)

    def on_test_epoch_end(self, trainer, pl_module) -> None:
        self.values: dict[str, dict[str, Tensor]] = {
            row: {
                f"test/{name}": value
                for metric in metrics
                for name, value in metric.compute().items()
                if not name.startswith(MEANINGLESS[row])
            }
            for row, metrics in self.metrics.items()
        }
        self._found.clear()


class JumbledEvidence(Evidence):
    """What is heard comes in random order."""

    def transcripts(self, recognizer: SpeechRecognizer) -> list[Transcript | None]:
        heard = zip(super().transcripts(recognizer), self.batch.ids, strict=True)
        return [transcript and replace(transcript, text=jumble(transcript.text, name)) for transcript, name in heard]


def jumble(text: str, name: str) -> str:
    """The words in an order that depends on the name only."""
    order = text.split()
    random.Random(name).shuffle(order)
    return " ".join(order)
