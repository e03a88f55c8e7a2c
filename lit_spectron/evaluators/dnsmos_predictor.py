"""Predicted opinion scores by DNSMOS, whose package brings its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from lit_spectron.evaluators.base import QualityPredictor, import_extra, resample


@dataclass(frozen=True)
class DnsmosPredictor(QualityPredictor):
    """DNSMOS of the package speechmos, on the CPU; needs the extra ``evaluation``, and nothing from the hub.

    It was made to compare noise suppressors. Smooth synthetic speech may score above real speech: never read it alone.

    Args:
        scale: ``ovrl_mos``, ``sig_mos`` or ``bak_mos`` for P.835's overall quality, speech and background; ``p808_mos``
            for P.808's.

    Source: Reddy et al. 2022, "DNSMOS P.835".
    """

    package: ClassVar[str] = "speechmos"

    scale: Literal["ovrl_mos", "sig_mos", "bak_mos", "p808_mos"] = "ovrl_mos"

    @property
    def name(self) -> str:
        return f"DnsmosPredictor {self.scale}"

    def weights(self) -> list[Path]:
        folder = Path(str(import_extra("speechmos").__file__)).parent / "dnsmos_models"
        return [folder / "sig_bak_ovr.onnx", folder / "model_v8.onnx"]

    def load(self, device: torch.device) -> Any:  # noqa: ARG002
        return import_extra("speechmos.dnsmos")

    def predict(
        self, waveforms: Sequence[np.ndarray], sample_rate_hz: int, device: torch.device | str = "cpu"
    ) -> list[float]:
        dnsmos = self.loaded(device)
        scores = []
        for waveform in waveforms:
            if not len(waveform):  # repeated until it is long enough
                raise ValueError("an empty waveform")
            audio = resample(waveform, sample_rate_hz, dnsmos.SR).clip(-1, 1)
            scores.append(float(dnsmos.run(audio, dnsmos.SR)[self.scale]))
        return scores
