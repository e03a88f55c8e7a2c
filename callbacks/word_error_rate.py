"""Word errors of the generated text and of the generated speech."""

from typing import Literal

from torchmetrics import SumMetric

from callbacks.base import FreeRunningMetric, Ratio
from callbacks.evidence import Evidence
from lit_spectron.evaluators import SpeechRecognizer
from lit_spectron.word_errors import count_errors, english_words, match_beginning, words

NORMALIZATIONS = {"words": words, "english": english_words}


class WordErrorRate(FreeRunningMetric):
    """``wer_prompt``, ``wer_text`` and, with a recogniser, ``wer_speech`` and ``gated_ratio``.

    ``wer_prompt``: the words spoken in the prompt against the best-matching beginning of the generated text. They come
    from the corpus's word times; where it has none, from the recogniser; without one, the utterance is left out.
    ``wer_text``: the whole transcript against the whole generated text.
    ``wer_speech``: what of the generated text follows that beginning against the transcript of the continuation. Where
    the recogniser is not to be trusted (`SpeechRecognizer`), nothing counts as heard.
    ``gated_ratio``: share of continuations of which that is so.

    All are errors over words of the reference, summed over utterances.

    Args:
        recognizer: Listens to continuations, and to prompts without word times.
        normalization: How texts become words. ``words``: lower case, no punctuation but apostrophes; numbers and
            British or American spelling are left as they are. ``english``: as Whisper's authors do it, numbers as
            digits, contractions written out, American spelling; needs the extra ``evaluation``.
    """

    def __init__(
        self,
        recognizer: SpeechRecognizer | None = None,
        normalization: Literal["words", "english"] = "words",
    ) -> None:
        super().__init__()
        self.recognizer = recognizer
        self.words = NORMALIZATIONS[normalization]
        self.metrics = {"wer_prompt": Ratio(), "wer_text": Ratio()}
        if recognizer is not None:
            self.metrics |= {"wer_prompt_left_out": SumMetric(), "wer_speech": Ratio(), "gated_ratio": Ratio()}
            self.metrics["wer_speech_left_out"] = SumMetric()

    def update(self, evidence: Evidence) -> None:
        batch, recognizer = evidence.batch, self.recognizer
        prompts = evidence.prompt_texts(recognizer)
        heard = [None] * len(batch) if recognizer is None else evidence.transcripts(recognizer)
        for i, name in enumerate(batch.ids):
            generated, reference = self.words(evidence.generation.text[i]), self.words(batch.text[i])
            self.add("wer_text", name, count_errors(reference, generated), len(reference))
            text, transcript = prompts[i], heard[i]
            if text is not None:
                prompt = self.words(text)
                errors, end = match_beginning(prompt, generated)
                self.add("wer_prompt", name, errors, len(prompt))
                if transcript is not None:
                    errors = count_errors(generated[end:], self.words(transcript.text))
                    self.add("wer_speech", name, errors, len(generated[end:]))
            if recognizer is not None:
                if transcript is not None:
                    self.add("gated_ratio", name, transcript.gate is not None)
                if text is None:
                    self.leave_out("wer_prompt", name, "no transcript of the prompt")
                if text is None or transcript is None:
                    self.leave_out("wer_speech", name, "no transcript of the prompt or the continuation")
