"""The harness itself: its guard pages must really stop a step too far, or the tests that use them mean nothing."""

from __future__ import annotations

import signal

import numpy as np
import pytest
from harness import guarded, guarded_empty, native, run_python, using_isa

STEP_TOO_FAR = """
import ctypes
import numpy as np
from harness import guarded
array = guarded(np.arange({count}, dtype=np.{dtype}), front={front})
assert array.tolist() == list(range({count}))
address = array.ctypes.data + ({count} * array.itemsize if not {front} else -1)
print("ready", flush=True)
ctypes.c_char.from_address(address).{what}
"""


@pytest.mark.parametrize("what", ["value", "value = b'x'"], ids=["read", "write"])
@pytest.mark.parametrize("front", [False, True])
def test_a_step_too_far_ends_the_process(front: bool, what: str) -> None:
    for count, dtype in ((1, "uint8"), (1500, "float32")):
        run = run_python(
            STEP_TOO_FAR.format(count=count, dtype=dtype, front=front, what=what), ASAN_OPTIONS="handle_segv=0"
        )
        assert run.stdout == "ready\n", run.stderr
        assert run.returncode == -signal.SIGSEGV


def test_guarded_memory_is_an_ordinary_array() -> None:
    values = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    copy = guarded(values)
    assert np.array_equal(copy, values)
    assert copy.flags.c_contiguous
    assert copy.flags.writeable
    assert guarded(np.zeros((0, 3))).shape == (0, 3)
    assert guarded(np.float32(3)).shape == ()
    assert not np.array_equal(guarded_empty((2,), np.int64), [0, 0])


def test_the_table_is_put_back_after_an_error() -> None:
    before = native().isa()
    with pytest.raises(KeyError), using_isa("generic"):
        raise KeyError
    assert native().isa() == before
