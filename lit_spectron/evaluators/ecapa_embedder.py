"""Speaker embeddings by ECAPA-TDNN, through speechbrain."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lit_spectron.errors import UserError
from lit_spectron.evaluators.base import SpeakerEmbedder, find_model, import_extra, resample

SAMPLE_RATE_HZ = 16000
N_MELS = 80


@dataclass(frozen=True)
class EcapaEmbedder(SpeakerEmbedder):
    """ECAPA-TDNN with speechbrain's weights from VoxCeleb 1 and 2; needs the extra ``evaluation``.

    Args:
        source: Hub id, or local folder with speechbrain's ``embedding_model.ckpt``.
        device: ``cpu``, ``cuda``, ...; ``auto`` for the model's.
        channels: Of every layer but the last, which has three times as many.

    Source: Desplanques et al. 2020; features and sizes as in speechbrain's recipe for VoxCeleb.
    """

    package: ClassVar[str] = "speechbrain"

    source: str = "speechbrain/spkrec-ecapa-voxceleb"
    device: str = "auto"
    channels: int = 1024

    @property
    def name(self) -> str:
        return f"EcapaEmbedder {self.source}"

    def weights(self) -> list[Path]:
        return find_model("EcapaEmbedder.source", self.source, ("embedding_model.ckpt",))[1]

    def load(self, device: torch.device) -> Any:
        # speechbrain's import would otherwise switch TF32 on and the JIT's profiling off, for the whole process.
        os.environ.setdefault("SB_DISABLE_QUIRKS", "allow_tf32,disable_jit_profiling")
        features = import_extra("speechbrain.lobes.features").Fbank(n_mels=N_MELS)
        normalisation = import_extra("speechbrain.processing.features").InputNormalization(
            norm_type="sentence", std_norm=False
        )
        network = import_extra("speechbrain.lobes.models.ECAPA_TDNN").ECAPA_TDNN(
            N_MELS, channels=[self.channels] * 4 + [3 * self.channels], attention_channels=128, lin_neurons=192
        )
        (path,) = self.weights()
        try:
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # pickle.UnpicklingError has no narrower public parent
            reason = str(error).splitlines()[0]
            raise UserError(f"EcapaEmbedder.source: {path}: no weights of this network: {reason}") from error
        return [part.requires_grad_(False).eval().to(device) for part in (features, normalisation, network)]

    def embed_one(self, waveform: np.ndarray, sample_rate_hz: int, device: torch.device | str) -> Tensor:
        features, normalisation, network = self.loaded(device)
        here = next(network.parameters()).device
        samples = torch.from_numpy(resample(waveform, sample_rate_hz, SAMPLE_RATE_HZ))[None].to(here)
        whole = torch.ones(1, device=here)
        return network(normalisation(features(samples), whole), whole)[0, 0]
