"""Signs of speech that never stops, or is no speech."""

from torch import Tensor

from callbacks.base import FreeRunningMetric, Ratio
from callbacks.evidence import Evidence
from lit_spectron.audio import frame_level_db
from lit_spectron.generation import copied_frames, silent_frames
from lit_spectron.word_errors import words

STRETCH_SECONDS = 0.5
STEADY_DB = 6.0  # real speech moves more than this in 97 of 100 stretches, noise and hum in none


class GenerationHealth(FreeRunningMetric):
    """What can be told from the text and the spectrogram alone.

    ``stop_rate``: share of continuations that the learned stop ended, not a length limit or a breaker.
    ``silence_ratio``: share of generated frames that are silent (`silent_frames`).
    ``frame_copy_ratio``: share of consecutive frames that do not change (`copied_frames`).
    ``steady_ratio``: share of half-second stretches whose level hardly moves (`steady_stretches`), as that of noise,
    hum and silence, and of no speech.
    ``length_ratio``: duration of what was generated over that of the true continuations, where there are any.
    ``repetition``: share of the generated text's word n-grams that stood in the same text before.

    Args:
        repetition_words: Length of the n-grams.

    Source: of ``repetition``: Welleck et al. 2020, "seq-rep-n".
    """

    def __init__(self, repetition_words: int = 4) -> None:
        super().__init__()
        self.repetition_words = repetition_words
        names = ("stop_rate", "silence_ratio", "frame_copy_ratio", "steady_ratio", "length_ratio", "repetition")
        self.metrics = {name: Ratio() for name in names}

    def update(self, evidence: Evidence) -> None:
        batch, generation, audio = evidence.batch, evidence.generation, evidence.audio
        all_frames, levels_db = generation.lengths.tolist(), frame_level_db(generation.log_mel).cpu()
        silent, copied = silent_frames(generation).tolist(), copied_frames(generation).tolist()
        generated = audio.frames_to_samples(generation.lengths).tolist()
        true = (batch.lengths - batch.prompt_samples).tolist()
        for i, (name, frames) in enumerate(zip(batch.ids, all_frames, strict=True)):
            self.add("stop_rate", name, generation.stop_reason[i] == "stop")
            self.add("silence_ratio", name, silent[i], frames)
            self.add("frame_copy_ratio", name, copied[i], frames - 1)
            stretch = audio.seconds_to_frames(STRETCH_SECONDS)
            self.add("steady_ratio", name, *steady_stretches(levels_db[i, :frames], stretch))
            if true[i]:
                self.add("length_ratio", name, generated[i], true[i])
            self.add("repetition", name, *repeated_ngrams(words(generation.text[i]), self.repetition_words))


def steady_stretches(levels_db: Tensor, frames: int) -> tuple[int, int]:
    """How many stretches of so many frames of levels (F,) stay within `STEADY_DB`, of how many."""
    if len(levels_db) < frames:
        return 0, 0
    stretches = levels_db.unfold(0, frames, 1)
    return int((stretches.amax(1) - stretches.amin(1) < STEADY_DB).sum()), len(stretches)


def repeated_ngrams(tokens: list[str], size: int) -> tuple[int, int]:
    """How many n-grams are not the first of their kind, of how many."""
    ngrams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return len(ngrams) - len(set(ngrams)), len(ngrams)
