"""Whether what is said makes sense."""

from torchmetrics import SumMetric

from callbacks.base import FreeRunningMetric, Ratio
from callbacks.evidence import Evidence
from lit_spectron.evaluators import CausalLMScorer, SpeechRecognizer, TextScorer


class LogPerplexity(FreeRunningMetric):
    """``log_perplexity`` and ``log_perplexity_total``, of the transcripts of the continuations under a text LM.

    ``log_perplexity``: nats a token: all nats over all tokens. Does not grow with length, but a short or repetitive
    text may score well.
    ``log_perplexity_total``: nats a transcript, mean over transcripts: comparable at equal durations only.

    Empty transcripts have none: they are counted in ``log_perplexity_left_out`` and left out of both.

    Args:
        recognizer: Listens to the continuations.
        scorer: The text LM.

    Source: Nachmani et al. 2024, section 4.1.
    """

    def __init__(self, recognizer: SpeechRecognizer, scorer: TextScorer = CausalLMScorer()) -> None:
        super().__init__()
        self.recognizer = recognizer
        self.scorer = scorer
        self.metrics = {"log_perplexity": Ratio(), "log_perplexity_total": Ratio()}
        self.metrics["log_perplexity_left_out"] = SumMetric()

    def update(self, evidence: Evidence) -> None:
        for name, score in zip(evidence.batch.ids, evidence.text_scores(self.recognizer, self.scorer), strict=True):
            if score is None or not score.tokens:
                self.leave_out("log_perplexity", name, "no transcript, or nothing in it to score")
            else:
                self.add("log_perplexity", name, score.nats, score.tokens)
                self.add("log_perplexity_total", name, score.nats)
