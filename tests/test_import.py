"""`import yolonas` is quick and touches nothing."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "cv2", "matplotlib", "PIL", "numpy", "pycocotools", "yaml", "tqdm", "yolonas._cpu", "yolonas._cuda")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_import_loads_nothing_heavy() -> None:
    out = run(f"import sys, yolonas; print([name for name in {HEAVY!r} if name in sys.modules])")
    assert out == "[]\n"


def test_import_is_quick() -> None:
    code = "import time; start = time.perf_counter(); import yolonas; print(time.perf_counter() - start)"
    assert min(float(run(code)) for _ in range(3)) < 0.3


def test_the_command_line_parser_loads_nothing_heavy() -> None:
    out = run(
        "import sys, yolonas.cli as cli; cli.main(['version']); print('torch' in sys.modules, 'cv2' in sys.modules)"
    )
    assert out.splitlines()[-1] == "False False"


def test_public_names() -> None:
    import yolonas

    assert {"NAS", "Results", "Boxes", "CheckpointError"} <= set(dir(yolonas))
    for name in yolonas.__all__:
        assert getattr(yolonas, name) is not None


def test_numpy_ops_need_no_torch() -> None:
    code = (
        "import sys, numpy as np\nfrom yolonas import ops\n"
        "ops.letterbox(np.zeros((4, 5, 3), np.uint8), frame=(32, 32), resized=(4, 5))\n"
        "ops.batched_nms(np.zeros((1, 2, 4), np.float32), np.zeros((1, 2, 3), np.float32))\n"
        "print('torch' in sys.modules)"
    )
    assert run(code) == "False\n"
