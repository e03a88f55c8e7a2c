"""Word errors of the generated text."""

from callbacks.base import FreeRunningMetric, Ratio
from lit_spectron.module import LitSpectron
from lit_spectron.types import Generation, SpeechBatch
from lit_spectron.word_errors import count_errors, match_beginning, words


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
