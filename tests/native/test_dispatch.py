"""The kernel table: which there are, that YOLONAS_CPU_ISA forces one, and that the forced one is what runs."""

from __future__ import annotations

import os

import numpy as np
import pytest
from harness import ISAS, native, run_python, runs_here, using_isa

from yolonas import _native
from yolonas.ops import conv2d_bias_act

PRINT_RESULT = """
import numpy as np
from yolonas import _native, ops
rng = np.random.default_rng(0)
x = rng.normal(0, 1, (1, 5, 7, 40)).astype(np.float32)
weight = rng.normal(0, 1, (17, 3, 3, 40)).astype(np.float32)
print(_native.build_info()["cpu_isa"], ops.conv2d_bias_act(x, weight, relu=False).tobytes().hex())
"""


def result_bytes() -> str:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (1, 5, 7, 40)).astype(np.float32)
    weight = rng.normal(0, 1, (17, 3, 3, 40)).astype(np.float32)
    return conv2d_bias_act(x, weight, relu=False).tobytes().hex()


def test_promised_instruction_sets_run_here() -> None:
    """Where CI promises an instruction set, its absence is a failure and not a row of skips."""
    promised = os.environ.get("YOLONAS_PROMISED_ISAS", "generic").split(",")
    assert [isa for isa in promised if not runs_here(isa)] == []


def test_the_list_of_tables_is_complete() -> None:
    available = native().available_isas().split(", ")
    assert available[-1] == "generic"
    assert set(available) <= set(ISAS)


@pytest.mark.parametrize("isa", ISAS)
def test_the_variable_forces_a_table_and_that_table_runs(isa: str) -> None:
    if not runs_here(isa):
        pytest.skip(f"this processor or build cannot run {isa}")
    run = run_python(PRINT_RESULT, YOLONAS_CPU_ISA=isa)
    assert run.returncode == 0, run.stderr
    name, found = run.stdout.split()
    assert name == isa
    with using_isa(isa):
        assert found == result_bytes()


def test_tables_round_differently() -> None:
    """Which is why the test above can tell them apart: only one of them has fused multiply-add."""
    if not (runs_here("generic") and runs_here("avx2")):
        pytest.skip("only one table runs here")
    results = []
    for isa in ("generic", "avx2"):
        with using_isa(isa):
            results.append(result_bytes())
    assert results[0] != results[1]


@pytest.mark.parametrize("value", ["", None])
def test_the_fastest_table_is_chosen_when_nothing_is_forced(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("YOLONAS_CPU_ISA", raising=False)
    run = run_python(PRINT_RESULT, **({} if value is None else {"YOLONAS_CPU_ISA": value}))
    assert run.stdout.split()[0] == native().available_isas().split(", ")[0]


@pytest.mark.parametrize("name", ["avx1024", "AVX2", " generic", "generic,avx2"])
def test_a_wrong_name_is_an_error_with_the_list(name: str) -> None:
    run = run_python("from yolonas import _native; _native.cpu()", YOLONAS_CPU_ISA=name)
    assert run.returncode == 1
    expected = f"ValueError: YOLONAS_CPU_ISA: must be one of {native().available_isas()}, got '{name}'"
    assert run.stderr.strip().splitlines()[-1] == expected


def test_switching_in_process_refuses_wrong_names_and_keeps_the_table() -> None:
    before = native().isa()
    with pytest.raises(ValueError, match=r"YOLONAS_CPU_ISA: must be one of .+, got 'sse9'"):
        native()._use_isa("sse9")
    assert native().isa() == before


def test_build_info_says_what_runs() -> None:
    info = _native.build_info()
    assert info["cpu_isa"] == native().isa()
    assert info["cpu_isas_available"] == native().available_isas()
    assert info["threads"] >= 1
    assert info["compiler"]
