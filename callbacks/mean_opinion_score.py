"""How the continuation sounds."""

from torchmetrics import SumMetric

from callbacks.base import FreeRunningMetric, Ratio
from callbacks.evidence import Evidence
from lit_spectron.evaluators import DnsmosPredictor, QualityPredictor


class MeanOpinionScore(FreeRunningMetric):
    """``mos``: predicted opinion score of the continuations, mean over utterances.

    Predictors rate smooth speech above real speech: never read it alone, and compare with real continuations.

    Args:
        predictor: Of opinions.
        suffix: Of the metric's name, for a second callback with another predictor.
    """

    def __init__(self, predictor: QualityPredictor = DnsmosPredictor(), suffix: str = "") -> None:
        super().__init__()
        self.predictor = predictor
        self.name = f"mos{suffix}"
        self.metrics = {self.name: Ratio(), f"{self.name}_left_out": SumMetric()}

    def update(self, evidence: Evidence) -> None:
        for name, opinion in zip(evidence.batch.ids, evidence.opinions(self.predictor), strict=True):
            if opinion is None:
                self.leave_out(self.name, name, "no prediction")
            else:
                self.add(self.name, name, opinion)
