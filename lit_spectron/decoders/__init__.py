from lit_spectron.decoders.base import SpectrogramDecoder
from lit_spectron.decoders.flow_matching import FlowMatchingDecoder
from lit_spectron.decoders.melle import MelleDecoder
from lit_spectron.decoders.mlp import MLPDecoder
from lit_spectron.decoders.tacotron import TacotronDecoder

__all__ = ["FlowMatchingDecoder", "MLPDecoder", "MelleDecoder", "SpectrogramDecoder", "TacotronDecoder"]
