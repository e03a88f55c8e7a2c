"""Finds the implementations that a slot's package contains, so that no test lists them by hand."""

import importlib
import inspect
import pkgutil
from types import ModuleType


def implementations(package: ModuleType, base: type) -> list[type]:
    """Every class of the package's modules that implements ``base``, by name."""
    found = set()
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        found |= {value for _, value in inspect.getmembers(importlib.import_module(module.name), inspect.isclass)}
    concrete = [c for c in found if issubclass(c, base) and not inspect.isabstract(c)]
    return sorted((c for c in concrete if c.__module__.startswith(package.__name__)), key=lambda c: c.__name__)
