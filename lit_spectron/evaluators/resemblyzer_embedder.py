"""Speaker embeddings by Resemblyzer, whose package brings its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lit_spectron.evaluators.base import SpeakerEmbedder, import_extra, resample


@dataclass(frozen=True)
class ResemblyzerEmbedder(SpeakerEmbedder):
    """Resemblyzer; needs the extra ``evaluation``, and nothing from the hub.

    Args:
        device: ``cpu``, ``cuda``, ...; ``auto`` for the model's.

    Source: Wan et al. 2018, "Generalized End-to-End Loss for Speaker Verification".
    """

    package: ClassVar[str] = "resemblyzer"

    device: str = "auto"

    @property
    def name(self) -> str:
        return "ResemblyzerEmbedder"

    def weights(self) -> list[Path]:
        return [Path(str(import_extra("resemblyzer").__file__)).parent / "pretrained.pt"]

    def load(self, device: torch.device) -> Any:
        return import_extra("resemblyzer").VoiceEncoder(device, verbose=False).requires_grad_(False).eval()

    def embed_one(self, waveform: np.ndarray, sample_rate_hz: int, device: torch.device | str) -> Tensor:
        rate = import_extra("resemblyzer.hparams").sampling_rate
        return torch.from_numpy(self.loaded(device).embed_utterance(resample(waveform, sample_rate_hz, rate)))
