"""w2v-BERT 2.0: the open Conformer of the paper's size."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, SeamlessM4TFeatureExtractor

from lit_spectron.audio import AudioSpec, SpecAugment
from lit_spectron.encoders.base import SpeechEncoder
from lit_spectron.encoders.layers import Layer, LayerChoice
from lit_spectron.errors import UserError
from lit_spectron.huggingface import config_fields, load_model
from lit_spectron.masking import lengths_to_mask


class KaldiFilterBank(nn.Module):
    """Kaldi's log filter-bank energies, each channel with zero mean and unit variance over the utterance.

    What `SeamlessM4TFeatureExtractor` gives before it joins frames, on the device.
    """

    WINDOW_SAMPLES, HOP_SAMPLES, FFT_SAMPLES = 400, 160, 512
    PREEMPHASIS, FLOOR, SAMPLE_SCALE = 0.97, 1.192092955078125e-07, 2**15

    window: Tensor
    filters: Tensor

    def __init__(self, extractor: SeamlessM4TFeatureExtractor):
        super().__init__()
        self.register_buffer("window", torch.from_numpy(extractor.window).float(), persistent=False)
        self.register_buffer("filters", torch.from_numpy(extractor.mel_filters).float(), persistent=False)

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) and lengths (B,) in samples to (B, F, M), zero beyond, and lengths (B,) in frames."""
        frames = waveform.float().unfold(1, self.WINDOW_SAMPLES, self.HOP_SAMPLES) * self.SAMPLE_SCALE
        frames = frames - frames.mean(-1, keepdim=True)
        # The first sample stands for its own predecessor.
        frames = frames - self.PREEMPHASIS * torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        power = torch.fft.rfft(frames * self.window, self.FFT_SAMPLES).abs().square()
        energies = (power @ self.filters).clamp(min=self.FLOOR).log()
        frame_lengths = (lengths - self.WINDOW_SAMPLES) // self.HOP_SAMPLES + 1
        mask = lengths_to_mask(frame_lengths, energies.shape[1])[..., None]
        mean = (energies * mask).sum(1, keepdim=True) / frame_lengths[:, None, None]
        squares = ((energies - mean).square() * mask).sum(1, keepdim=True)
        variance = squares / (frame_lengths[:, None, None] - 1).clamp(min=1)
        return (energies - mean) / (variance + 1e-7).sqrt() * mask, frame_lengths


class Wav2Vec2BertEncoder(SpeechEncoder):
    """w2v-BERT 2.0, a Conformer of 600 M parameters pre-trained on 4.5 M hours: 50 features a second.

    Args:
        audio: The model's audio geometry; only the sampling rate matters.
        source: Hub id or local folder; null with ``config``.
        config: Fields of a w2v-BERT config, for random weights; null with ``source``.
        layer: ``last``, ``weighted`` (learned sum of all), or n for the n-th layer's output.
        spec_augment: Masking of the prompt's filter-bank energies while training.

    Source: Seamless Communication 2023; METHOD "Parts", E: our stand-in for the paper's USM.
    """

    # Filter-bank frames joined into one feature.
    STACKED_FRAMES = 2

    def __init__(
        self,
        audio: AudioSpec,
        source: str | None = None,
        config: dict[str, Any] | None = None,
        layer: Layer = "last",
        spec_augment: SpecAugment | None = None,
    ):
        super().__init__()
        model = load_model(AutoModel, "encoder", source, config)
        if model.config.model_type != "wav2vec2-bert":
            raise UserError(f"model.encoder: {model.config.model_type} is no w2v-BERT 2.0 (wav2vec2-bert)")
        if model.config.add_adapter or model.config.use_intermediate_ffn_before_adapter:
            raise UserError("model.encoder: w2v-BERT with an adapter is not supported; model.projection downsamples")
        self._config = config_fields(model)
        # Dropped layers and random masks are the pre-training's; SpecAugment does the masking here.
        model.config.layerdrop, model.config.apply_spec_augment = 0.0, False
        if hasattr(model, "masked_spec_embed"):
            del model.masked_spec_embed
        extractor = SeamlessM4TFeatureExtractor()
        self.filter_bank = KaldiFilterBank(extractor)
        self.spec_augment = spec_augment
        self.choice = LayerChoice(layer, len(model.encoder.layers))
        model.encoder.layers = model.encoder.layers[: self.choice.needed_layers]
        self.model = model
        self.output_dim = model.config.hidden_size
        self.sample_rate_hz = extractor.sampling_rate
        self.frames_per_second = self.sample_rate_hz / (KaldiFilterBank.HOP_SAMPLES * self.STACKED_FRAMES)

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        features, frames = self.filter_bank(waveform, lengths)
        if self.spec_augment is not None:
            features = self.spec_augment(features, frames)
        # As in the original, a last frame without a partner is not heard.
        features = features[:, : features.shape[1] // self.STACKED_FRAMES * self.STACKED_FRAMES]
        features = features.unflatten(1, (-1, self.STACKED_FRAMES)).flatten(2)
        lengths = frames // self.STACKED_FRAMES
        mask = lengths_to_mask(lengths, features.shape[1]).long()
        output = self.model(features, attention_mask=mask, output_hidden_states=self.choice.layer != "last")
        return self.choice(output.last_hidden_state, output.hidden_states or ()), lengths

    def rebuild_args(self) -> dict[str, Any]:
        return {"source": None, "config": self._config}
