"""Word errors of the generated text."""

import re

import jiwer

from callbacks.base import FreeRunningMetric, Ratio
from lit_spectron.module import LitSpectron
from lit_spectron.types import Generation, SpeechBatch


def words(text: str) -> list[str]:
    """Lower-case words without punctuation: ``"Well, X-ray!"`` is ``["well", "x", "ray"]``; apostrophes stay."""
    return re.sub(r"[^\w']|_", " ", text.lower()).split()


def count_errors(reference: list[str], hypothesis: list[str]) -> int:
    """Substitutions, deletions and insertions that turn one into the other."""
    if not reference:
        return len(hypothesis)
    result = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
    return result.substitutions + result.deletions + result.insertions


def match_beginning(reference: list[str], hypothesis: list[str]) -> tuple[int, int]:
    """The beginning of ``hypothesis`` that is nearest to ``reference``: an edit distance with a free end.

    Returns:
        Errors, and the length in words of the shortest best beginning.
    """
    distance = list(range(len(hypothesis) + 1))
    for row, wanted in enumerate(reference, start=1):
        previous, distance = distance, [row]
        for column, found in enumerate(hypothesis, start=1):
            distance.append(
                min(previous[column - 1] + (wanted != found), previous[column] + 1, distance[column - 1] + 1)
            )
    best = min(distance)
    return best, distance.index(best)


class WordErrorRate(FreeRunningMetric):
    """``wer_prompt`` and ``wer_text``.

    ``wer_prompt``: the words spoken in the prompt, from the corpus's word times, against the best-matching beginning
    of the generated text. Utterances without word times are left out of it.
    ``wer_text``: the whole transcript against the whole generated text.

    Text is compared as lower-case words without punctuation; numbers and spellings are left as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.metrics = {"wer_prompt": Ratio(), "wer_text": Ratio()}

    def update(self, module: LitSpectron, batch: SpeechBatch, generation: Generation) -> None:
        for index, name in enumerate(batch.ids):
            generated, reference = words(generation.text[index]), words(batch.text[index])
            errors = count_errors(reference, generated)
            self.metrics["wer_text"].update(errors, len(reference))
            self.rows[name] = {"wer_text": errors / max(1, len(reference))}
            prompt_text = batch.prompt_text[index]
            if prompt_text is None:
                self.metrics["wer_prompt"].update(0, 0)
            else:
                prompt = words(prompt_text)
                errors, _ = match_beginning(prompt, generated)
                self.metrics["wer_prompt"].update(errors, len(prompt))
                self.rows[name]["wer_prompt"] = errors / max(1, len(prompt))
