from lit_spectron.vocoders.base import Vocoder
from lit_spectron.vocoders.griffin_lim import GriffinLim

__all__ = ["GriffinLim", "Vocoder"]
