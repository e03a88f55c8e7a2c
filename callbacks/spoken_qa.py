"""Whether a spoken question is answered."""

import re
import unicodedata

from torchmetrics import SumMetric

from callbacks.base import FreeRunningMetric, Ratio
from callbacks.evidence import Evidence
from lit_spectron.evaluators import SpeechRecognizer, TextAnswerer
from lit_spectron.word_errors import match_beginning


class SpokenQA(FreeRunningMetric):
    """``qa_accuracy_text``, with a recogniser ``qa_accuracy_speech``, and with the LLM alone what it knew before.

    An answer is right if any of the right ones occurs in it, word for word, by `answer_words`. The text answer is what
    the model writes after the words of the question (the beginning that matches them best); the spoken one is the
    transcript of the continuation. Utterances without right answers are no questions and not counted.

    ``qa_accuracy_llm_alone``: of the LLM as it was before it learned to hear, given the question as text: the ceiling.
    ``qa_knowledge_kept``: right text answers over right ones of the LLM alone.

    Args:
        recognizer: Listens to the continuations.
        llm_alone: The language model that the run's ``model.llm`` began as; null to leave it out.
    """

    def __init__(self, recognizer: SpeechRecognizer | None = None, llm_alone: TextAnswerer | None = None) -> None:
        super().__init__()
        self.recognizer = recognizer
        self.llm_alone = llm_alone
        self.metrics = {"qa_accuracy_text": Ratio()}
        if recognizer is not None:
            self.metrics |= {"qa_accuracy_speech": Ratio(), "qa_accuracy_speech_left_out": SumMetric()}
        if llm_alone is not None:
            self.metrics |= {"qa_accuracy_llm_alone": Ratio(), "qa_knowledge_kept": Ratio()}
            self.metrics["qa_accuracy_llm_alone_left_out"] = SumMetric()

    def update(self, evidence: Evidence) -> None:
        batch = evidence.batch
        for i, right in enumerate(batch.answers):
            if not right:
                continue
            name, written = batch.ids[i], answer_words(evidence.generation.text[i])
            _, end = match_beginning(answer_words(batch.text[i]), written)
            by_text = is_right(written[end:], right)
            self.add("qa_accuracy_text", name, by_text)
            if self.recognizer is not None:
                transcript = evidence.transcripts(self.recognizer)[i]
                if transcript is None:
                    self.leave_out("qa_accuracy_speech", name, "no transcript of the continuation")
                else:
                    self.add("qa_accuracy_speech", name, is_right(answer_words(transcript.text), right))
            if self.llm_alone is not None:
                answer = evidence.answers(self.llm_alone)[i]
                if answer is None:
                    self.leave_out("qa_accuracy_llm_alone", name, "no answer of the LLM alone")
                else:
                    alone = is_right(answer_words(answer), right)
                    self.add("qa_accuracy_llm_alone", name, alone)
                    self.add("qa_knowledge_kept", name, by_text, alone)


def answer_words(text: str) -> list[str]:
    """Words without accents, case, punctuation and articles.

    ``"The U.S.'s Café-bar, 1,000"`` is ``["uss", "cafe", "bar", "1000"]``: points, apostrophes and commas between
    digits vanish, all other punctuation parts words.
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).lower()
    plain = re.sub(r"[.'’]|(?<=\d),(?=\d)", "", plain)
    return [word for word in re.sub(r"[\W_]", " ", plain).split() if word not in ("a", "an", "the")]


def is_right(answer: list[str], right: list[str]) -> bool:
    """Whether any right answer's words stand in ``answer`` side by side. One of articles only never does."""
    candidates = (answer_words(text) for text in right)
    return any(c and f" {' '.join(c)} " in f" {' '.join(answer)} " for c in candidates)
