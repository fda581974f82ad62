"""Folders and zip files of data sets without content, and a place for them that is apart from the user's own."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from yolonas import download as download_module

YAML = "train: images/train\nval: images/val\nnames: [cell]\n"


def sets_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data sets' folder; the working directory is an empty one beside it, and nothing can be downloaded."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("YOLONAS_DATASETS", str(tmp_path / "sets"))
    monkeypatch.setenv("YOLONAS_OFFLINE", "1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download_module, "PAUSE", 0.0)
    return tmp_path / "sets"


def write(folder: Path, *files: str, yaml: str | None = None) -> Path:
    """A data set's folder with empty `files`, and a yaml called like it."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"")
    folder.mkdir(parents=True, exist_ok=True)
    if yaml is not None:
        (folder / f"{folder.name}.yaml").write_text(yaml)
    return folder


def zipped(*files: str, **contents: str) -> bytes:
    """A zip file with empty `files`, and others with `contents`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in {**dict.fromkeys(files, ""), **contents}.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def names(folder: Path) -> list[str]:
    """What is in a folder, without the files that lock it."""
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.endswith(".lock"))
