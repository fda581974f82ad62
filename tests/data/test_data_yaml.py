"""Data yamls: what they say, and what is refused."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from made_labels import write

from yolonas.data.data_yaml import (
    MAX_CLASSES,
    MAX_YAML_BYTES,
    names_of_yaml,
    printable,
    read_data_yaml,
    shortened,
    shown,
)


def test_a_full_yaml(tmp_path: Path) -> None:
    file = write(
        tmp_path / "pets.yaml",
        "train: [images/a, lists/b.txt]\nvalidation: annotations/instances_val.json\ntest:\n"
        "images: {val: pictures}\nnc: 2\nnames: {1: dog, 0: cat}\n"
        f"download: http://localhost/pets.zip\nsha256: {'0A' * 32}\nsize: 17\n",
    )
    config = read_data_yaml(file)
    assert (config.name, config.file, config.root) == ("pets", file, tmp_path)
    assert config.splits == {"train": ["images/a", "lists/b.txt"], "val": ["annotations/instances_val.json"]}
    assert list(config.names.items()) == [(0, "cat"), (1, "dog")]
    assert config.images == {"val": "pictures"}
    assert (config.download, config.sha256, config.size) == ("http://localhost/pets.zip", "0A" * 32, 17)


def test_download_code_is_text(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "val: x\nnames: [a]\ndownload: !!python/object/apply:os.system ['touch here']\n")
    assert read_data_yaml(file).download == ["touch here"]
    assert not Path("here").exists()


@pytest.mark.parametrize("key", ["val", "valid", "validation"])
def test_names_of_the_val_split(tmp_path: Path, key: str) -> None:
    assert read_data_yaml(write(tmp_path / "a.yaml", f"{key}: x\n")).splits == {"val": ["x"]}


def test_names_are_taken_as_written(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "val: x\nnames: [no, 1.0, 2020-01-01, 0x10, 'null', 日本]\n")
    assert list(read_data_yaml(file).names.values()) == ["no", "1.0", "2020-01-01", "0x10", "null", "日本"]


def test_without_names(tmp_path: Path) -> None:
    assert read_data_yaml(write(tmp_path / "a.yaml", "val: x.json\n")).names is None
    assert read_data_yaml(write(tmp_path / "b.yaml", "val: x\nnc: 2\n")).names == {0: "class_0", 1: "class_1"}


def test_utf8_with_a_mark(tmp_path: Path) -> None:
    assert read_data_yaml(write(tmp_path / "a.yaml", b"\xef\xbb\xbfval: x\n")).splits == {"val": ["x"]}


def test_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, sets = tmp_path / "here", tmp_path / "sets"
    (tmp_path / "yamls").mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("YOLONAS_DATASETS", str(sets))

    def root(path: str, folder: str = "yamls") -> Path:
        return read_data_yaml(write(tmp_path / folder / "a.yaml", f"path: {path}\nval: x\n")).root

    assert root("") == root("~") == tmp_path / "yamls"
    assert root(str(tmp_path)) == tmp_path
    assert root("pets") == tmp_path / "yamls/pets"  # which is missing: the text of the error will say so
    assert root("pets", folder="other/pets") == tmp_path / "other/pets"
    (here / "pets").mkdir()
    assert root("pets") == here / "pets"
    (sets / "pets").mkdir(parents=True)
    assert root("pets") == root("../datasets/pets") == sets / "pets"
    (tmp_path / "yamls/pets").mkdir()
    assert root("pets") == tmp_path / "yamls/pets"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "must be a mapping with train, val and names, got \\['a'\\]"),
        ("", "must be a mapping"),
        ("names: [a]\n", "must have train, val or test, got the keys \\['names'\\]"),
        ("val: {a: b}\n", "val must be a path or a list of paths"),
        ("val: [[a]]\n", "val must be a path or a list of paths"),
        ("val: []\n", "val must have at least one path"),
        ('val: "a\\0b"\n', "val must be a path"),
        ("path: [a]\nval: a\n", "path must be the folder"),
        ("val: a\nnames: []\n", "names must have at least one class, got none"),
        ("val: a\nnames: {}\n", "names must have at least one class, got none"),
        ("val: a\nnc: 0\n", "nc must be a whole number from 1 to 100000, got '0'"),
        ("val: a\nnames: cat\n", "names must be a list or a mapping"),
        ("val: a\nnames: [[cat]]\n", "name of class 0 must be a text"),
        ("val: a\nnames: {a: cat}\n", "class numbers 0 and up as keys, got 'a'"),
        ("val: a\nnames: {1: cat, 2: dog}\n", "class numbers 0 to 1, each once; 0 is missing"),
        ("val: a\nnames: {-1: cat, 0: dog}\n", "class numbers 0 and up"),
        ("val: a\nnames: [cat]\nnc: 2\n", "nc must be the number of names, 1, got 2"),
        ("val: a\nnc: -1\n", "nc must be a whole number from 1 to 100000, got '-1'"),
        ("val: a\nnc: 999999999\n", "nc must be a whole number from 1 to 100000, got '999999999'"),
        ("val: a\nnc: " + "9" * 5000 + "\n", "nc must be a whole number from 1 to 100000"),
        ("val: a\nsize: many\n", "size must be a whole number"),
        ("val: a\nsha256: 12\n", "sha256 must be 64 hexadecimal digits"),
        ("val: a\nimages: [a]\n", "images must be a folder or a mapping"),
        ("val: x\nnames: a: b\n", r"cannot be read as yaml: mapping values are not allowed .*\(line 2\)$"),
        ("val: [\n", "cannot be read as yaml"),
        # Newer readers of yaml say it themselves, in other words.
        ("[" * 100_000, "cannot be read as yaml: (it is nested too deeply|exceeded maximum nesting depth)"),
        ("- " * 100_000, "cannot be read as yaml: (it is nested too deeply|exceeded maximum nesting depth)"),
        ("{a: " * 100_000, "cannot be read as yaml: (it is nested too deeply|exceeded maximum nesting depth)"),
        (b"\xff\xfe\x00", "cannot be read as yaml: it is not UTF-8 text; save it as UTF-8$"),
        ("val: a\n".encode("utf-16"), "it is not UTF-8 text; save it as UTF-8$"),
        ("val: a\n".encode("utf-16-le"), "it is not UTF-8 text; save it as UTF-8$"),
        ("val: caf\u00e9\n".encode("latin-1"), "it is not UTF-8 text; save it as UTF-8$"),
        ("val: a\nnames: {0: x, 0: y}\n", r"cannot be read as yaml: the key '0' is there twice \(line 2\)$"),
        ("val: a\nnames: [x]\n\nval: b\n", r"the key 'val' is there twice \(line 4\)$"),
        ("a: &k val\n*k : b\nval: c\n", r"the key 'val' is there twice \(line 3\)$"),
        ("deep: [{a: [{b: 1, b: 2}]}]\nval: c\n", r"the key 'b' is there twice \(line 1\)$"),
        ("base: &b {val: a}\n<<: *b\nnames: [a]\n", r"merge keys \(<<\) are not read, write them out \(line 2\)$"),
        ("? [a]\n: b\nval: a\n", r"found unhashable key \(line 1\)$"),
        ("%TAG !a! tag:x\n" * 200_000 + "--- a\n", "it has too many directives"),
        ("val: [" + "x, " * 300_000 + "]", "it has more than 250000 keys and values"),
        ("val: *" + "x" * 100_000 + "\n", "found undefined alias"),
        ("val: " + "x" * 5000 + "\n", "val must be a path or a list of paths"),
        ("val: a\npath: " + "x" * 5000 + "\n", "path must be the folder"),
        ("val: a\nimages: " + "x" * 5000 + "\n", "images must be a folder or a mapping"),
        ("val: a\nnames: [[" + "x" * 5000 + "]]\n", "name of class 0 must be a text"),
    ],
)
def test_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    file = write(tmp_path / "bad.yaml", text)
    with pytest.raises(ValueError, match=message) as caught:
        read_data_yaml(file)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("nested", [False, True])
def test_aliases_that_grow(tmp_path: Path, nested: bool) -> None:
    start, inner = ("{x: y}", "{{m: [{0}]}}") if nested else ("[x, x]", "[{0}]")
    lines = [f"a0: &a0 {start}"]
    lines += [f"a{i}: &a{i} {inner.format(', '.join([f'*a{i - 1}'] * 9))}" for i in range(1, 20)]
    file = write(tmp_path / "bomb.yaml", "\n".join([*lines, "val: *a19", ""]))
    with pytest.raises(ValueError, match="val must be a path or a list of paths") as caught:
        read_data_yaml(file)
    assert len(str(caught.value)) < 1000


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_data_yaml(tmp_path / "missing.yaml")
    with pytest.raises(ValueError, match="a folder or a device"):
        read_data_yaml(tmp_path)
    large = tmp_path / "large.yaml"
    with large.open("wb") as file:
        file.truncate(MAX_YAML_BYTES + 1)
    with pytest.raises(ValueError, match="more than the limit"):
        read_data_yaml(large)


def test_names_of_yaml(tmp_path: Path) -> None:
    listed = write(tmp_path / "list.yaml", "names: [cat, dog]\n")
    assert names_of_yaml(str(listed), 2) == {0: "cat", 1: "dog"}
    assert names_of_yaml(write(tmp_path / "dict.yaml", "names: {1: dog, 0: cat}\n"), 2) == {0: "cat", 1: "dog"}
    with pytest.raises(ValueError, match=r"list\.yaml must have names for the model's 3 classes, got 2"):
        names_of_yaml(listed, 3)
    with pytest.raises(ValueError, match="must have names for the model's 1 classes, got none"):
        names_of_yaml(write(tmp_path / "none.yaml", "- a\n"), 1)
    with pytest.raises(ValueError, match=r"data: .*bad\.yaml cannot be read as yaml"):
        names_of_yaml(write(tmp_path / "bad.yaml", "names: ["), 1)
    with pytest.raises(ValueError, match="cannot be read as yaml: no such file"):
        names_of_yaml("nowhere.yaml", 1)


@pytest.mark.parametrize("stem", ["data", "Dataset", "_annotations"])
def test_the_folder_gives_the_name_where_the_file_has_none(tmp_path: Path, stem: str) -> None:
    file = write(tmp_path / f"pets/{stem}.yaml", "val: x\n")
    assert read_data_yaml(file).name == "pets"
    (tmp_path / "pets/sub").mkdir()
    assert read_data_yaml(tmp_path / "pets/sub" / ".." / file.name).name == "pets"
    assert read_data_yaml(write(tmp_path / "pets/my_data.yaml", "val: x\n")).name == "my_data"


def test_names_are_printable(tmp_path: Path) -> None:
    names = r'["a\0b", "c\ed", " e\n\tf ", "\u202eg", "h\xA0i"]'
    expected = ["a?b", "c?d", "e  f", "?g", "h i"]
    file = write(tmp_path / os.fsdecode(b"p\xe9t\x1b.yaml"), f"val: x\nnames: {names}\n")
    config = read_data_yaml(file)
    assert config.name == "p?t?"
    assert list(config.names.values()) == expected
    assert list(names_of_yaml(file, 5).values()) == expected


def test_a_key_in_quotes_is_no_merge(tmp_path: Path) -> None:
    assert read_data_yaml(write(tmp_path / "a.yaml", 'val: x\n"<<": y\n')).splits == {"val": ["x"]}
    file = write(tmp_path / "b.yaml", "val: &v [x]\ntest: *v\nnames: {0: <<}\n")
    assert read_data_yaml(file).names == {0: "<<"}


def test_as_many_names_as_allowed(tmp_path: Path) -> None:
    names = "".join(f" {i}: c{i}\n" for i in range(MAX_CLASSES))
    assert len(read_data_yaml(write(tmp_path / "a.yaml", f"val: x\nnames:\n{names}")).names) == MAX_CLASSES


@pytest.mark.parametrize("text", ["val: [" + "x, " * 5_000_000 + "]", "- \n" * 5_000_000, "%TAG !a! b\n" * 10**6])
def test_large_yamls_are_refused_quickly(tmp_path: Path, text: str) -> None:
    file = write(tmp_path / "large.yaml", text)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"it has (more than|too many)"):
        read_data_yaml(file)
    assert time.perf_counter() - start < 10


def test_shown_is_short() -> None:
    nested: list = []
    nested.append(nested)
    assert len(shown(nested)) < 100
    assert len(shown("x" * 10**6)) < 100


def test_texts_are_safe_and_short() -> None:
    assert printable("a\x1b[1m\n\udce9 b") == "a?[1m ? b"
    assert shortened("x" * 500) == "x" * 500
    assert shortened("a" + "x" * 10**6 + "b") == "a" + "x" * 248 + "..." + "x" * 248 + "b"
