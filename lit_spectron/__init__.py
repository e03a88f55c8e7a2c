"""Spectron as a modular experiment suite: spectrogram-powered spoken language models."""

__version__ = "0.1.0"
