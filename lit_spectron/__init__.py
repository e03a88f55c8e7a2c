"""Spectron as a modular experiment suite: spectrogram-powered spoken language models."""

from lit_spectron import torchaudio_guard

__version__ = "0.1.0"

torchaudio_guard.install()
