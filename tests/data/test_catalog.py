"""What a user calls a data set becomes a yaml, a json or a description of it. Downloads are in `test_fetch`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from made_archives import YAML, names, sets_apart, write, zipped

from yolonas.config import COCO_NAMES
from yolonas.data.catalog import PUBLISHED, locate
from yolonas.data.data_yaml import DataConfig


@pytest.fixture(autouse=True)
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return sets_apart(tmp_path, monkeypatch)


# ---- files and folders


@pytest.mark.parametrize("name", ["a.json", "my set.JSON"])
def test_json_is_taken_as_it_is(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(b"")
    assert locate(path) == path
    assert locate(str(path)) == path


@pytest.mark.parametrize("name", ["set.yaml", "set.yml", "SET.YAML"])
def test_yaml_is_taken_as_it_is(tmp_path: Path, name: str):
    folder = write(tmp_path / "set", "images/val/a.jpg")
    (folder / name).write_text(YAML)
    assert locate(folder / name) == folder / name


def test_folder_with_a_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write(tmp_path / "set", "images/val/a.jpg")
    (folder / "any.yaml").write_text(YAML)
    assert locate(folder) == folder / "any.yaml"
    assert locate(f"{folder}/") == folder / "any.yaml"
    (folder / "hyp.yml").write_text("lr: 1")
    with pytest.raises(ValueError, match=r"set' holds several yamls \(any\.yaml, hyp\.yml\); give the path of one"):
        locate(folder)
    (folder / "data.yaml").write_text(YAML)
    assert locate(folder) == folder / "data.yaml"
    (folder / "set.yaml").write_text(YAML)
    assert locate(folder) == folder / "set.yaml"
    monkeypatch.chdir(folder)
    assert locate(".").resolve() == (folder / "set.yaml").resolve()
    monkeypatch.chdir(folder.parent)
    assert locate("set") == Path("set/set.yaml")


def test_folder_of_a_published_set_needs_no_yaml(tmp_path: Path):
    folder = write(tmp_path / "COCO8", "images/val/a.jpg")
    found = locate(folder)
    assert isinstance(found, DataConfig)
    assert (found.name, found.root, found.names) == ("coco8", folder, dict(enumerate(COCO_NAMES)))
    assert found.splits == {"train": ["images/train"], "val": ["images/val"]}


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "must hold a yaml with the keys val and names, got nothing"),
        (["a.jpg", "b.txt"], r"got a\.jpg, b\.txt; write one"),
        (
            ["annotations/x.json", "images/a.jpg"],
            r"holds no yaml, but annotations/x\.json; give the path of a COCO json",
        ),
    ],
)
def test_folder_without_a_yaml(tmp_path: Path, files: list[str], reason: str):
    with pytest.raises(ValueError, match=reason):
        locate(write(tmp_path / "set", *files))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.txt", "must be a yaml, a COCO json, a folder"),
        ("a.jpg", "must be a yaml"),
        ("a.tar.gz", "unpack it by hand and give the folder"),
        ("a.rar", "unpack it by hand"),
    ],
)
def test_other_files(tmp_path: Path, name: str, reason: str):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=reason):
        locate(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_named_pipe_is_not_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match="must be a regular file or a folder"):
        locate(tmp_path / "a.yaml")


def test_links(tmp_path: Path):
    write(tmp_path / "set", "images/val/a.jpg", yaml=YAML)
    (tmp_path / "link").symlink_to(tmp_path / "set")
    assert locate(tmp_path / "link") == tmp_path / "link" / "set.yaml"
    (tmp_path / "broken.yaml").symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match="must be a regular file"):
        locate(tmp_path / "broken.yaml")


@pytest.mark.parametrize("data", [None, 5, b"coco8", ["coco8"], {}])
def test_other_types(data: Any):
    with pytest.raises(TypeError):
        locate(data)


@pytest.mark.parametrize("data", ["", "  ", "a\0b"])
def test_no_name(data: str):
    with pytest.raises(ValueError, match="data must be a file, a folder or one of coco8, coco128, coco"):
        locate(data)


def test_long_and_odd_names():
    for data in ("x" * 5000, "x/" * 3000, "\ud800", "~nobody-of-that-name", "$HOME", "*", "a\nb"):
        with pytest.raises(FileNotFoundError, match=r"data: .* (is not in|does not exist)"):
            locate(data)


def test_address():
    with pytest.raises(ValueError, match=r"must be on this machine, got 'https://a\.b/c\.zip'; download it by hand"):
        locate("https://a.b/c.zip", download=True)


# ---- names


def test_order_of_places(sets: Path):
    far = write(sets / "cells", "images/val/a.jpg", yaml=YAML)
    assert locate("cells") == locate("cells.yaml") == locate("cells.zip") == far / "cells.yaml"
    (sets / "cells.yaml").write_text("path: cells\n" + YAML)
    assert locate("cells") == locate("cells.yaml") == sets / "cells.yaml"
    near = write(Path("cells"), "images/val/a.jpg", yaml=YAML)
    assert locate("cells") == locate("cells.yaml") == near / "cells.yaml"
    Path("cells.yaml").write_text("path: cells\n" + YAML)
    assert locate("cells.yaml") == Path("cells.yaml")


@pytest.mark.parametrize("name", ["coco8", "coco8.yaml", "coco8.zip", "COCO8", "coco8.yml"])
def test_published_set_that_is_here(sets: Path, name: str):
    write(sets / "coco8", "images/val/a.jpg")
    found = locate(name)
    assert isinstance(found, DataConfig)
    assert found.root == sets / "coco8"


@pytest.mark.parametrize("pictures", ["images/val2017/1.jpg", "val2017/1.jpg"])
def test_coco_is_a_json(sets: Path, pictures: str):
    write(sets / "coco", pictures, "annotations/instances_val2017.json")
    found = locate("coco.yaml")
    assert isinstance(found, DataConfig)
    assert found.splits["val"] == ["annotations/instances_val2017.json"]
    assert found.names is None


def test_folder_of_another_kind_hides_no_published_set(sets: Path):
    write(Path("coco8"), "setup.py")
    write(sets / "coco8", "images/val/a.jpg")
    found = locate("coco8")
    assert isinstance(found, DataConfig)
    assert found.root == sets / "coco8"
    with pytest.raises(ValueError, match="must hold a yaml"):
        locate("./coco8/../coco8")


def test_published_set_that_is_nowhere(sets: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FileNotFoundError) as caught:
        locate("coco")
    text = str(caught.value)
    assert f"'coco' is neither in {Path.cwd()} nor in {sets}; download=True fetches:" in text
    assert "http://images.cocodataset.org/zips/val2017.zip (815.6 MB)" in text
    assert f"put annotations_trainval2017.zip and val2017.zip into {sets} by hand" in text
    assert f"(YOLONAS_DATASETS sets another place), or into {sets / 'coco'}:\n  images/val2017/*.jpg" in text
    assert "CC BY 4.0" in text
    with pytest.raises(FileNotFoundError, match=r"downloads are off \(YOLONAS_OFFLINE is set\)"):
        locate("coco8.yaml", download=True)
    assert not sets.exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("coco9.yaml", r"did you mean .*coco8\.yaml"),
        ("coco9", "did you mean .*coco8"),
        ("coco_128", "did you mean coco128"),
        ("cels.yaml", r"did you mean cells\.yaml\?"),
        ("bloods", r"did you mean blood\?"),
        ("imagenet", "give a data yaml, a COCO json or one of coco8, coco128, coco"),
        ("sub/cels.yaml", r"is not in sub; did you mean cells\.yml"),
        ("sub/coco8.yaml", "is not in sub; give"),
        ("nowhere/a.yaml", "nor does its folder nowhere"),
    ],
)
def test_near_misses(sets: Path, name: str, reason: str):
    Path("cells.yaml").write_text(YAML)
    write(sets / "blood", "x")
    write(Path("sub"), "cells.yml")
    with pytest.raises(FileNotFoundError, match=reason):
        locate(name)


def test_table():
    for published in PUBLISHED.values():
        for archive in published.archives:
            assert len(bytes.fromhex(archive.sha256)) == 32
            assert archive.size
            assert all(url.startswith(("http://images.cocodataset.org/", "https://")) for url in archive.urls)
            assert all(url.endswith(f"/{archive.file_name}") for url in archive.urls)
            assert archive.found_at[0].startswith(archive.folder)


# ---- zip files


def test_zip_is_unpacked_once(tmp_path: Path, sets: Path):
    (tmp_path / "cells.zip").write_bytes(zipped("cells/images/val/1.jpg", **{"cells/data.yaml": YAML}))
    found = locate(tmp_path / "cells.zip")
    assert found == sets / "cells" / "data.yaml"
    assert (sets / "cells" / "images" / "val" / "1.jpg").is_file()
    (sets / "cells" / "mine.txt").write_text("kept while the archive is the same")
    assert locate(tmp_path / "cells.zip") == found
    assert (sets / "cells" / "mine.txt").exists()
    (tmp_path / "cells.zip").write_bytes(zipped("cells/images/val/22.jpg", **{"cells/data.yaml": YAML}))
    assert locate(tmp_path / "cells.zip") == found
    assert names(sets / "cells" / "images" / "val") == ["22.jpg"]
    assert names(sets) == ["cells"]


def test_zips_of_one_name(tmp_path: Path, sets: Path):
    write(sets / "cells", "theirs.txt")
    found = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "cells.zip").write_bytes(zipped("images/val/1.jpg", **{"data.yaml": YAML}))
        found.append(locate(tmp_path / place / "cells.zip"))
    assert len({str(path) for path in found}) == 2
    assert [locate(tmp_path / place / "cells.zip") for place in ("one", "two")] == found
    assert names(sets / "cells") == ["theirs.txt"]


def test_zip_of_a_published_set(tmp_path: Path, sets: Path):
    (tmp_path / "coco8.zip").write_bytes(zipped("coco8/images/val/1.jpg", "coco8/labels/val/1.txt"))
    found = locate(tmp_path / "coco8.zip")
    assert isinstance(found, DataConfig)
    assert found.root == sets / "coco8"


def test_yaml_from_another_machine(tmp_path: Path, sets: Path):
    yaml = "path: /home/someone/cells\n" + YAML
    (tmp_path / "cells.zip").write_bytes(zipped("cells/images/val/1.jpg", **{"cells/cells.yaml": yaml}))
    found = locate(tmp_path / "cells.zip")
    assert isinstance(found, DataConfig)
    assert found.root == sets / "cells"
    assert found.names == {0: "cell"}


def test_yaml_of_an_export_that_points_above_itself(tmp_path: Path, sets: Path):
    yaml = "train: ../train/images\nval: ../valid/images\nnames: [cell]\n"
    (tmp_path / "cells.zip").write_bytes(zipped("train/images/1.jpg", "valid/images/2.jpg", **{"data.yaml": yaml}))
    assert locate(tmp_path / "cells.zip") == sets / "cells" / "data.yaml"


def test_zip_without_a_yaml_leaves_nothing(tmp_path: Path, sets: Path):
    (tmp_path / "cells.zip").write_bytes(zipped("cells/images/val/1.jpg"))
    with pytest.raises(ValueError, match=r"cells\.zip must hold a yaml with the keys val and names, got images"):
        locate(tmp_path / "cells.zip")
    assert names(sets) == []


def test_zip_that_is_broken_or_hostile(tmp_path: Path, sets: Path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"a\.zip is no whole zip file"):
        locate(tmp_path / "a.zip")
    (tmp_path / "a.zip").write_bytes(zipped("../../evil.txt"))
    with pytest.raises(ValueError, match="not safe"):
        locate(tmp_path / "a.zip")
    assert names(sets) == []
    assert not (tmp_path / "evil.txt").exists()


def test_zip_called_like_nothing_good(tmp_path: Path, sets: Path):
    path = tmp_path / "...zip"
    path.write_bytes(zipped("images/val/1.jpg", **{"data.yaml": YAML}))
    found = locate(path)
    assert isinstance(found, Path)
    assert found.resolve().is_relative_to(sets.resolve())
    assert found.resolve().parent != sets.resolve()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_sets_folder_that_cannot_be_written(tmp_path: Path, sets: Path):
    sets.mkdir(mode=0o500)
    (tmp_path / "cells.zip").write_bytes(zipped("images/val/1.jpg", **{"data.yaml": YAML}))
    with pytest.raises(ValueError, match="YOLONAS_DATASETS sets another place"):
        locate(tmp_path / "cells.zip")


def test_sets_folder_that_is_a_file(tmp_path: Path, sets: Path):
    sets.write_bytes(b"")
    (tmp_path / "cells.zip").write_bytes(zipped("images/val/1.jpg", **{"data.yaml": YAML}))
    with pytest.raises(ValueError, match="YOLONAS_DATASETS sets another place"):
        locate(tmp_path / "cells.zip")
    with pytest.raises(FileNotFoundError, match="download=True fetches"):
        locate("coco8")
