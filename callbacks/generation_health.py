"""Signs of speech that never stops or is no speech."""

from callbacks.base import FreeRunningMetric, Ratio
from lit_spectron.audio import frame_level_db
from lit_spectron.module import LitSpectron
from lit_spectron.types import Generation, SpeechBatch


class GenerationHealth(FreeRunningMetric):
    """``stop_rate`` and ``silence_ratio``.

    ``stop_rate``: share of continuations that the learned stop ended, not a length limit or a breaker.
    ``silence_ratio``: share of generated frames that are silent (`GenerationSettings.silence_db`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.metrics = {"stop_rate": Ratio(), "silence_ratio": Ratio()}

    def update(self, module: LitSpectron, batch: SpeechBatch, generation: Generation) -> None:
        level_db = frame_level_db(generation.log_mel)
        for index, name in enumerate(batch.ids):
            frames = int(generation.lengths[index])
            silent = level_db[index, :frames] < generation.silence_level_db[index]
            self.metrics["silence_ratio"].update(int(silent.sum()), frames)
            self.metrics["stop_rate"].update(generation.stop_reason[index] == "stop", 1)
            self.rows[name] = {
                "stop_rate": float(generation.stop_reason[index] == "stop"),
                "silence_ratio": int(silent.sum()) / frames,
            }
