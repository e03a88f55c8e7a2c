"""Predicted opinion scores by Distill-MOS, whose package brings its weights."""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from lit_spectron.evaluators.base import QualityPredictor, import_extra, resample

RATE_HZ = 16000


@dataclass(frozen=True)
class DistillMosPredictor(QualityPredictor):
    """Distill-MOS, learned from a predictor on wav2vec 2.0 XLS-R as UTMOS is one on wav2vec 2.0; needs the extra
    ``evaluation``, and nothing from the hub.

    Args:
        device: ``cpu``, ``cuda``, ...; ``auto`` for the model's.

    Source: Stahl and Gamper 2025, "Distillation and Pruning for Scalable Self-Supervised Representation-Based Speech
    Quality Assessment".
    """

    package: ClassVar[str] = "distillmos"

    device: str = "auto"

    @property
    def name(self) -> str:
        return "DistillMosPredictor"

    def weights(self) -> list[Path]:
        return [Path(import_extra("distillmos.sqa").DEFAULT_WEIGHTS_CHKPT)]

    def load(self, device: torch.device) -> Any:
        with redirect_stdout(io.StringIO()):  # it says where its weights are
            network = import_extra("distillmos").ConvTransformerSQAModel()
        return network.requires_grad_(False).eval().to(device)

    @torch.inference_mode()
    def predict(
        self, waveforms: Sequence[np.ndarray], sample_rate_hz: int, device: torch.device | str = "cpu"
    ) -> list[float]:
        network = self.loaded(device)
        scores = []
        for waveform in waveforms:  # one by one: padding would leave its mark
            if not len(waveform):
                raise ValueError("an empty waveform")
            audio = torch.from_numpy(resample(waveform, sample_rate_hz, RATE_HZ))
            scores.append(network(audio[None].to(next(network.parameters()).device)).item())
        return scores
