"""The description that exported files carry: what is written comes back, and nothing else is taken."""

from __future__ import annotations

import ast
import copy
import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import yolonas
from yolonas.config import DetectSettings
from yolonas.errors import CheckpointError
from yolonas.exporting import spec as specs
from yolonas.exporting.spec import (
    METADATA_FILE,
    METADATA_KEY,
    OUTPUT_NAMES,
    OUTPUTS,
    PRECISIONS,
    SUPPRESSED,
    ExportSpec,
    metadata,
    metadata_texts,
    read_metadata,
    write_metadata,
)
from yolonas.ops import decode
from yolonas.preprocess import Preprocess

NAMES = {0: "red cell", 1: "weiße Zelle", 2: "'quoted\" {x: 1} \\ # 🦉"}
PLAIN = Preprocess()
ODD = Preprocess(
    size=(64, 96),
    fit=None,
    keep_ratio=False,
    enlarge=False,
    padding="bottom_right",
    pad_value=0,
    channels="bgr",
    mean=(0.1, -1e-7, 1 / 3),
    divisor=(1e6, -57.375, 1e-6),
)
SPEC = ExportSpec(variant="s", names=NAMES, preprocess=PLAIN, settings=DetectSettings())


def test_what_was_written_comes_back() -> None:
    settings = DetectSettings(conf=0.1, iou=1 / 3, top_k=7, max_det=5, multi_label=False, agnostic=True)
    choices = {
        "variant": ("s", "m", "l"),
        "precision": PRECISIONS,
        "uint8": (False, True),
        "nhwc": (False, True),
        "channels": ("rgb", "bgr"),
        "batch": (1, 65536, None),
        "dynamic_size": (False, True),
        "outputs": OUTPUTS,
        "preprocess": (PLAIN, ODD),
        "settings": (DetectSettings(), settings),
    }
    for values in product(*choices.values()):
        spec = replace(SPEC, **dict(zip(choices, values, strict=True)))
        assert ExportSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("card", [None, {}, {"float32": {"scores": {"map": 0.5}}, "in_float": ["a", "ß"]}])
@pytest.mark.parametrize("count", [1, 3, 1000])
def test_names_and_card_come_back(count: int, card: dict[str, Any] | None) -> None:
    spec = replace(SPEC, names={number: f"thing {number}" for number in range(count)}, card=card)
    again = ExportSpec.from_json(spec.to_json().encode())
    assert again == spec
    assert again.num_classes == count
    assert again.card == card


def test_names_come_back_so_that_they_can_be_shown() -> None:
    spec = replace(SPEC, names={0: "two\nlines", 1: " ", 2: "x" * 500, 3: "\x1b[31mred", 4: "\ud800"})
    again = ExportSpec.from_json(spec.to_json())
    assert again.names == {0: "two lines", 1: "class_1", 2: "x" * 200, 3: "[31mred", 4: "class_4"}
    assert ExportSpec.from_json(again.to_json()) == again


def test_the_json_is_plain() -> None:
    stated = json.loads(replace(SPEC, dynamic_size=True, batch=None, nhwc=True).to_json())
    assert stated["input"] == {
        "name": "input",
        "dtype": "uint8",
        "layout": "nhwc",
        "channels": "rgb",
        "batch": None,
        "height": None,
        "width": None,
    }
    assert stated["outputs"] == {"format": "batch", "names": list(OUTPUT_NAMES["batch"])}
    assert stated["names"] == list(NAMES.values())
    assert (stated["format_version"], stated["yolonas_version"]) == (1, yolonas.__version__)
    thresholds = {"conf": 0.25, "iou": 0.7, "top_k": 1024, "max_det": 300, "multi_label": True, "agnostic": False}
    assert thresholds.items() <= stated.items()
    assert "classes" not in stated


@pytest.mark.parametrize(("trained", "sent", "swaps"), [("rgb", "rgb", 0), ("bgr", "rgb", 1), ("bgr", "bgr", 0)])
def test_channels_are_swapped_where_they_differ(trained: Any, sent: str, swaps: int) -> None:
    assert replace(SPEC, preprocess=replace(PLAIN, channels=trained), channels=sent).swaps_channels == bool(swaps)


def test_input_shapes() -> None:
    assert SPEC.input_shape("batch", 64, 96) == ("batch", 3, 64, 96)
    assert replace(SPEC, nhwc=True).input_shape(2, "height", 96) == (2, "height", 96, 3)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 32, 32), (3, 64, 96), (2, 416, 32)])
