from callbacks.evidence import Evidence
from callbacks.generation_health import GenerationHealth
from callbacks.last_checkpoint import LastCheckpoint
from callbacks.log_perplexity import LogPerplexity
from callbacks.mean_opinion_score import MeanOpinionScore
from callbacks.prediction_writer import PredictionWriter
from callbacks.references import References
from callbacks.report import Report
from callbacks.sample_logger import SampleLogger
from callbacks.speaker_similarity import SpeakerSimilarity
from callbacks.spoken_qa import SpokenQA
from callbacks.throughput import Throughput
from callbacks.word_error_rate import WordErrorRate

__all__ = [
    "Evidence",
    "GenerationHealth",
    "LastCheckpoint",
    "LogPerplexity",
    "MeanOpinionScore",
    "PredictionWriter",
    "References",
    "Report",
    "SampleLogger",
    "SpeakerSimilarity",
    "SpokenQA",
    "Throughput",
    "WordErrorRate",
]
