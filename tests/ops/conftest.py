"""Kernel tests run once per instruction set: `isa` switches the table for the time of a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import ISAS, runs_here, using_isa


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    if not runs_here(request.param):
        pytest.skip(f"this processor or build cannot run {request.param}")
    with using_isa(request.param):
        yield request.param
