from callbacks.generation_health import GenerationHealth
from callbacks.last_checkpoint import LastCheckpoint
from callbacks.prediction_writer import PredictionWriter
from callbacks.report import Report
from callbacks.sample_logger import SampleLogger
from callbacks.word_error_rate import WordErrorRate

__all__ = ["GenerationHealth", "LastCheckpoint", "PredictionWriter", "Report", "SampleLogger", "WordErrorRate"]
