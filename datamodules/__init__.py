"""Data modules; imported when they are asked for, since Lightning takes seconds and `prepare` does without it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.librilight import LibriLightDataModule
    from datamodules.spoken_qa import SpokenQADataModule

__all__ = ["LibriLightDataModule", "SpokenQADataModule"]
_MODULES = {"LibriLightDataModule": "datamodules.librilight", "SpokenQADataModule": "datamodules.spoken_qa"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(_MODULES[name]), name)