def test_output_shapes(batch: int, height: int, width: int) -> None:
    spec = replace(SPEC, settings=DetectSettings(max_det=7))
    shapes = {name: replace(spec, outputs=name).output_shapes(batch, height, width) for name in OUTPUTS}
    assert {name: len(axes) for name, axes in shapes.items()} == {name: len(OUTPUT_NAMES[name]) for name in OUTPUTS}
    levels = [np.zeros(shape, np.float32) for shape in shapes["heads"]]
    boxes, scores = decode(levels[:3], levels[3:])
    assert [boxes.shape, scores.shape] == shapes["raw"]
    assert shapes["deepstream"] == [(*boxes.shape[:2], 6)]
    assert shapes["batch"] == [(batch, 1), (batch, 7, 4), (batch, 7), (batch, 7)]
    assert shapes["flat"] == [(-1, 7)]
    assert shapes["rows"] == [(batch * 7, 7)]


# --- what other libraries look for ---


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_metadata_for_other_loaders(outputs: str) -> None:
    spec = replace(SPEC, outputs=outputs, preprocess=ODD, precision="fp16", batch=None)
    stated = metadata(spec)
    known = {"task": "detect", "stride": 32, "batch": 1, "imgsz": [64, 96], "names": NAMES, "channels": 3}
    assert known.items() <= stated.items()
    assert stated["end2end"] is (outputs in SUPPRESSED)
    assert stated["args"] == {"batch": 1, "half": True, "int8": False, "dynamic": True, "nms": outputs in SUPPRESSED}
    texts = metadata_texts(spec)
    assert ExportSpec.from_json(texts[METADATA_KEY]) == spec
    assert ast.literal_eval(texts["names"]) == NAMES
    assert ast.literal_eval(texts["imgsz"]) == [64, 96]
    assert all(isinstance(text, str) for text in texts.values())


def test_metadata_of_a_folder_comes_back(tmp_path: Path) -> None:
    write_metadata(tmp_path, SPEC)
    stated = read_metadata(tmp_path)
    assert stated == metadata(SPEC)
    assert ExportSpec.from_json(stated[METADATA_KEY]) == SPEC
    assert yaml.safe_load((tmp_path / METADATA_FILE).read_bytes())["names"] == NAMES


