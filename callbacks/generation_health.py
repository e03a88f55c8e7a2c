"""Signs of speech that never stops or is no speech."""

from callbacks.base import FreeRunningMetric, Ratio
from lit_spectron.generation import silent_frames
from lit_spectron.module import LitSpectron
from lit_spectron.types import Generation, SpeechBatch


class GenerationHealth(FreeRunningMetric):
    """``stop_rate`` and ``silence_ratio``.

    ``stop_rate``: share of continuations that the learned stop ended, not a length limit or a breaker.
    ``silence_ratio``: share of generated frames that are silent (`silent_frames`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.metrics = {"stop_rate": Ratio(), "silence_ratio": Ratio()}

    def update(self, module: LitSpectron, batch: SpeechBatch, generation: Generation) -> None:
        all_silent, all_frames = silent_frames(generation).tolist(), generation.lengths.tolist()
        for index, (name, silent, frames) in enumerate(zip(batch.ids, all_silent, all_frames, strict=True)):
            self.metrics["silence_ratio"].update(silent, frames)
            self.metrics["stop_rate"].update(generation.stop_reason[index] == "stop", 1)
            self.rows[name] = {
                "stop_rate": float(generation.stop_reason[index] == "stop"),
                "silence_ratio": silent / frames,
            }
