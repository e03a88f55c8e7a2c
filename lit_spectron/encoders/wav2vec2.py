"""wav2vec 2.0, HuBERT, WavLM: encoders that take the waveform itself."""

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoFeatureExtractor, AutoModel, Wav2Vec2FeatureExtractor

from lit_spectron.audio import AudioSpec
from lit_spectron.encoders.base import SpeechEncoder
from lit_spectron.encoders.layers import Layer, LayerChoice
from lit_spectron.errors import UserError
from lit_spectron.huggingface import config_fields, load_model, named_errors
from lit_spectron.masking import lengths_to_mask

FAMILY = ("wav2vec2", "hubert", "wavlm")


class Wav2Vec2Encoder(SpeechEncoder):
    """The wav2vec 2.0 family: 50 features a second.

    SpecAugment does not apply: there is no spectrogram.

    Args:
        audio: The model's audio geometry; only the sampling rate matters.
        source: Hub id or local folder of a wav2vec 2.0, HuBERT or WavLM model; null with ``config``.
        config: Fields of such a config, ``model_type`` among them, for random weights; null with ``source``.
        layer: ``last``, ``weighted`` (learned sum of all), or n for the n-th layer's output.
        normalize_waveform: Whether each prompt gets zero mean and unit variance; null: as the source's preprocessor
            says.

    Source: Baevski et al. 2020; Hsu et al. 2021; Chen et al. 2022.
    """

    def __init__(
        self,
        audio: AudioSpec,
        source: str | None = None,
        config: dict[str, Any] | None = None,
        layer: Layer = "last",
        normalize_waveform: bool | None = None,
    ):
        super().__init__()
        model = load_model(AutoModel, "encoder", source, config)
        if model.config.model_type not in FAMILY:
            raise UserError(f"model.encoder: {model.config.model_type} is none of {', '.join(FAMILY)}")
        if normalize_waveform is None and source is not None:
            with named_errors("model.encoder.source", source):
                normalize_waveform = AutoFeatureExtractor.from_pretrained(source).do_normalize
        self.normalize_waveform = bool(normalize_waveform)
        self.shards_by_layer = model.config.feat_extract_norm != "group"  # then it runs once a length: see `forward`
        self._config = config_fields(model)
        # Dropped layers and random masks are the pre-training's; here they would only unsettle what is heard.
        model.config.layerdrop, model.config.apply_spec_augment = 0.0, False
        if hasattr(model, "masked_spec_embed"):
            del model.masked_spec_embed
        self.choice = LayerChoice(layer, len(model.encoder.layers))
        model.encoder.layers = model.encoder.layers[: self.choice.needed_layers]
        if layer != "last" and model.config.do_stable_layer_norm:
            model.encoder.layer_norm = nn.Identity()
        self.model = model
        self.output_dim = model.config.hidden_size
        self.sample_rate_hz = Wav2Vec2FeatureExtractor().sampling_rate
        self.frames_per_second = self.sample_rate_hz / math.prod(model.config.conv_stride)

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        mask = lengths_to_mask(lengths, waveform.shape[1])
        if self.normalize_waveform:
            mean = (waveform * mask).sum(1, keepdim=True) / lengths[:, None]
            variance = ((waveform - mean).square() * mask).sum(1, keepdim=True) / lengths[:, None]
            waveform = (waveform - mean) / (variance + 1e-7).sqrt() * mask
        feature_lengths = self._feature_lengths(lengths)
        if self.model.config.feat_extract_norm != "group":
            return self._encode(waveform, mask), feature_lengths
        # The base models normalise over time: padding would change every feature. Each length goes alone, without.
        size = int(feature_lengths.max())
        features = waveform.new_zeros(len(waveform), size, self.output_dim)
        for length in lengths.unique().tolist():
            rows = lengths == length
            part = self._encode(waveform[rows, :length], None)
            features[rows] = F.pad(part, (0, 0, 0, size - part.shape[1])).to(features.dtype)
        return features, feature_lengths

    def _encode(self, waveform: Tensor, mask: Tensor | None) -> Tensor:
        output = self.model(waveform, attention_mask=mask, output_hidden_states=self.choice.layer != "last")
        return self.choice(output.last_hidden_state, output.hidden_states or ())

    def _feature_lengths(self, samples: Tensor) -> Tensor:
        """Features of so many samples; none of its convolutions is padded."""
        for kernel, stride in zip(self.model.config.conv_kernel, self.model.config.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    def rebuild_args(self) -> dict[str, Any]:
        return {"source": None, "config": self._config, "normalize_waveform": self.normalize_waveform}
