"""A convolutional network from log-mel to a complex spectrum, through the package vocos."""

from math import ceil

from torch import Tensor

from lit_spectron.audio import AudioSpec
from lit_spectron.vocoders.base import NeuralVocoder, import_optional, load_weights, refuse_other_geometry

MEL_24KHZ = AudioSpec(
    sample_rate_hz=24000,
    n_mels=100,
    f_min_hz=0.0,
    f_max_hz=12000.0,
    window_seconds=0.042667,
    hop_seconds=0.010667,
    log_floor=1e-7,
    mel_scale="htk",
    mel_norm=None,
)


class Vocos(NeuralVocoder):
    """Vocos for mel spectrograms; needs the extra ``vocoders``, and data at its own sampling rate.

    It was trained on spectrograms of segments padded by reflection, where ours are padded with zeros. Where speech is
    cut in its middle, the first two frames differ by 0.45 to 0.65 and 0.25 to 0.4 nats and the last two by
    0.25 to 0.4 and 0.15; all others are the same, and so are all where it begins and ends in digital silence.

    Args:
        audio: The model's geometry; must be ``made_for``.
        source: Repository of the Hugging Face hub, or local folder, with the package's ``pytorch_model.bin``; null for
            random weights.
        made_for: Geometry of those weights.
        hidden_size: Width of the network.
        intermediate_size: Inner width of its ConvNeXt blocks.
        layers: Number of blocks.

    Source: Siuzdak 2023; geometry and sizes as in the package and in the config.yaml of vocos-mel-24khz.
    """

    def __init__(
        self,
        audio: AudioSpec,
        source: str | None = "charactr/vocos-mel-24khz",
        made_for: AudioSpec = MEL_24KHZ,
        hidden_size: int = 512,
        intermediate_size: int = 1536,
        layers: int = 8,
    ):
        super().__init__()
        refuse_other_geometry("Vocos", made_for, audio)
        self.audio = audio
        # The package's names of the parts are those of its weights.
        self.backbone = import_optional("vocos.models").VocosBackbone(
            audio.n_mels, hidden_size, intermediate_size, layers
        )
        self.head = import_optional("vocos.heads").ISTFTHead(
            hidden_size, audio.fft_samples, audio.hop_samples, padding="center"
        )
        # Kernels of 7, and the windows that overlap on a frame's hop.
        self.context_frames = 3 * (1 + layers) + ceil(audio.fft_samples / 2 / audio.hop_samples)
        load_weights(self, source, "pytorch_model.bin", ignored=("feature_extractor.",))
        self.requires_grad_(False).eval()

    def synthesize(self, log_mel: Tensor) -> Tensor:
        return self.head(self.backbone(log_mel))
