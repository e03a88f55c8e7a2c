"""Phase by iteration: a vocoder without weights."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_spectron.audio import AudioSpec
from lit_spectron.masking import lengths_to_mask
from lit_spectron.vocoders.base import Vocoder

INVERSE_UPDATES = 8
TINY = 1e-8


class GriffinLim(Vocoder):
    """Fast Griffin-Lim over a non-negative inverse of the mel filter bank, batched.

    Args:
        audio: Any geometry.
        iterations: Rounds of phase estimation. Each makes a frame's phase depend on those that its window overlaps.
        momentum: Of the fast variant; 0 for the classic algorithm.

    Source: Griffin and Lim 1984; Perraudin et al. 2013; for the inverse Lee and Seung 2000.
    """

    window: Tensor
    filters: Tensor
    inverse_filters: Tensor

    def __init__(self, audio: AudioSpec, iterations: int = 32, momentum: float = 0.99):
        super().__init__()
        self.audio = audio
        self.iterations = iterations
        self.momentum = momentum
        self.context_frames = (iterations + 1) * (-(-audio.window_samples // audio.hop_samples) - 1)
        self.register_buffer("window", torch.hann_window(audio.window_samples), persistent=False)
        self.register_buffer("filters", audio.mel_filters(), persistent=False)
        self.register_buffer("inverse_filters", torch.linalg.pinv(self.filters), persistent=False)

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, log_mel: Tensor, lengths: Tensor, first_frame: int = 0) -> Tensor:
        # Silence after the end: a sample then sounds the same alone and in a batch of longer ones.
        frames = log_mel.shape[1]
        tail = -(-self.audio.window_samples // self.audio.hop_samples)
        # Out-of-range predictions would overflow exp; a magnitude of e^8 is far above full scale.
        mel = log_mel.float().clamp(max=8.0).exp() * lengths_to_mask(lengths, frames)[..., None]
        magnitude = self._linear(F.pad(mel, (0, 0, 0, tail))).transpose(1, 2)
        # A start that is fixed for each frame makes the same spectrogram sound the same every time, and in parts.
        generator = torch.Generator().manual_seed(0)
        start = torch.rand(first_frame + magnitude.shape[2], magnitude.shape[1], generator=generator)
        phase = start[first_frame:].T * 2 * torch.pi
        spectrum = torch.polar(magnitude, phase.to(magnitude.device).expand_as(magnitude).contiguous())
        previous = torch.zeros_like(spectrum)
        for _ in range(self.iterations):
            projected = self._stft(self._istft(spectrum))
            estimate = projected + self.momentum * (projected - previous)
            previous = projected
            spectrum = torch.polar(magnitude, estimate.angle())
        waveform = self._istft(spectrum)[:, : self.audio.frames_to_samples(frames)]
        return waveform * lengths_to_mask(self.audio.frames_to_samples(lengths), waveform.shape[1])

    def excerpt(self, log_mel: Tensor, first_frame: int) -> Tensor:
        lengths = torch.full((len(log_mel),), log_mel.shape[1], device=log_mel.device)
        return self(log_mel, lengths, first_frame)

    def _linear(self, mel: Tensor) -> Tensor:
        """Magnitudes (B, F, bins) that have these mel magnitudes (B, F, M).

        The pseudo-inverse cut off at zero misses them, by more the fewer channels there are; multiplicative updates of
        the generalised Kullback-Leibler divergence mend that and keep every magnitude positive.
        """
        share = (self.filters / self.filters.sum(1, keepdim=True).clamp(min=TINY)).T
        magnitude = (mel @ self.inverse_filters).clamp(min=TINY)
        for _ in range(INVERSE_UPDATES):
            magnitude = magnitude * (mel / (magnitude @ self.filters + TINY) @ share)
        return magnitude

    def _stft(self, waveform: Tensor) -> Tensor:
        return torch.stft(waveform, **self._geometry(), pad_mode="constant", return_complex=True)

    def _istft(self, spectrum: Tensor) -> Tensor:
        return torch.istft(spectrum, **self._geometry())

    def _geometry(self) -> dict[str, Any]:
        return {
            "n_fft": self.audio.fft_samples,
            "hop_length": self.audio.hop_samples,
            "win_length": self.audio.window_samples,
            "window": self.window,
        }
