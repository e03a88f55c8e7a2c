from datamodules.librilight import LibriLightDataModule

__all__ = ["LibriLightDataModule"]
