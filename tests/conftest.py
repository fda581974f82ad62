"""Fixtures for all tests. Tests marked `shared` need real pictures and weights; without them they skip, visibly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import yolonas

SHARED = Path(os.environ.get("YOLONAS_TEST_DATA", Path(__file__).resolve().parents[2] / "shared"))


def pytest_report_header(config: pytest.Config) -> list[str]:
    from yolonas import _native

    build = _native.build_info()
    present = (SHARED / "reference").is_dir()
    return [
        f"yolonas {yolonas.__version__} from {Path(yolonas.__file__).parent}",
        f"CPU kernels: {build['cpu_isas_available']}; CUDA module for: {build['cuda_architectures'] or 'not built'}",
        f"real pictures and weights: {SHARED if present else 'absent, tests marked shared will skip'}",
    ]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with `reference/`, `data/` and `weights/`."""
    if not (SHARED / "reference").is_dir():
        pytest.skip(f"no folder {SHARED} with reference/, data/ and weights/ (set YOLONAS_TEST_DATA)")
    return SHARED
