from lit_spectron.encoders.base import SpeechEncoder
from lit_spectron.encoders.conformer import ConformerEncoder
from lit_spectron.encoders.wav2vec2 import Wav2Vec2Encoder
from lit_spectron.encoders.wav2vec2_bert import Wav2Vec2BertEncoder
from lit_spectron.encoders.whisper import WhisperEncoder, WhisperTranscriptEncoder

__all__ = [
    "ConformerEncoder",
    "SpeechEncoder",
    "Wav2Vec2BertEncoder",
    "Wav2Vec2Encoder",
    "WhisperEncoder",
    "WhisperTranscriptEncoder",
]
