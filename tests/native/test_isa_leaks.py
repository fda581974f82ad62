"""No code of one instruction set may replace that of another; see isa_symbols.py, which also runs as a command."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from harness import native
from isa_symbols import FLAGS, ROOT, compile_table, compiler, leaks, objects_in

needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="no program nm")
needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler (set CXX)")


@needs_nm
@needs_compiler
@pytest.mark.parametrize("level", ["-O0", "-O3"])
@pytest.mark.parametrize("isa", list(FLAGS))
def test_compiled_tables_have_no_weak_symbols(isa: str, level: str, tmp_path: Path) -> None:
    if os.uname().machine != "x86_64" and FLAGS[isa]:
        pytest.skip(f"{isa} is not for {os.uname().machine}")
    assert leaks(compile_table(isa, level, tmp_path)) == []


@needs_nm
@needs_compiler
def test_a_weak_symbol_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "leak.cpp"
    source.write_text("inline int twice(int x) { return 2 * x; }\nint (*address)(int) = twice;\n")
    subprocess.run([str(compiler()), "-O0", "-c", str(source), "-o", str(tmp_path / "leak.o")], check=True)
    assert sorted(line.split(maxsplit=1)[1] for line in leaks(tmp_path / "leak.o")) == ["D address", "W twice(int)"]


@needs_nm
def test_objects_of_the_build_have_no_weak_symbols() -> None:
    """The folder that YOLONAS_BUILD_DIR names, or the one that a link to the module leads to."""
    named = os.environ.get("YOLONAS_BUILD_DIR")
    objects = objects_in(Path(named) if named else Path(native().__file__).resolve().parent)
    if not objects and not named:
        pytest.skip("YOLONAS_BUILD_DIR names no build folder, and the module does not lie in one")
    assert objects, f"no object files in {named}"
    assert {str(path): leaks(path) for path in objects} == {str(path): [] for path in objects}


def test_flags_are_those_of_the_build() -> None:
    text = (ROOT / "CMakeLists.txt").read_text()
    for isa, flags in FLAGS.items():
        assert f'yolonas_add_isa({isa} "{";".join(flags)}")' in text
