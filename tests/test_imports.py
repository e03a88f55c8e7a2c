"""Imports point one way (DESIGN.md, "Layout")."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SLOTS = ("encoders", "llms", "decoders", "vocoders", "evaluators")
# Each layer imports from those above it only, never from its own.
LAYERS = [
    {"torchaudio_guard", "errors"},
    {"arguments"},
    {"", "bootstrap", "files", "masking", "memory", "losses", "tables", "types", "part", "word_errors"},
    {"audio", "audio_files", "optim", "shards", "huggingface", "projection", "llms.tokenizer"},
    {"checkpoint"},
    {"checkpoint_io", "strategy"},
    {"figures", *(f"{slot}.base" for slot in SLOTS)},
    {"decoders.layers", "encoders.layers", "llms.causal_lm"},
    {"compare", "outputs", "IMPLEMENTATION"},
    set(SLOTS),
    {"model"},
    {"generation", "parallel"},
    {"module", "pipeline", "resynthesis"},
    {"lightning_cli", "pairs"},
    {"cli"},
    {"__main__"},
]
OUTSIDE = {
    "datamodules": {
        *("", "arguments", "audio", "audio_files", "errors", "files", "masking", "memory", "types", "llms.tokenizer"),
        *("evaluators", "word_errors"),
    },
    "callbacks": {
        *("", "audio", "audio_files", "bootstrap", "errors", "evaluators", "figures", "files", "generation", "model"),
        *("module", "outputs", "tables", "types", "vocoders", "word_errors"),
    },
}
FILES = sorted(p for name in ("lit_spectron", *OUTSIDE) for p in (ROOT / name).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path) -> set[str]:
    """Names of this repository's modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = (ROOT / f"{full.replace('.', '/')}.py").is_file() or (
                    ROOT / full.replace(".", "/")
                ).is_dir()
                names.add(full if is_module else node.module)
    return {name for name in names if name.split(".")[0] in ("lit_spectron", *OUTSIDE, "tests", "scripts")}


def layer(name: str) -> int:
    part = name.removeprefix("lit_spectron").removeprefix(".")
    for index, names in enumerate(LAYERS):
        if part in names:
            return index
    assert part.split(".")[0] in SLOTS and "." in part, f"{name}: give it a place in LAYERS"
    return next(i for i, names in enumerate(LAYERS) if "IMPLEMENTATION" in names)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_one_way(path: Path):
    name = module_name(path)
    package = name.split(".")[0]
    for imported in imported_modules(path):
        root, _, part = imported.partition(".")
        if package in OUTSIDE:
            assert root == package or (root == "lit_spectron" and part in OUTSIDE[package]), f"{name} -> {imported}"
        elif root == "lit_spectron":
            assert layer(imported) < layer(name), f"{name} -> {imported}"
        else:
            assert name in ("lit_spectron.lightning_cli", "lit_spectron.cli") and root in OUTSIDE, (
                f"{name} -> {imported}"
            )


def test_every_slot_has_a_base_and_an_implementation():
    for slot in SLOTS:
        modules = {p.stem for p in (ROOT / "lit_spectron" / slot).glob("*.py")}
        assert "base" in modules and len(modules - {"base", "__init__", "layers", "tokenizer"}) >= 1


def test_the_command_line_itself_imports_nothing_heavy():
    code = (
        "import sys, lit_spectron, lit_spectron.cli\n"
        "print(sorted({'torch', 'lightning', 'transformers', 'numpy', 'jsonargparse'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
