"""Who may import whom, in Python and in C++."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A module may import the modules of its own row and of the rows above it, never below.
ROWS = [
    {
        "errors",
        "config",
        "preprocess",
        "_native",
        "cuda_memory",
        "runs",
        "folders",
        "records",
        "background",
        "progress",
    },
    {"tuning"},
    {"boxes", "label_text", "window", "ops", "options", "download", "data", "metrics", "info", "nn"},
    {"lowering", "quantized_graph", "selection"},
    {"draw"},
    {"plots"},
    {"results", "checkpoint", "weights", "engine", "native_engine", "prepare", "val_batches"},
    {"cuda_engine"},
    {"cuda_comparison"},
    {"cuda_check"},
    {"on_device"},
    {"demo"},
    {"exporting", "training"},
    {"sessions", "tensorrt_engine"},
    {"exported_engine"},
    {"exported"},
    {"inspection"},
    {"compiled", "engines", "quantization"},
    {"journal"},
    {"val_setup"},
    {"writer", "predict", "val_pipeline", "val_report"},
    {"val", "merge"},
    {"train_setup"},
    {"train_loop", "train_files"},
    {"train"},
    {"quantize_setup", "quantize_engines"},
    {"quantize"},
    {"export_setup", "export_check"},
    {"export"},
    {"model"},
    {"cli"},
    {"__main__"},
]

C_LAYERS = {
    "core": {"core"},
    "ops": {"core", "ops"},
    "engine": {"core", "engine"},
    "cpu": {"core", "ops", "engine", "cpu"},
    "cuda": {"core", "ops", "engine", "cuda"},
    "bindings": {"core", "ops", "engine", "cpu", "cuda", "bindings"},
}


def python_modules() -> list[Path]:
    return sorted((ROOT / "yolonas").rglob("*.py"))


def layer(name: str) -> int:
    return next((number for number, row in enumerate(ROWS) if name in row), -1)


def imported_siblings(path: Path) -> set[str]:
    """First parts, below `yolonas`, of what a module imports, type-checking imports left out."""
    depth = len(path.relative_to(ROOT / "yolonas").parts)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or id(node) in typing_only or node.level != depth:
            continue
        found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", python_modules(), ids=lambda path: str(path.relative_to(ROOT / "yolonas")))
def test_python_layers(path: Path) -> None:
    own = path.relative_to(ROOT / "yolonas").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    assert layer(own) >= 0, f"{own} stands in no row of tests/test_layers.py"
    for name in imported_siblings(path) - {own, "__version__"}:
        assert layer(name) >= 0, f"{name} stands in no row of tests/test_layers.py"
        assert layer(name) <= layer(own), f"{own} imports {name}, which lies above it"


def c_files() -> list[Path]:
    return sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh"))


@pytest.mark.parametrize("path", c_files(), ids=lambda path: str(path.relative_to(ROOT / "csrc")))
def test_c_layers(path: Path) -> None:
    parts = path.relative_to(ROOT / "csrc").parts
    text = path.read_text(encoding="utf-8")
    for include in re.findall(r'#include "([^"]+)"', text):
        assert include.split("/")[0] in C_LAYERS[parts[0]], f"{path} includes {include}"
    if parts[0] != "bindings":
        assert "pybind11" not in text
        assert "Python.h" not in text
    assert "torch/" not in text
    if len(parts) == 3 and parts[0] == "cpu" and path.suffix == ".cpp":  # an instruction set's own file
        allowed = {"immintrin.h", "arm_neon.h", "cstdint", "cstddef"}
        assert set(re.findall(r"#include <([^>]+)>", text)) <= allowed, f"{path} may include only {sorted(allowed)}"
        assert "std::" not in re.sub(r"std::u?int\d+_t|std::size_t", "", text), f"{path}: std:: code may leak its flags"
