"""The machine code of the CUDA kernels, read with cuobjdump: what the convolutions are made of. Needs no GPU.

The reader itself is tested in `test_bench_gpu.py`, on text.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from harness import ROOT

from yolonas import _native

pytestmark = pytest.mark.slow  # a disassembly of some megabytes


@pytest.fixture(scope="module")
def sass() -> ModuleType:
    path = ROOT / "bench" / "sass.py"
    if not path.is_file():
        pytest.skip("no bench/ here")
    spec = importlib.util.spec_from_file_location("sass", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sass"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kernels(sass: ModuleType) -> list[Any]:
    built = _native.cuda()
    if built is None:
        pytest.skip("this build has no yolonas._cuda (no CUDA compiler was found, or YOLONAS_CUDA=OFF)")
    if sass.ARCH not in built.architectures():
        pytest.skip(f"built for {', '.join(built.architectures())}, not for {sass.ARCH}")
    if sass.find_cuobjdump() is None:
        pytest.skip("no cuobjdump here: it comes with CUDA's toolkit (or name it with CUOBJDUMP)")
    return sass.read(Path(str(built.__file__)).resolve())


@pytest.mark.parametrize("family", ["conv_kernel", "conv_warpgroup_kernel"])
def test_convolutions_run_on_the_tensor_cores(sass: ModuleType, kernels: list[Any], family: str) -> None:
    pattern, wanted = next((pattern, wanted) for name, pattern, wanted in sass.FAMILIES if name == family)
    fast = sass.of_convolutions(kernels, pattern)
    assert fast
    assert [name for name in wanted if not any(kernel.count(name) for kernel in fast)] == []


def test_convolutions_keep_nothing_in_local_memory(sass: ModuleType, kernels: list[Any]) -> None:
    convolutions = sass.of_convolutions(kernels)
    assert convolutions
    assert [kernel.name for kernel in convolutions if kernel.spills or kernel.stack or kernel.local] == []
    assert max(kernel.registers for kernel in convolutions) <= sass.MOST_REGISTERS


def test_nothing_else_is_wrong(sass: ModuleType, kernels: list[Any]) -> None:
    assert sass.faults(kernels) == []
