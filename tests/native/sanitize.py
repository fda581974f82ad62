"""Runs the native tests under AddressSanitizer and UndefinedBehaviorSanitizer.

    python tests/native/sanitize.py [pytest arguments ...]

Builds the CPU module a second time, in build/sanitize, puts it into a copy of the package there and runs the tests of
the CPU ops (or what the arguments name) against that copy. The first report of a sanitizer ends the run with the stack
of the C++ code. Uses this interpreter, so pytest, NumPy, torch and what the build needs (cmake, ninja, pybind11, GCC)
must be installed for it. About two minutes on two cores.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "sanitize"
SITE = BUILD / "site"  # what PYTHONPATH points to
TESTS = (
    *("tests/ops", "tests/native/test_dispatch.py", "tests/native/test_threads.py", "tests/test_harness.py"),
    *("tests/native/test_engine.py", "tests/native/test_engine_errors.py", "tests/native/test_engine_detect.py"),
    *("tests/native/test_engine_choices.py", "tests/native/test_engine_observe.py", "tests/native/test_engine_int8.py"),
)


def build() -> Path:
    """Configures and builds the sanitized module; returns its path."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(BUILD), *generator, f"-DPython_EXECUTABLE={sys.executable}",
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DYOLONAS_SANITIZE=address,undefined", "-DYOLONAS_CUDA=OFF",
        "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1 -DNDEBUG",  # a quarter of -O2's time to compile; lines for the stacks
    ]  # fmt: skip
    subprocess.run(configure, check=True)
    subprocess.run(["cmake", "--build", str(BUILD), "--target", "_cpu", "--parallel"], check=True)
    return next(BUILD.glob("_cpu.*.so"))


def copy_package(module: Path) -> None:
    """A fresh copy of the Python files with the sanitized module among them and no other native module."""
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.copytree(ROOT / "yolonas", SITE / "yolonas", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy2(module, SITE / "yolonas")


def runtime(library: str) -> str:
    """Where the compiler keeps a library of its own."""
    compiler = os.environ.get("CXX", "c++")
    found = subprocess.run([compiler, f"-print-file-name={library}"], check=True, capture_output=True, text=True)
    return str(Path(found.stdout.strip()).resolve())


def environment() -> dict[str, str]:
    # The sanitizer's runtime must be the first library of the process, and needs libstdc++ for its hold on exceptions.
    # Leaks are not looked for: the interpreter and torch keep what they have until the end.
    return {
        **os.environ,
        "PYTHONPATH": str(SITE),
        "LD_PRELOAD": " ".join(runtime(library) for library in ("libasan.so", "libstdc++.so")),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1:strict_init_order=1:handle_abort=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONMALLOC": "malloc",  # so that Python's own memory has red zones, too
        "OMP_NUM_THREADS": "2",
    }


def main() -> int:
    copy_package(build())
    variables = environment()
    where = [sys.executable, "-c", "import yolonas._cpu; print(yolonas._cpu.__file__)"]
    loaded = subprocess.run(where, env=variables, cwd=SITE, check=True, capture_output=True, text=True).stdout.strip()
    if not Path(loaded).is_relative_to(SITE):
        print(f"sanitize: the tests would use {loaded} and not the sanitized module", file=sys.stderr)
        return 2
    print(f"sanitize: testing {loaded}", flush=True)
    arguments = [str(ROOT / argument) if (ROOT / argument).exists() else argument for argument in sys.argv[1:] or TESTS]
    # From another folder: the checkout's own package must not come first on the path.
    command = [sys.executable, "-m", "pytest", f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml")]
    return subprocess.run([*command, "-p", "no:cacheprovider", "-q", *arguments], env=variables, cwd=SITE).returncode


if __name__ == "__main__":
    sys.exit(main())
