"""The built module `yolonas._cuda` on any machine: it imports without a driver, says what it was built for, and refuses
what it cannot do with a sentence.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from emulated_cuda import FakeCudaTensor
from harness import run_python

from yolonas import _native


@pytest.fixture(scope="module")
def module() -> ModuleType:
    built = _native.cuda()
    if built is None:
        pytest.skip("this build has no yolonas._cuda (no CUDA compiler was found, or YOLONAS_CUDA=OFF)")
    return built


def test_architectures_and_versions(module: ModuleType) -> None:
    names = module.architectures()
    assert names
    assert all(re.fullmatch(r"sm_\d{2,3}", name) for name in names)
    assert names == sorted(set(names), key=lambda name: int(name[3:]))
    assert re.fullmatch(r"\d+\.\d+", module.runtime_version())
    assert module.driver_version() is None or re.fullmatch(r"\d+\.\d+", module.driver_version())
    assert _native.build_info()["cuda_architectures"] == names


def test_imports_and_counts_without_a_device(module: ModuleType) -> None:
    code = "from yolonas import _native; m = _native.cuda(); print(m.device_count(), len(m.architectures()) > 0)"
    done = run_python(code, CUDA_VISIBLE_DEVICES="")
    assert done.stdout.split() == ["0", "True"], done.stderr


def test_a_launch_without_a_device_is_an_exception(module: ModuleType) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
from emulated_cuda import FakeCudaTensor
from yolonas import _native
x, scale, out = (FakeCudaTensor(np.zeros(size, np.float32)) for size in (8, 1, 8))
try:
    _native.cuda().fake_quantize(x, scale, out, axis=-1, quant_min=-128, quant_max=127, stream=0)
except RuntimeError as error:
    print(error)
"""
    done = run_python("import sys; sys.path.insert(0, 'tests/native')\n" + code, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert re.match(
        r"fake_quantize: CUDA error: .* \(cudaError\w+\); built with CUDA \d+\.\d+, the driver", done.stdout
    )


def test_only_system_libraries_are_needed(module: ModuleType) -> None:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("no readelf here")
    text = subprocess.run([readelf, "-d", module.__file__], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", text)
    assert needed
    assert not [name for name in needed if re.match(r"lib(cu|nv|torch|c10)", name)], needed


def test_the_runtime_inside_stays_private(module: ModuleType) -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm here")
    text = subprocess.run([nm, "-D", "--defined-only", module.__file__], capture_output=True, text=True, check=True)
    names = [line.split()[-1] for line in text.stdout.splitlines()]
    assert "PyInit__cuda" in names
    assert not [name for name in names if name.startswith(("cuda", "__cuda"))]


SETTINGS: dict[str, dict[str, Any]] = {
    "letterbox": {
        "resized_h": 2,
        "resized_w": 2,
        "top": 0,
        "left": 0,
        "pad_value": 114,
        "swap_channels": False,
        "hwc": False,
        "mean": [0.0, 0.0, 0.0],
        "divisor": [255.0, 255.0, 255.0],
    },
    "fake_quantize": {"axis": -1, "quant_min": -128, "quant_max": 127},
}


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_memory_of_the_cpu_is_refused(module: ModuleType, kind: str) -> None:
    def tensor(*shape: int, dtype: Any = np.float32) -> Any:
        array = np.zeros(shape, dtype)
        return array if kind == "numpy" else pytest.importorskip("torch").from_numpy(array)

    place = "must lie on a CUDA device, got cpu"
    floats, ints, longs = tensor(1, 4), tensor(1, 4, dtype=np.int32), tensor(1, dtype=np.int64)
    with pytest.raises(ValueError, match=f"letterbox: image {place}"):
        module.letterbox(tensor(4, 4, 3, dtype=np.uint8), tensor(3, 2, 2), **SETTINGS["letterbox"], stream=0)
    with pytest.raises(ValueError, match=f"decode: class output {place}"):
        module.decode(
            [tensor(1, 2, 3, 3)],
            [tensor(1, 68, 3, 3)],
            [8.0],
            channels_last=False,
            boxes=tensor(1, 9, 4),
            scores=tensor(1, 9, 2),
            stream=0,
        )
    with pytest.raises(ValueError, match=f"nms_candidates: boxes {place}"):
        module.nms_candidates(
            tensor(1, 4, 4),
            floats,
            ints,
            longs,
            iou=0.5,
            max_det=3,
            agnostic=False,
            detections=tensor(1, 3, 6),
            counts=longs,
            workspace=longs,
            stream=0,
        )
    with pytest.raises(ValueError, match=f"fake_quantize: x {place}"):
        module.fake_quantize(floats, tensor(1), floats, **SETTINGS["fake_quantize"], stream=0)
    with pytest.raises(ValueError, match=f"fake_quantize_backward: grad {place}"):
        module.fake_quantize_backward(floats, floats, tensor(1), floats, **SETTINGS["fake_quantize"], stream=0)


def test_one_tensor_on_the_cpu_is_named(module: ModuleType) -> None:
    x = FakeCudaTensor(np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="fake_quantize: scale must lie on a CUDA device, got cpu"):
        module.fake_quantize(x, np.ones(1, np.float32), x, **SETTINGS["fake_quantize"], stream=0)