# --- damage ---


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "{", "}", "null", "true", "1", '"text"', "[]", "{}", "[1, 2]", "not json", "{'single': 1}"),
        *("[" * 100_000, '{"a":' * 100_000, "1" * 5000, '{"format_version": 1}', "\ufeff{}", "NaN", '{"a": Infinity'),
        *(b"", b"\xff\xfe", b"\x00", b"{}", bytearray(b"[]"), None, 1, 1.5, [], {}, object(), [[]] * 9),
    ],
)
def test_what_is_no_description(text: Any) -> None:
    with pytest.raises(CheckpointError, match=r"^metadata: 'yolonas' cannot be used: ") as error:
        ExportSpec.from_json(text)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("version", "message"),
    [
        *((2, "got 2; a newer yolonas"), (10**400, "got 10000"), (0, "got 0"), (-1, "got -1"), (True, "got True")),
        *(("1", "got '1'"), (1.0, r"got 1\.0"), (None, "got None"), ([], r"got \[\]"), ("x" * 999, "got 'xxx")),
    ],
)
def test_versions(version: Any, message: str) -> None:
    text = json.dumps({**SPEC.to_dict(), "format_version": version})
    with pytest.raises(CheckpointError, match=message) as error:
        ExportSpec.from_json(text)
    assert "metadata: format_version must be in 1..1" in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("variant", "narrow", "variant must be one of s, m, l, got 'narrow'"),
        ("variant", ["s"], "variant must be one of"),
        ("variant", {}, "variant must be one of"),
        ("precision", "fp64", "precision must be one of fp32, fp16, int8"),
        ("num_classes", 0, "num_classes must be a whole number"),
        ("num_classes", 2, "class names do not fit"),
        ("num_classes", 3.0, "num_classes must be a whole number"),
        ("num_classes", True, "num_classes must be a whole number"),
        ("num_classes", 10**9, "num_classes must be a whole number"),
        ("names", [], "class names do not fit"),
        ("names", None, "no class names"),
        ("names", "abc", "class names do not fit"),
        ("names", [[], {}, None], "class names do not fit"),
        ("names", {"0": "a", "1": "b", "5": "c"}, "class names do not fit"),
        ("conf", 2, "conf makes no sense"),
        ("conf", math.nan, "conf makes no sense"),
        ("conf", -math.inf, "conf makes no sense"),
        ("conf", None, "does not state conf"),
        ("iou", "0.7", "iou makes no sense"),
        ("top_k", 0, "top_k makes no sense"),
        ("top_k", 1e300, "top_k makes no sense"),
        ("max_det", 10**30, "max_det makes no sense"),
        ("max_det", [1], "max_det makes no sense"),
        ("multi_label", 1, "multi_label makes no sense"),
        ("agnostic", "no", "agnostic makes no sense"),
        ("input.dtype", "float16", "dtype must be one of uint8, float32, got 'float16'"),
        ("input.layout", "NCHW", "layout must be one of nchw, nhwc, got 'NCHW'"),
        ("input.channels", None, "channels must be one of rgb, bgr, got None"),
        ("input.batch", 0, "batch must be a whole number or null, got 0"),
        ("input.batch", 65537, "batch must be a whole number or null"),
        ("input.batch", 1.0, "batch must be a whole number or null"),
        ("input.batch", "x" * 999, "batch must be a whole number or null, got 'xxx"),
        ("input.height", 33, "multiples of 32"),
        ("input.height", -32, "multiples of 32"),
        ("input.height", math.nan, "multiples of 32"),
        ("input.height", math.inf, "cannot be used"),
        ("input.height", 1 << 20, "at most 16384"),
        ("input.height", "640", "cannot be used"),
        ("input.height", 320, "the size of the input must be that of the pre-processing"),
        ("input.width", None, "cannot be used"),
        ("input", [], "cannot be used"),
        ("input", None, "cannot be used"),
        ("outputs.format", "nms", "format must be one of batch, flat, rows, raw, heads, deepstream, got 'nms'"),
        ("outputs", "batch", "cannot be used"),
        ("preprocess", None, "preprocess must be an object"),
        ("preprocess", [1], "preprocess must be an object"),
        ("preprocess.size", [640], "must be "),
        ("preprocess.size", [640, math.nan], "must be "),
        ("preprocess.size", [641, 640], "multiples of 32"),
        ("preprocess.fit", [700, 700], "fit must lie between"),
        ("preprocess.pad_value", 256, "0..255"),
        ("preprocess.padding", "top", "padding must be"),
        ("preprocess.padding", None, "padding must be"),
        ("preprocess.channels", "rbg", "channels must be"),
        ("preprocess.mean", [0, 0], "must be three numbers"),
        ("preprocess.mean", [0, 0, math.nan], "must be a number of usual size"),
        ("preprocess.divisor", [0, 1, 1], "divisor not zero"),
        ("preprocess.divisor", [1, 1, 10**400], "must be a number of usual size"),
        ("preprocess.rect", 0, "must be true or false"),
        ("preprocess.code", "x", "unknown keys"),
    ],
)
def test_values_that_make_no_sense(place: str, value: Any, message: str) -> None:
    stated = SPEC.to_dict()
    *outer, last = place.split(".")
    inner = stated
    for key in outer:
        inner = inner[key]
    assert last == "code" or last in inner
    inner[last] = value
    with pytest.raises(CheckpointError, match=message) as error:
        ExportSpec.from_json(json.dumps(stated))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("place", [key for key in SPEC.to_dict() if key not in ("yolonas_version", "card")])
def test_what_is_missing_is_named(place: str) -> None:
    stated = SPEC.to_dict()
    del stated[place]
    with pytest.raises(CheckpointError, match=place):
        ExportSpec.from_json(json.dumps(stated))


@pytest.mark.parametrize("card", [1, "x", [], [[]], True])
def test_a_card_that_is_none_is_left_out(card: Any) -> None:
    assert ExportSpec.from_json(json.dumps({**SPEC.to_dict(), "card": card})).card is None


