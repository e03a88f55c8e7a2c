from lit_spectron.decoders.base import SpectrogramDecoder
from lit_spectron.decoders.mlp import MLPDecoder

__all__ = ["MLPDecoder", "SpectrogramDecoder"]
