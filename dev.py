#!/usr/bin/env python3
"""What a developer runs, each command in an environment of its own; needs Python, a C++ compiler, a package index.

python3 dev.py demo                      install into .venv-demo; detect with the network in the package, measure it
python3 dev.py demo WEIGHTS [PICTURES]   the same install; detect with these weights: pictures with boxes in runs/
python3 dev.py test [PYTEST ARGS]        install into .venv-test and run the tests
python3 dev.py sanitize                  native tests under AddressSanitizer and UBSan
python3 dev.py lint                      ruff and clang-format, check only
python3 dev.py bench [NAME] [ARGS]       a benchmark, such as ops, network or int8 (see bench/README.md)
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent
MODEL = ROOT / "yolonas" / "models" / "yolo_nas_s_shapes.safetensors"
BUILD_TOOLS = ("scikit-build-core>=0.10", "pybind11>=2.13", "cmake>=3.24", "ninja>=1.11")


def environment(name: str, extras: str = "", *packages: str) -> str:
    """Makes the virtual environment once, (re)installs the project into it, and returns its Python."""
    folder = ROOT / f".venv-{name}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print(f"making {folder.name}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["-c", str(ROOT / "constraints.txt")]
    run([*pip, *BUILD_TOOLS, *packages])
    # The build tools are in the environment, so the build folder can be used again by the next call.
    run([*pip, "--no-build-isolation", f"{ROOT}{extras}"])
    return str(python)


def run(command: list[str], **options: object) -> None:
    """Runs a command in the project folder; ends this program with its exit code if it fails."""
    done = subprocess.run(command, cwd=options.pop("cwd", ROOT), **options)  # type: ignore[call-overload]
    if done.returncode:
        print(f"failed: {' '.join(command)}", file=sys.stderr)
        sys.exit(done.returncode)


def demo(arguments: list[str]) -> None:
    if not arguments and not MODEL.is_file():
        sys.exit(
            f"demo: this checkout is without the network that comes with the package, {MODEL.relative_to(ROOT)};\n"
            "fetch that file too, or name weights of your own: python3 dev.py demo WEIGHTS [PICTURES]"
        )
    python = environment("demo")
    # The installed command, not `python -m`, which would take the source folder where this runs from there.
    program = Path(python).with_name("yolonas.exe" if os.name == "nt" else "yolonas")
    command = ["demo"]
    if arguments:
        command = ["predict", f"model={arguments[0]}", *(f"source={path}" for path in arguments[1:2])]
    run([str(program), *command], cwd=Path.cwd())  # what the user names stands where the user is


def test(arguments: list[str]) -> None:
    python = environment("test", "[test]")
    # From the tests folder, so that the installed package is tested and not the source folder.
    pytest, where = [python, "-m", "pytest"], ROOT / "tests"
    if arguments:
        run([*pytest, *arguments], cwd=where)
        return
    # A file at a time on each core, where more threads would be in each other's way. Trainings in a process of their
    # own: what the other tests load brings threads and signal handlers along.
    trainings = sorted(path.name for path in where.glob("test_train*.py"))
    workers = ["-n", str(min(os.cpu_count() or 1, 8)), "--dist", "loadfile"]
    run(
        [*pytest, *workers, *(f"--ignore={name}" for name in trainings)],
        cwd=where,
        env={"OMP_NUM_THREADS": "1", **os.environ},
    )
    run([*pytest, *trainings], cwd=where)


def sanitize(arguments: list[str]) -> None:
    python = environment("test", "[test]")
    run([python, str(ROOT / "tests" / "native" / "sanitize.py"), *arguments])


def lint(_: list[str]) -> None:
    folder = ROOT / ".venv-lint"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True, clear=True)
    run(
        [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "ruff==0.17.*",
            "clang-format==23.*",
        ]
    )
    run([str(python), "-m", "ruff", "check", "."])
    run([str(python), "-m", "ruff", "format", "--check", "."])
    sources = [str(path) for path in sorted((ROOT / "csrc").rglob("*")) if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    run([str(python.parent / "clang-format"), "--dry-run", "--Werror", *sources])
    # pytest imports test modules by their bare names and stops at the second of one name.
    tests = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    if twice := [name for name, times in tests.items() if times > 1]:
        sys.exit(f"test modules need names of their own: {', '.join(twice)}")


def bench(arguments: list[str]) -> None:
    name, *rest = arguments if arguments and not arguments[0].startswith("-") else ["ops", *arguments]
    program = ROOT / "bench" / f"{name}.py"
    if not program.exists():
        sys.exit(f"no benchmark {name!r} in {program.parent}")
    # The other engines are large, and only these run them.
    extra = "bench" if name in ("network", "int8", "int8_accuracy", "predict", "export") else "test"
    run([environment(extra, f"[{extra}]"), str(program), *rest])


def main() -> None:
    commands = {"demo": demo, "test": test, "sanitize": sanitize, "lint": lint, "bench": bench}
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in commands:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    commands[name](sys.argv[2:])


if __name__ == "__main__":
    main()
