"""A generative adversarial network from log-mel to samples, through speechbrain."""

import os
from collections.abc import Sequence
from math import ceil, prod

from torch import Tensor

from lit_spectron.audio import AudioSpec
from lit_spectron.errors import UserError
from lit_spectron.vocoders.base import NeuralVocoder, import_optional, load_weights, refuse_other_geometry

LIBRITTS_16KHZ = AudioSpec(
    sample_rate_hz=16000,
    n_mels=80,
    f_min_hz=0.0,
    f_max_hz=8000.0,
    window_seconds=0.064,
    hop_seconds=0.016,
    log_floor=1e-5,
    mel_scale="slaney",
    mel_norm="slaney",
)


class HifiGan(NeuralVocoder):
    """HiFi-GAN with the generator of speechbrain; needs the extra ``vocoders``.

    It was trained on spectrograms of segments padded by reflection, where ours are padded with zeros. Where speech is
    cut in its middle, the first two frames differ by 0.4 to 0.65 and 0.2 to 0.35 nats and the last two by
    0.2 to 0.3 and 0.05; all others are the same, and so are all where it begins and ends in digital silence.

    Args:
        audio: The model's geometry; must be ``made_for``.
        source: Repository of the Hugging Face hub, or local folder, with speechbrain's ``generator.ckpt``; null for
            random weights.
        made_for: Geometry of those weights.
        channels: After the first layer; halved by each upsampling.
        upsample_factors: Of the transposed convolutions; their product is the hop in samples.
        upsample_kernel_sizes: Of the same.
        resblock_kernel_sizes: Of the residual blocks that follow each upsampling, side by side.
        resblock_dilations: Of the layers of every block.

    Source: Kong et al. 2020, the generator "V1"; geometry and sizes as in speechbrain's recipe for LibriTTS.
    """

    def __init__(
        self,
        audio: AudioSpec,
        source: str | None = "speechbrain/tts-hifigan-libritts-16kHz",
        made_for: AudioSpec = LIBRITTS_16KHZ,
        channels: int = 512,
        upsample_factors: Sequence[int] = (8, 8, 2, 2),
        upsample_kernel_sizes: Sequence[int] = (16, 16, 4, 4),
        resblock_kernel_sizes: Sequence[int] = (3, 7, 11),
        resblock_dilations: Sequence[int] = (1, 3, 5),
    ):
        super().__init__()
        refuse_other_geometry("HifiGan", made_for, audio)
        if prod(upsample_factors) != audio.hop_samples:
            raise UserError(f"vocoder.upsample_factors: {upsample_factors} do not make {audio.hop_samples} samples")
        self.audio = audio
        # speechbrain's import would otherwise switch TF32 on and the JIT's profiling off, for the whole process.
        os.environ.setdefault("SB_DISABLE_QUIRKS", "allow_tf32,disable_jit_profiling")
        self.generator = import_optional("speechbrain.lobes.models.HifiGAN").HifiganGenerator(
            in_channels=audio.n_mels,
            out_channels=1,
            resblock_type="1",
            resblock_dilation_sizes=[list(resblock_dilations)] * len(resblock_kernel_sizes),
            resblock_kernel_sizes=resblock_kernel_sizes,
            upsample_kernel_sizes=upsample_kernel_sizes,
            upsample_initial_channel=channels,
            upsample_factors=upsample_factors,
        )
        # One layer of 7 at the frame rate; then at each rate a transposed convolution and the widest of the blocks,
        # whose dilated layers alternate with plain ones; one layer of 7 at the sample rate.
        block = max(resblock_kernel_sizes) // 2 * sum(dilation + 1 for dilation in resblock_dilations)
        rates = [prod(upsample_factors[: i + 1]) for i in range(len(upsample_factors))]
        reach = sum((block + kernel) / rate for kernel, rate in zip(upsample_kernel_sizes, rates, strict=True))
        self.context_frames = ceil(3 + reach + 3 / audio.hop_samples)
        load_weights(self.generator, source, "generator.ckpt")
        self.generator.remove_weight_norm()
        self.requires_grad_(False).eval()

    def synthesize(self, log_mel: Tensor) -> Tensor:
        return self.generator(log_mel)[:, 0]
