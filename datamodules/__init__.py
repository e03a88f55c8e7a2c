from datamodules.librilight import LibriLightDataModule
from datamodules.spoken_qa import SpokenQADataModule

__all__ = ["LibriLightDataModule", "SpokenQADataModule"]
