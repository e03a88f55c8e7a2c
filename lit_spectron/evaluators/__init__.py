from lit_spectron.evaluators.base import (
    Evaluator,
    QualityPredictor,
    SpeakerEmbedder,
    SpeechRecognizer,
    TextAnswerer,
    TextScore,
    TextScorer,
    Transcript,
)
from lit_spectron.evaluators.causal_lm_answerer import CausalLMAnswerer
from lit_spectron.evaluators.causal_lm_scorer import CausalLMScorer
from lit_spectron.evaluators.distill_mos_predictor import DistillMosPredictor
from lit_spectron.evaluators.dnsmos_predictor import DnsmosPredictor
from lit_spectron.evaluators.ecapa_embedder import EcapaEmbedder
from lit_spectron.evaluators.hugging_face_recognizer import HuggingFaceRecognizer, WhisperRecognizer
from lit_spectron.evaluators.resemblyzer_embedder import ResemblyzerEmbedder
from lit_spectron.evaluators.wavlm_embedder import WavLMEmbedder

__all__ = [
    "CausalLMAnswerer",
    "CausalLMScorer",
    "DistillMosPredictor",
    "DnsmosPredictor",
    "EcapaEmbedder",
    "Evaluator",
    "HuggingFaceRecognizer",
    "QualityPredictor",
    "ResemblyzerEmbedder",
    "SpeakerEmbedder",
    "SpeechRecognizer",
    "TextAnswerer",
    "TextScore",
    "TextScorer",
    "Transcript",
    "WavLMEmbedder",
    "WhisperRecognizer",
]
