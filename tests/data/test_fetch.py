"""Archives of data sets are fetched from the loopback: checked, unpacked, and only when the user says so."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_server import Site, serving
from made_archives import YAML, names, sets_apart, write, zipped

from yolonas.data import catalog as catalog_module
from yolonas.data.catalog import locate
from yolonas.data.data_yaml import DataConfig
from yolonas.data.fetch import Archive


@pytest.fixture(autouse=True)
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return sets_apart(tmp_path, monkeypatch)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server with a data set called `tiny`, which is the only published one, and the only address that is known."""
    monkeypatch.delenv("YOLONAS_OFFLINE")
    content = zipped("tiny/images/val/1.jpg", "tiny/labels/val/1.txt", "tiny/README.md")
    with serving(content) as site:
        publish(monkeypatch, site, Archive((f"{site.url}/tiny.zip",), sha(content), ("images/val",), len(content)))
        yield site


def publish(monkeypatch: pytest.MonkeyPatch, site: Site, *archives: Archive) -> None:
    tiny = catalog_module.Published("tiny", {"val": ["images/val"]}, archives, ("images/val/*.jpg",), "no licence")
    monkeypatch.setattr(catalog_module, "PUBLISHED", {"tiny": tiny})


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---- downloads


def test_download(site: Site, sets: Path):
    with pytest.raises(FileNotFoundError, match=r"download=True fetches:\n  http://127.0.0.1:\d+/weights/tiny\.zip"):
        locate("tiny")
    assert site.requests == []
    found = locate("tiny", download=True)
    assert isinstance(found, DataConfig)
    assert found.root == sets / "tiny"
    assert names(sets) == ["tiny"]
    assert names(sets / "tiny") == ["README.md", "images", "labels"]
    assert locate("tiny.yaml") == found
    assert len(site.requests) == 1


def test_download_of_another_file(site: Site, sets: Path):
    site.content = site.content[:-1] + b"?"
    with pytest.raises(FileNotFoundError) as caught:
        locate("tiny", download=True)
    text = str(caught.value)
    assert "'tiny' could not be fetched" in text
    assert "tried http://127.0.0.1" in text
    assert "SHA-256" in text
    assert f"put tiny.zip into {sets} by hand" in text
    site.content += b"more"
    with pytest.raises(FileNotFoundError, match="expected"):
        locate("tiny", download=True)
    site.statuses = [404]
    with pytest.raises(FileNotFoundError, match="answered 404"):
        locate("tiny", download=True)
    assert names(sets) == []


def test_next_address(site: Site, sets: Path, monkeypatch: pytest.MonkeyPatch):
    urls = (f"{site.url}/tiny.zip", f"{site.url}/again/tiny.zip")
    publish(monkeypatch, site, Archive(urls, sha(site.content), ("images/val",), len(site.content)))
    site.statuses = [403]
    assert isinstance(locate("tiny", download=True), DataConfig)


