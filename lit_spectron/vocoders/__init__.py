from lit_spectron.vocoders.base import Vocoder
from lit_spectron.vocoders.griffin_lim import GriffinLim
from lit_spectron.vocoders.hifi_gan import HifiGan
from lit_spectron.vocoders.vocos import Vocos

__all__ = ["GriffinLim", "HifiGan", "Vocoder", "Vocos"]
