"""Looks for code that one instruction set could lend to another: weak symbols in the objects of `csrc/cpu/<isa>`.

    python tests/native/isa_symbols.py [build folder ...]

An inline function or template that is not inlined becomes a weak symbol of every object that holds it, and the linker
keeps one copy for all, perhaps the one with AVX2 in it: an illegal instruction on the next older processor. With no
argument the files are compiled here, optimised and not; with build folders the objects in them are read. Exit status 1
if there is such a symbol, 2 if there is nothing to read. Needs `nm` and, without an argument, the C++ compiler in CXX.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = {  # as in CMakeLists.txt
    "generic": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
    "avx512vnni": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma"],
}
WEAK, STRONG = tuple("WwVvu"), tuple("TDBRC")  # nm's letters; u: unique globals


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++"))


def compile_table(isa: str, level: str, folder: Path) -> Path:
    """Compiles `csrc/cpu/<isa>/table.cpp` as the build does, at the given optimisation level."""
    target = folder / f"{isa}{level}.o"
    source = ROOT / "csrc" / "cpu" / isa / "table.cpp"
    flags = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-ffp-contract=off"]
    command = [str(compiler()), *flags, level, *FLAGS[isa], f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


def objects_in(build: Path) -> list[Path]:
    """Objects of the instruction sets in a build folder made by CMake."""
    return sorted(path for isa in FLAGS for path in build.glob(f"**/yolonas_{isa}.dir/**/*.o"))


def leaks(path: Path) -> list[str]:
    """Lines of nm with a weak symbol, or any other name that is seen from outside but for the table's."""
    listing = subprocess.run(["nm", "-C", str(path)], check=True, capture_output=True, text=True).stdout
    found = []
    for line in listing.splitlines():
        kind, _, name = line[17:].partition(" ")
        if kind in WEAK or (kind in STRONG and not name.endswith("::kTable")):
            found.append(line.strip())
    return found


def main() -> int:
    paths = [path for folder in sys.argv[1:] for path in objects_in(Path(folder))]
    if sys.argv[1:] and not paths:
        print(f"isa_symbols: no objects of {', '.join(FLAGS)} in {', '.join(sys.argv[1:])}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        if not paths:
            if compiler() is None:
                print("isa_symbols: no C++ compiler (set CXX) and no build folder given", file=sys.stderr)
                return 2
            paths = [compile_table(isa, level, Path(folder)) for isa in FLAGS for level in ("-O0", "-O3")]
        found = {path: leaks(path) for path in paths}
    for path, lines in found.items():
        print(f"{path}: {'ok' if not lines else 'leaks'}", *lines, sep="\n    ")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
