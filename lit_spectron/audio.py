"""Audio geometry, the log-mel front end, SpecAugment, and every conversion between seconds, samples and frames.

Shapes: B batch, T samples, F frames, M mel channels.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from lit_spectron.errors import UserError
from lit_spectron.masking import lengths_to_mask

SHORTEST_PROMPT_SECONDS = 0.1  # shorter ones hold no feature of some encoders


@dataclass(frozen=True)
class AudioSpec:
    """The one audio geometry of a model; every part that touches audio is built from it.

    Args:
        sample_rate_hz: Sampling rate of every waveform. Files of another rate are refused, not resampled.
        n_mels: Channels of the log-mel spectrogram.
        f_min_hz: Lower edge of the mel filter bank.
        f_max_hz: Upper edge of the mel filter bank, at most half the sampling rate.
        window_seconds: Length of the analysis window.
        hop_seconds: Time between two frames.
        log_floor: Smallest magnitude before the logarithm; padding holds its logarithm.
        mel_scale: Formula of the mel scale.
        mel_norm: Area normalisation of the mel filters; null for filters of height one.

    Source: METHOD "Signal"; 128 channels, 20 to 8000 Hz, 50 ms windows, 12.5 ms hop.
    """

    sample_rate_hz: int = 16000
    n_mels: int = 128
    f_min_hz: float = 20.0
    f_max_hz: float = 8000.0
    window_seconds: float = 0.05
    hop_seconds: float = 0.0125
    log_floor: float = 1e-5
    mel_scale: Literal["slaney", "htk"] = "slaney"
    mel_norm: Literal["slaney"] | None = "slaney"

    def __post_init__(self) -> None:
        if min(self.sample_rate_hz, self.n_mels, self.window_seconds, self.hop_seconds, self.log_floor) <= 0:
            raise UserError("audio: sample_rate_hz, n_mels, window_seconds, hop_seconds and log_floor must be positive")
        if self.hop_samples < 1 or self.window_samples < 1:
            raise UserError("audio.hop_seconds and audio.window_seconds: must last at least one sample")
        if not 0 <= self.f_min_hz < self.f_max_hz <= self.sample_rate_hz / 2:
            raise UserError(
                f"audio.f_max_hz: needs 0 <= f_min_hz < f_max_hz <= sample_rate_hz / 2, got "
                f"{self.f_min_hz}, {self.f_max_hz}, {self.sample_rate_hz / 2}"
            )
        if self.hop_seconds > self.window_seconds:
            raise UserError(f"audio.hop_seconds: {self.hop_seconds} exceeds window_seconds {self.window_seconds}")

    @property
    def window_samples(self) -> int:
        return round(self.window_seconds * self.sample_rate_hz)

    @property
    def hop_samples(self) -> int:
        return round(self.hop_seconds * self.sample_rate_hz)

    @property
    def fft_samples(self) -> int:
        """The power of two that holds a window."""
        return 1 << (self.window_samples - 1).bit_length()

    @property
    def frames_per_second(self) -> float:
        return self.sample_rate_hz / self.hop_samples

    @property
    def log_mel_floor(self) -> float:
        """Natural logarithm of the floor: what silence and padding hold."""
        return float(np.log(self.log_floor))

    @property
    def floor_level_db(self) -> float:
        """`frame_level_db` of a frame that holds nothing but the floor."""
        return float(20 * np.log10(self.log_floor))

    def seconds_to_samples(self, seconds: float) -> int:
        return round(seconds * self.sample_rate_hz)

    def samples_to_seconds(self, samples: int) -> float:
        return samples / self.sample_rate_hz

    def seconds_to_frames(self, seconds: float) -> int:
        return self.samples_to_frames(self.seconds_to_samples(seconds))

    def samples_to_frames(self, samples):
        """Frames that cover ``samples``, an int or an integer tensor: one for every hop begun."""
        return (samples + self.hop_samples - 1) // self.hop_samples

    def frames_to_samples(self, frames):
        return frames * self.hop_samples

    def frames_to_seconds(self, frames: int) -> float:
        return self.samples_to_seconds(self.frames_to_samples(frames))

    def mel_filters(self) -> Tensor:
        """Mel filter bank, (fft_samples // 2 + 1, M)."""
        filters = mel_filter_bank(
            num_frequency_bins=self.fft_samples // 2 + 1,
            num_mel_filters=self.n_mels,
            min_frequency=self.f_min_hz,
            max_frequency=self.f_max_hz,
            sampling_rate=self.sample_rate_hz,
            norm=self.mel_norm,
            mel_scale=self.mel_scale,
        )
        return torch.from_numpy(filters).float()


class LogMelSpectrogram(nn.Module):
    """Waveform to natural-log mel magnitudes. Frame ``i`` is centred on sample ``i * hop_samples``.

    The signal is zero-padded at both ends, so a padded batch gives the frames that each waveform gives alone.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, audio: AudioSpec):
        super().__init__()
        self.audio = audio
        self.register_buffer("window", torch.hann_window(audio.window_samples), persistent=False)
        self.register_buffer("filters", audio.mel_filters(), persistent=False)

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            waveform: (B, T) in [-1, 1]; what lies beyond ``lengths`` is ignored.
            lengths: (B,) in samples.

        Returns:
            log_mel (B, F, M), padded with the log floor, and lengths (B,) in frames.
        """
        spec = self.audio
        waveform = waveform.float() * lengths_to_mask(lengths, waveform.shape[1])
        frame_lengths = spec.samples_to_frames(lengths)
        spectrum = torch.stft(
            waveform,
            n_fft=spec.fft_samples,
            hop_length=spec.hop_samples,
            win_length=spec.window_samples,
            window=self.window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        mel = spectrum.abs().transpose(1, 2) @ self.filters
        frames = spec.samples_to_frames(waveform.shape[1])
        log_mel = mel[:, :frames].clamp(min=spec.log_floor).log()
        mask = lengths_to_mask(frame_lengths, frames)
        return log_mel.masked_fill(~mask[..., None], spec.log_mel_floor), frame_lengths


class SpecAugment(nn.Module):
    """Masks bands of channels and stretches of time of a feature sequence, while training only.

    Args:
        frequency_masks: Number of channel masks.
        frequency_mask_bins: Largest width of one, in channels.
        time_masks: Number of time masks.
        time_mask_share: Largest width of one, as a share of the utterance's frames.

    Source: Park et al. 2019; METHOD "Training example": 2 masks of at most 27 bins, 10 of at most 5 %.
    """

    def __init__(
        self,
        frequency_masks: int = 2,
        frequency_mask_bins: int = 27,
        time_masks: int = 10,
        time_mask_share: float = 0.05,
    ):
        super().__init__()
        self.frequency_masks = frequency_masks
        self.frequency_mask_bins = frequency_mask_bins
        self.time_masks = time_masks
        self.time_mask_share = time_mask_share

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, F, M) and lengths (B,) in frames to (B, F, M); masked cells hold the utterance's mean."""
        if not self.training:
            return features
        batch, frames, channels = features.shape
        device = features.device
        mask = torch.zeros(batch, frames, channels, dtype=torch.bool, device=device)
        widest = torch.full((batch,), min(self.frequency_mask_bins, channels), device=device)
        whole = torch.full((batch,), channels, device=device)
        for _ in range(self.frequency_masks):
            mask |= _random_span(widest, whole, channels)[:, None, :]
        for _ in range(self.time_masks):
            mask |= _random_span((lengths * self.time_mask_share).long(), lengths, frames)[:, :, None]
        valid = lengths_to_mask(lengths, frames)[..., None]
        mean = (features * valid).sum((1, 2), keepdim=True) / (lengths.view(-1, 1, 1) * channels)
        return torch.where(mask & valid, mean, features)


def _random_span(widest: Tensor, size: Tensor, positions: int) -> Tensor:
    """One random span a row, (B, positions) bool: width 0 to ``widest``, inside the first ``size`` positions."""
    width = (torch.rand(len(widest), device=widest.device) * (widest + 1)).long()
    start = (torch.rand(len(widest), device=widest.device) * (size - width + 1)).long()
    index = torch.arange(positions, device=widest.device)
    return (index >= start[:, None]) & (index < (start + width)[:, None])


def frame_level_db(log_mel: Tensor) -> Tensor:
    """Level of each frame in decibels: (..., M) natural-log mel magnitudes to (...)."""
    return 20 * (log_mel.exp().mean(-1)).log10()