def test_archive_that_was_put_there_by_hand(site: Site, sets: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("YOLONAS_OFFLINE", "1")
    sets.mkdir()
    (sets / "tiny.zip").write_bytes(site.content[:-1])
    with pytest.raises(ValueError, match=rf"tiny\.zip must have {len(site.content)} bytes"):
        locate("tiny")
    (sets / "tiny.zip").write_bytes(site.content[:-1] + b"?")
    with pytest.raises(ValueError, match=r"tiny\.zip must have the SHA-256"):
        locate("tiny")
    (sets / "tiny.zip").write_bytes(site.content)
    assert isinstance(locate("tiny"), DataConfig)
    assert names(sets) == ["tiny", "tiny.zip"]
    assert site.requests == []


def test_interrupted_while_unpacking(site: Site, sets: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("yolonas.data.unpack._extract", interrupt)
        with pytest.raises(KeyboardInterrupt):
            locate("tiny", download=True)
    assert names(sets) == ["tiny.zip"]  # whole and checked: not fetched again
    locate("tiny", download=True)
    assert len(site.requests) == 1


def test_set_of_several_archives(site: Site, sets: Path, monkeypatch: pytest.MonkeyPatch):
    """As COCO's: pictures and annotations apart, of which one file is needed."""
    pictures = zipped("val2017/1.jpg", "val2017/2.jpg")
    others = zipped("annotations/instances_val.json", "annotations/captions.json")
    wanted = ("annotations/instances_val.json",)
    with serving(others) as second:
        publish(
            monkeypatch,
            site,
            Archive((f"{second.url}/a.zip",), sha(others), wanted, len(others), "annotations", wanted),
            Archive((f"{site.url}/b.zip",), sha(pictures), ("images/val", "val"), len(pictures), "images/val"),
        )
        site.statuses = [404]
        with pytest.raises(FileNotFoundError):
            locate("tiny", download=True)
        assert names(sets / "tiny" / "annotations") == ["instances_val.json"]
        site.content = pictures
        assert isinstance(locate("tiny", download=True), DataConfig)
        assert names(sets / "tiny" / "images" / "val") == ["1.jpg", "2.jpg"]
        assert len(second.requests) == 1
        assert names(sets) == ["tiny"]


def test_archive_without_what_it_should_hold(site: Site, sets: Path, monkeypatch: pytest.MonkeyPatch):
    publish(monkeypatch, site, Archive((f"{site.url}/a.zip",), sha(site.content), ("pictures",), len(site.content)))
    with pytest.raises(ValueError, match=r"a\.zip must hold pictures, which is missing"):
        locate("tiny", download=True)
    assert not (sets / "tiny").exists()


def test_files_in_the_way(site: Site, sets: Path):
    write(sets / "tiny", "mine.txt")
    with pytest.raises(ValueError, match="tiny exists already; move it away"):
        locate("tiny", download=True)
    assert names(sets / "tiny") == ["mine.txt"]


# ---- what yamls say under download


def write_yaml(site: Site, **keys: object) -> Path:
    path = Path("mine.yaml")
    path.write_text("path: ../datasets/mine\n" + YAML + "".join(f"{key}: {value}\n" for key, value in keys.items()))
    return path


def test_yaml_with_address_and_checksum(site: Site, sets: Path):
    path = write_yaml(site, download=f"{site.url}/x.zip", sha256=sha(site.content).upper(), size=len(site.content))
    with pytest.raises(FileNotFoundError) as caught:
        locate(path)
    text = str(caught.value)
    assert "mine.yaml names images/train, images/val, and nothing of it is in" in text
    assert f"download=True fetches {site.url}/x.zip (0.0 MB) to {sets / 'mine'}" in text
    found = locate(path, download=True)
    root = found.root if isinstance(found, DataConfig) else None
    assert root == sets / "mine"
    assert (sets / "mine" / "images" / "val" / "1.jpg").is_file()
    locate(path)
    assert len(site.requests) == 1


def test_yaml_with_a_published_address(site: Site, sets: Path):
    locate(write_yaml(site, download=f"{site.url}/tiny.zip"), download=True)
    assert (sets / "mine" / "images" / "val" / "1.jpg").is_file()


@pytest.mark.parametrize(
    ("download", "reason"),
    [
        (
            "https://127.0.0.1/a.zip",
            "is not fetched without a checksum: add sha256: to the yaml, or put the files into",
        ),
        ("bash get.sh", "its download: is no web address, and scripts are never run"),
        ("|\n  import os\n  os.system('touch evil')", "scripts are never run"),
        ("[https://127.0.0.1/a.zip, b]", "is no web address"),
        ("file:///etc/passwd", "is no web address"),
        ("ftp://a.b/c.zip", "is no web address"),
        ("https://127.0.0.1/a.zip; rm -rf x", "is no web address"),
    ],
)
def test_yaml_whose_download_is_refused(site: Site, sets: Path, download: str, reason: str):
    path = write_yaml(site, download=download)
    for allowed in (False, True):
        with pytest.raises(FileNotFoundError, match=reason):
            locate(path, download=allowed)
    assert not Path("evil").exists()
    assert not sets.exists()


def test_yaml_with_an_archive_of_another_kind(site: Site):
    path = write_yaml(site, download="https://127.0.0.1/a.tar.gz", sha256="0" * 64)
    with pytest.raises(FileNotFoundError, match="only zip files are unpacked here"):
        locate(path, download=True)


def test_yaml_with_a_wrong_checksum(site: Site, sets: Path):
    with pytest.raises(FileNotFoundError, match=f"SHA-256 {sha(site.content)}, expected {'0' * 64}"):
        locate(write_yaml(site, download=f"{site.url}/x.zip", sha256="0" * 64), download=True)
    assert names(sets) == []


def test_yaml_whose_pictures_are_in_the_sets_folder(sets: Path):
    Path("mine.yaml").write_text("path: /home/someone/mine\n" + YAML)
    with pytest.raises(FileNotFoundError, match=r"nothing of it is in /home/someone/mine; put the files into .*mine"):
        locate("mine.yaml")
    write(sets / "mine", "images/val/1.jpg")
    found = locate("mine.yaml")
    assert isinstance(found, DataConfig)
    assert found.root == sets / "mine"


def test_yaml_called_like_a_published_set(sets: Path):
    Path("coco8.yaml").write_text("path: nowhere\n" + YAML)
    with pytest.raises(FileNotFoundError, match=r"data=coco8 without \.yaml is the published data set"):
        locate("coco8.yaml")


def test_broken_yaml():
    Path("a.yaml").write_text("[")
    with pytest.raises(ValueError, match=r"a\.yaml cannot be read as yaml"):
        locate("a.yaml")