JUNK = [
    *(None, True, False, 0, -1, 1, 3, 640, 10**30, 0.5, -0.0, 1e308, 5e-324, math.nan, math.inf, -math.inf),
    *("", "s", "rgb", "\x00", "\ud800", "x" * 300, [], {}, [[]], [None], [1, 2], [640, 640], [0.0] * 3, ["a", "b"]),
    *({"": None}, {"size": [64, 64]}, {"0": "a"}, {"format": "raw", "names": []}),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to everything in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


def change_value(stated: Any, chance: random.Random) -> Any:
    """Something replaced, taken out, put in elsewhere or copied."""
    *outer, last = chance.choice(places(stated)[1:] or [(0,)])
    inner = stated
    for key in outer:
        inner = inner[key]
    kind = chance.randrange(5)
    if not isinstance(inner, dict | list) or not inner:
        return chance.choice(JUNK)
    if kind == 0:
        del inner[last]
    elif kind == 1:
        source = stated
        for key in chance.choice(places(stated)):
            source = source[key]
        inner[last] = copy.deepcopy(source)
    elif kind == 2 and isinstance(inner, dict):
        inner[chance.choice(["", "size", "names", "classes", "input", *inner])] = copy.deepcopy(chance.choice(JUNK))
    else:
        inner[last] = copy.deepcopy(chance.choice(JUNK))
    return stated


def change_text(text: str, chance: random.Random) -> str:
    at, length = chance.randrange(len(text)), chance.choice([0, 1, 1, 2, 20])
    new = chance.choice(["", "0", "-", "9e99", '"', "[", "]", "{", "}", ",", "null", "\\u0000", "\n", "é", "NaN"])
    return text[:at] if chance.random() < 0.05 else text[:at] + new + text[at + length :]


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_is_named_or_harmless(seed: int) -> None:
    chance, taken, refusals = random.Random(seed), 0, []
    for _ in range(1500):
        spec = replace(
            SPEC,
            preprocess=chance.choice([PLAIN, ODD]),
            outputs=chance.choice(OUTPUTS),
            dynamic_size=chance.random() < 0.5,
            batch=chance.choice([None, 3]),
            card={"float32": {"scores": {"map": 0.5}}},
        )
        if chance.random() < 0.3:
            text = spec.to_json()
            for _ in range(chance.choice([1, 1, 3])):
                text = change_text(text, chance) or " "
        else:
            stated: Any = spec.to_dict()
            stated["preprocess"] = json.loads(json.dumps(stated["preprocess"]))
            for _ in range(chance.choice([1, 1, 2, 5])):
                stated = change_value(stated, chance)
            text = json.dumps(stated)
        try:
            found = ExportSpec.from_json(text)
        except CheckpointError as error:
            refusals.append(str(error))
            continue
        taken += 1
        found = replace(found, card=None)
        assert ExportSpec.from_json(found.to_json()) == found
        assert set(metadata_texts(found)) == set(metadata(SPEC))
        assert len(found.output_shapes(1, *found.preprocess.size)) == len(found.output_names)
    assert 50 < taken < 1000
    assert all(refusal.startswith("metadata: ") for refusal in refusals)
    assert max(map(len, refusals)) < 500


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "42",
            "- a\n- b",
            "just words",
            "[" * 2000,
            "{" * 2000,
            "a: *nowhere",
            "a: b: c",
            "\t",
            "%YAML 9.9\n---\na",
        ),
        *("!!bool maybe", "!!int ''", "!!float ''", "!!timestamp never", "!!binary 'ß'", "!!set [a]", "!!omap [a]"),
        *("a: 2001-99-99", "a: 0001-01-01 00:00:00 +99:99", "? {a: b}\n: c", f"a: {'9' * 5000}", "&a [*a]"),
        *(f"a: {':'.join('1' * 250)}.0", "a: 1\n---\na: 2", "!!python/object/apply:os.getcwd []", "a: \x07"),
    ],
)
def test_yaml_that_is_no_metadata(text: str, tmp_path: Path) -> None:
    (tmp_path / METADATA_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=rf"{METADATA_FILE}: (cannot be read|must hold names and values)"
    ) as error:
        read_metadata(tmp_path)
    assert str(error.value).endswith("export again")


@pytest.mark.parametrize(
    "text",
    [
        *("&a {<<: *a}", "&a {yolonas: *a}", "yolonas: [1]", "yolonas: 1", "yolonas: '{'", "yolonas:"),
        "a: &a [x, x]\nb: &b [*a, *a]\nyolonas: &c [*b, *b, *b]",
        "a0: &a0 x\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)) + "yolonas: *a59",
    ],
)
def test_yaml_that_leads_nowhere(text: str, tmp_path: Path) -> None:
    (tmp_path / METADATA_FILE).write_text(text)
    stated = read_metadata(tmp_path)
    with pytest.raises(CheckpointError, match="'yolonas' cannot be used"):
        ExportSpec.from_json(stated.get(METADATA_KEY))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "No such file"),
        (Path.mkdir, "directory"),
        (lambda path: path.write_bytes(b"a: \xff\xfe"), "can't decode byte"),
        (lambda path: path.write_bytes(bytes(100)), "unacceptable character"),
        (lambda path: path.symlink_to(path), "ymbolic link"),
    ],
)
def test_a_metadata_file_that_cannot_be_read(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    make(tmp_path / METADATA_FILE)
    with pytest.raises(CheckpointError, match=message):
        read_metadata(tmp_path)


def test_a_metadata_file_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_metadata(tmp_path, SPEC)
    size = (tmp_path / METADATA_FILE).stat().st_size
    monkeypatch.setattr(specs, "MOST_METADATA", size)
    assert read_metadata(tmp_path) == metadata(SPEC)
    monkeypatch.setattr(specs, "MOST_METADATA", size - 1)
    with pytest.raises(CheckpointError, match="too large for metadata"):
        read_metadata(tmp_path)
