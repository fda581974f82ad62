"""Fixtures for the tests of the native modules."""

from __future__ import annotations

from types import ModuleType

import pytest
from emulated_cuda import build


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The module `_cuda` built against the emulator."""
    return build(tmp_path_factory.mktemp("emulated_cuda"))
