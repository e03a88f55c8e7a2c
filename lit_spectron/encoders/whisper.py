"""The encoder of Whisper."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSpeechSeq2Seq, WhisperFeatureExtractor

from lit_spectron.audio import AudioSpec, SpecAugment
from lit_spectron.encoders.base import SpeechEncoder
from lit_spectron.encoders.layers import Layer, LayerChoice
from lit_spectron.errors import UserError
from lit_spectron.huggingface import config_fields, load_model
from lit_spectron.masking import lengths_to_mask


class WhisperLogMel(nn.Module):
    """Whisper's own log-mel, on the device: what `WhisperFeatureExtractor` gives for the same speech padded to 30 s.

    Source: Radford et al. 2022, section 2.2.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, extractor: WhisperFeatureExtractor):
        super().__init__()
        self.fft_samples, self.hop_samples = extractor.n_fft, extractor.hop_length
        self.longest_samples = extractor.n_samples
        self.register_buffer("window", torch.hann_window(self.fft_samples), persistent=False)
        self.register_buffer("filters", torch.from_numpy(extractor.mel_filters).float(), persistent=False)

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, waveform: Tensor, lengths: Tensor, frames: int) -> Tensor:
        """(B, T) to the first ``frames`` frames (B, F, M); beyond ``lengths`` they hold silence."""
        waveform = waveform.float() * lengths_to_mask(lengths, waveform.shape[1])
        half = self.fft_samples // 2
        samples = (frames - 1) * self.hop_samples + half
        inside = min(samples, self.longest_samples)
        waveform = F.pad(waveform, (0, max(0, inside - waveform.shape[1])))[:, :inside]
        # As in the original, reflected at the start and at the end of the 30 s.
        tail = waveform[:, -1 - (samples - inside) : -1].flip(1)
        waveform = torch.cat([waveform[:, 1 : half + 1].flip(1), waveform, tail], dim=1)
        spectrum = torch.stft(
            waveform, self.fft_samples, self.hop_samples, window=self.window, center=False, return_complex=True
        )
        log_mel = (spectrum.abs().square().transpose(1, 2) @ self.filters).clamp(min=1e-10).log10()
        return (log_mel.maximum(log_mel.amax((1, 2), keepdim=True) - 8) + 4) / 4


class WhisperEncoder(SpeechEncoder):
    """Whisper's encoder on short prompts, without padding them to 30 s: 50 features a second.

    Its position embeddings and its attention are cut to the prompt and a little silence after it, so 3 s cost a tenth
    of 30 s. What differs from the features of the same prompt padded to 30 s is in docs/PARTS.md: with half a second of
    silence the features near the end are right too, without any they are not.

    Args:
        audio: The model's audio geometry; only the sampling rate matters.
        source: Hub id or local folder of a Whisper model; null with ``config``.
        config: Fields of a Whisper config, for random weights; null with ``source``.
        layer: ``last``, ``weighted`` (learned sum of all), or n for the n-th layer's output.
        silence_seconds: Silence that the encoder hears after each prompt.
        spec_augment: Masking of the prompt's log-mel while training.

    Source: Radford et al. 2022.
    """

    # Frames of silence that the two convolutions may see beyond the last valid one.
    MARGIN_FRAMES = 4

    def __init__(
        self,
        audio: AudioSpec,
        source: str | None = None,
        config: dict[str, Any] | None = None,
        layer: Layer = "last",
        silence_seconds: float = 0.5,
        spec_augment: SpecAugment | None = None,
    ):
        super().__init__()
        whisper = load_model(AutoModelForSpeechSeq2Seq, "encoder", source, config)
        if whisper.config.model_type != "whisper":
            raise UserError(f"model.encoder.source: {source} is a {whisper.config.model_type}, not a Whisper")
        self._config = config_fields(whisper)
        self.encoder = whisper.model.encoder
        # Sinusoids; transformers forgets so where it loads weights.
        self.encoder.embed_positions.requires_grad_(False)
        extractor = WhisperFeatureExtractor(feature_size=whisper.config.num_mel_bins)
        self.log_mel = WhisperLogMel(extractor)
        self.spec_augment = spec_augment
        self.choice = LayerChoice(layer, len(self.encoder.layers))
        self.encoder.layers = self.encoder.layers[: self.choice.needed_layers]
        if layer != "last":
            self.encoder.layer_norm = nn.Identity()
        self.output_dim = whisper.config.d_model
        self.sample_rate_hz = extractor.sampling_rate
        self.samples_per_feature = 2 * extractor.hop_length
        self.frames_per_second = self.sample_rate_hz / self.samples_per_feature
        self.silence_features = round(silence_seconds * self.frames_per_second)

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        valid = self._features(lengths)
        longest = self.encoder.max_source_positions
        size = self._features(waveform.shape[1])
        if size > longest:
            seconds = longest / self.frames_per_second
            raise UserError(
                f"model.encoder: Whisper hears at most {seconds:g} s of prompt; shorten data.prompt_seconds"
            )
        heard = min(size + self.silence_features, longest)
        features = self.log_mel(waveform, lengths, min(2 * heard + self.MARGIN_FRAMES, 2 * longest))
        if self.spec_augment is not None:
            features = self.spec_augment(features, (lengths // self.log_mel.hop_samples).clamp(min=1))
        hidden = F.gelu(self.encoder.conv1(features.transpose(1, 2)))
        hidden = F.gelu(self.encoder.conv2(hidden)).transpose(1, 2)[:, :heard]
        states = [hidden + self.encoder.embed_positions.weight[:heard]]
        mask = lengths_to_mask((valid + self.silence_features).clamp(max=heard), heard)[:, None, None]
        mask = mask.expand(-1, 1, heard, heard)
        for layer in self.encoder.layers:
            states.append(layer(states[-1], mask))
        last = self.encoder.layer_norm(states[-1])
        return self.choice(last, states)[:, :size], valid

    def _features(self, samples):
        """Features that cover ``samples``, an int or an integer tensor."""
        return (samples + self.samples_per_feature - 1) // self.samples_per_feature

    def rebuild_args(self) -> dict[str, Any]:
        return {"source": None, "config": self._config}
