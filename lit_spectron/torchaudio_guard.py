"""Makes `import torchaudio` work where its native library cannot be loaded.

Its Linux wheel links one CUDA version: beside a CPU torch or another CUDA the import fails, and with it that of
speechbrain and, as soon as torchaudio is installed at all, of transformers. Its Python part needs no native library
and has a state of its own for a missing one ("extension not available"); this module puts it there, after a failure
only.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

EXTENSION = "torchaudio._extension"


class _RetryWithoutLibrary(Loader):
    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        try:
            self.loader.exec_module(module)
        except (OSError, RuntimeError):  # a library that it links is missing; CUDA versions differ
            sys.modules[f"{EXTENSION}.utils"]._load_lib = lambda _: False  # type: ignore[attr-defined]
            self.loader.exec_module(module)


class _ExtensionFinder(MetaPathFinder):
    def find_spec(self, fullname: str, path=None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == EXTENSION else None
        if spec is not None and spec.loader is not None:
            spec.loader = _RetryWithoutLibrary(spec.loader)
        return spec


def install() -> None:
    """Stands before every later import of torchaudio; costs nothing until then."""
    sys.meta_path.insert(0, _ExtensionFinder())
