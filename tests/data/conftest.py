"""Every test here must leave no reading thread behind."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from made_files import reader_threads


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    end = time.monotonic() + 5
    while reader_threads() and time.monotonic() < end:
        time.sleep(0.01)
    assert reader_threads() == []
