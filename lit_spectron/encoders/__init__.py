from lit_spectron.encoders.base import SpeechEncoder
from lit_spectron.encoders.conformer import ConformerEncoder

__all__ = ["ConformerEncoder", "SpeechEncoder"]
