"""Where things are kept, by platform and environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolonas.folders import datasets_folder, is_offline, weights_folder


def test_weights_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("YOLONAS_WEIGHTS", "~/w")
    assert weights_folder() == Path.home() / "w"
    monkeypatch.delenv("YOLONAS_WEIGHTS")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights_folder() == tmp_path / "yolonas" / "weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert weights_folder() == Path.home() / ".cache" / "yolonas" / "weights"
    monkeypatch.setattr("sys.platform", "darwin")
    assert weights_folder() == Path.home() / "Library" / "Caches" / "yolonas" / "weights"
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert weights_folder() == tmp_path / "yolonas" / "weights"


def test_datasets_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("YOLONAS_DATASETS", str(tmp_path))
    assert datasets_folder() == tmp_path
    monkeypatch.delenv("YOLONAS_DATASETS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert datasets_folder() == tmp_path / "yolonas" / "datasets"


@pytest.mark.parametrize(("value", "offline"), [("", False), ("0", False), ("no", False), ("1", True), ("on", True)])
def test_is_offline(monkeypatch: pytest.MonkeyPatch, value: str, offline: bool):
    monkeypatch.setenv("YOLONAS_OFFLINE", value)
    assert is_offline() == offline
