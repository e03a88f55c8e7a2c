"""A Conformer on the shared log-mel, from scratch."""

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel

from lit_spectron.audio import AudioSpec, LogMelSpectrogram, SpecAugment
from lit_spectron.encoders.base import SpeechEncoder
from lit_spectron.masking import lengths_to_mask


class ConformerEncoder(SpeechEncoder):
    """Log-mel, SpecAugment, frame stacking, and the Conformer layers of w2v-BERT 2.0 (transformers), untrained.

    These layers use layer norm where others use batch norm, so a sample's features don't depend on its batch.

    Args:
        audio: The model's audio geometry.
        hidden_size: Width E.
        layers: Conformer layers.
        attention_heads: Heads of each layer.
        intermediate_size: Width of the feed-forward modules; null for four times ``hidden_size``.
        stacked_frames: Log-mel frames joined into one feature; sets the features a second.
        dropout: Dropout inside the layers.
        spec_augment: Masking of the prompt's log-mel while training.

    Source: Gulati et al. 2020; METHOD "Parts", E.
    """

    def __init__(
        self,
        audio: AudioSpec,
        hidden_size: int = 512,
        layers: int = 12,
        attention_heads: int = 8,
        intermediate_size: int | None = None,
        stacked_frames: int = 2,
        dropout: float = 0.1,
        spec_augment: SpecAugment | None = None,
    ):
        super().__init__()
        self.output_dim = hidden_size
        self.frames_per_second = audio.frames_per_second / stacked_frames
        self.sample_rate_hz = audio.sample_rate_hz
        self.stacked_frames = stacked_frames
        self.log_mel = LogMelSpectrogram(audio)
        self.spec_augment = spec_augment or nn.Identity()
        self.conformer = Wav2Vec2BertModel(
            Wav2Vec2BertConfig(
                feature_projection_input_dim=audio.n_mels * stacked_frames,
                hidden_size=hidden_size,
                num_hidden_layers=layers,
                num_attention_heads=attention_heads,
                intermediate_size=intermediate_size or 4 * hidden_size,
                hidden_dropout=dropout,
                attention_dropout=dropout,
                activation_dropout=dropout,
                feat_proj_dropout=0.0,
                conformer_conv_dropout=dropout,
                layerdrop=0.0,
                apply_spec_augment=False,
                # Else transformers makes an embedding for masked frames that nothing uses.
                mask_time_prob=0.0,
                mask_feature_prob=0.0,
            )
        )

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        features, frames = self.log_mel(waveform, lengths)
        if isinstance(self.spec_augment, SpecAugment):
            features = self.spec_augment(features, frames)
        stack = self.stacked_frames
        surplus = -features.shape[1] % stack
        features = F.pad(features, (0, 0, 0, surplus), value=self.log_mel.audio.log_mel_floor)
        features = features.unflatten(1, (-1, stack)).flatten(2)
        lengths = (frames + stack - 1) // stack
        mask = lengths_to_mask(lengths, features.shape[1])
        return self.conformer(features, attention_mask=mask.long()).last_hidden_state, lengths
