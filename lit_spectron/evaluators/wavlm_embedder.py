"""Speaker embeddings by WavLM's x-vectors, through transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lit_spectron.evaluators.base import SpeakerEmbedder, find_model, resample


@dataclass(frozen=True)
class WavLMEmbedder(SpeakerEmbedder):
    """WavLM with an x-vector head.

    Args:
        source: Hub id or local folder of a ``WavLMForXVector``.
        device: ``cpu``, ``cuda``, ...; ``auto`` for the model's.

    Source: Chen et al. 2022; the embedding that AudioLM's successors report.
    """

    package: ClassVar[str] = "transformers"

    source: str = "microsoft/wavlm-base-plus-sv"
    device: str = "auto"

    @property
    def name(self) -> str:
        return f"WavLMEmbedder {self.source}"

    def weights(self) -> list[Path]:
        return find_model("WavLMEmbedder.source", self.source)[1]

    def load(self, device: torch.device) -> Any:
        from transformers import Wav2Vec2FeatureExtractor, WavLMForXVector

        from lit_spectron.huggingface import named_errors

        folder, _ = find_model("WavLMEmbedder.source", self.source)
        with named_errors("WavLMEmbedder.source", self.source):
            front_end = Wav2Vec2FeatureExtractor.from_pretrained(folder)
            network = WavLMForXVector.from_pretrained(folder, dtype=torch.float32)
        return front_end, network.requires_grad_(False).eval().to(device)

    def embed_one(self, waveform: np.ndarray, sample_rate_hz: int, device: torch.device | str) -> Tensor:
        front_end, network = self.loaded(device)
        rate = front_end.sampling_rate
        inputs = front_end(resample(waveform, sample_rate_hz, rate), sampling_rate=rate, return_tensors="pt")
        return network(inputs.input_values.to(network.device)).embeddings[0]
