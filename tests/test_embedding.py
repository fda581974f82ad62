"""yolonas.hpp against the package: metadata, letterbox, selection, boxes back; and the example that embeds a file."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import DISTANCE_ATOL, SIGMOID_RTOL, bits
from quantized_networks import narrow

import yolonas
from yolonas import ops
from yolonas.config import DetectSettings
from yolonas.exporting.spec import METADATA_KEY, ExportSpec
from yolonas.preprocess import Geometry, Preprocess
from yolonas.selection import select_detections

INCLUDE = Path(yolonas.__file__).parent / "include"
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror")
# The fastest code that a compiler makes, which may contract to FMA, and the most careful.
BUILDS = {
    "native": ("-O3", "-march=native"),
    "sanitized": ("-O1", "-g", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"),
}
NAMES = {0: "cat", 1: "großer Hund", 2: 'a "quote"\\'}

Request = tuple[str, bytes, Sequence[int]]


def compile_(*arguments: str | Path) -> None:
    """Runs the system's compiler; skips without one."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler (c++ in PATH, or CXX)")
    done = subprocess.run([compiler, "-std=c++17", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode != 0 and "-fsanitize" in " ".join(map(str, arguments)) and "cannot find" in done.stderr:
        pytest.skip(f"the compiler has no sanitisers: {done.stderr:.200}")
    assert done.returncode == 0, done.stderr


class Driver:
    """Asks embedding_check.cpp."""

    def __init__(self, path: Path):
        self._path = path

    def ask(self, *requests: Request) -> Iterator[bytes | str]:
        """The answers, in order: bytes, or the text of an error. One process for all of them."""
        text = b"".join(
            " ".join([command, str(len(payload)), *map(str, numbers)]).encode() + b"\n" + payload
            for command, payload, numbers in requests
        )
        done = subprocess.run([self._path], input=text, capture_output=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr.decode()
        at, answers = 0, 0
        while at < len(done.stdout):
            line = done.stdout.index(b"\n", at) + 1
            word, size = done.stdout[at:line].split()
            at = line + int(size)
            answers += 1
            yield done.stdout[line:at] if word == b"ok" else done.stdout[line:at].decode("utf-8", "replace")
        assert answers == len(requests)


@pytest.fixture(scope="module", params=BUILDS)
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    folder = tmp_path_factory.mktemp("embedding")
    other = folder / "other.cpp"  # the header is in two files of a program
    other.write_text('#include "yolonas.hpp"\nyolonas::Metadata other() { return yolonas::read_metadata("{}"); }\n')
    source = Path(__file__).with_name("embedding_check.cpp")
    compile_(*BUILDS[request.param], *WARNINGS, "-I", INCLUDE, source, other, "-o", folder / "check")
    return Driver(folder / "check")


def spec_of(preprocess: Preprocess | None = None, settings: DetectSettings | None = None, **fields: Any) -> ExportSpec:
    return ExportSpec(
        **{
            "variant": "s",
            "names": NAMES,
            "preprocess": preprocess or Preprocess().with_size((64, 96)),
            "settings": settings or DetectSettings(),
            "outputs": "heads",
            **fields,
        }
    )


def metadata(spec: ExportSpec) -> Request:
    return ("metadata", spec.to_json().encode(), ())


# --- metadata ---


def description(spec: ExportSpec) -> str:
    """What the driver says of the metadata of a file."""
    p, s = spec.preprocess, spec.settings
    numbers = [*p.size, *(p.fit or (0, 0)), p.keep_ratio, p.enlarge, p.padding == "center", p.pad_value]
    numbers += [p.channels == "bgr", p.rect, *p.mean, *p.divisor]
    flags = [s.multi_label, s.agnostic, spec.uint8, spec.nhwc, spec.channels == "bgr", spec.batch or 0]
    numbers_2 = [s.conf, s.iou, s.top_k, s.max_det, *flags, spec.dynamic_size]
    lines = [*spec.names.values()]
    lines += [" ".join(f"{np.float32(number):.9g}" for number in row) for row in (numbers, numbers_2)]
    return "\n".join(lines) + f" {spec.outputs}\n"


def test_metadata_is_read(driver: Driver) -> None:
    odd = Preprocess(
        size=(320, 416),
        fit=None,
        keep_ratio=False,
        enlarge=False,
        padding="bottom_right",
        pad_value=7,
        channels="bgr",
        mean=(123.675, 1e-5, -3.0),
        divisor=(58.395, 57, -1.25e2),  # type: ignore[arg-type]
        rect=True,
    )
    names = {0: "\x07\u2028\U0001f600", 1: "/\b\f\n\r\t", 2: "\x7f"}
    card = {"nested": [[{"a": [None, True, -0.5e-7]}]], "text": "\ud7ff"}
    specs = [
        spec_of(),
        spec_of(
            odd, DetectSettings(0.015625, 1, 7, 1, False, True), uint8=False, nhwc=True, channels="bgr", batch=None
        ),
        spec_of(batch=16, dynamic_size=True, outputs="raw", card=card),
    ]
    for spec, answer in zip(specs, driver.ask(*map(metadata, specs)), strict=True):
        assert isinstance(answer, bytes), answer
        assert answer.decode() == description(spec)
    # Python's own escapes, and what must not reach a terminal
    escaped = json.dumps({**spec_of().to_dict(), "names": list(names.values())})
    (answer,) = driver.ask(("metadata", escaped.encode(), ()))
    assert isinstance(answer, bytes)
    assert answer.decode().split("\n")[:3] == [" \u2028\U0001f600", "/     ", " "]


def changed(path: str, value: Any) -> str:
    """The metadata with another value, or without it where the value is `...`."""
    stated = spec_of().to_dict()
    *parents, key = path.split(".")
    entry: Any = stated
    for parent in parents:
        entry = entry[parent]
    if value is ...:
        del entry[key]
    else:
        entry[key] = value
    return json.dumps(stated)


WRONG = {
    "format_version": [0, 2, "1", 1.0, True, None, ...],
    "num_classes": [0, -1, 100001, 3.0, 10**30, ...],
    "names": [[], ["a"], ["a", "b", 3], {"0": "a"}, "abc", None, ...],
    "conf": [-0.1, 1.1, "0.5", None, [0.5], 10**400, ...],
    "iou": [2, -1e-3, True, {}, ...],
    "top_k": [0, 1000001, 1.5, "1", ...],
    "max_det": [0, -1, 2**31, 2**63, ...],
    "multi_label": [0, 1, "true", None, ...],
    "agnostic": [0, None, ...],
    "preprocess": [None, [], 1, ...],
    "preprocess.size": [[640], [64, 97], [0, 32], [-32, 32], [16416, 32], [64.0, 96], "64", None, ...],
    "preprocess.fit": [[65, 96], [0, 1], [1], 3, ...],
    "preprocess.keep_ratio": [1, ...],
    "preprocess.enlarge": ["no", ...],
    "preprocess.rect": [None, ...],
    "preprocess.padding": ["left", 0, ...],
    "preprocess.pad_value": [-1, 256, 1.5, ...],
    "preprocess.channels": ["RGB", None, ...],
    "preprocess.mean": [[0, 0], [0, 0, "0"], [0, 0, 1e39], ...],
    "preprocess.divisor": [[1, 1, 0], [1, 1, 1e-60], [1, 1, 1, 1], ...],
    "preprocess.shear": [1],
    "preprocess.size fit": [1],
    "input": [None, "input", ...],
    "input.dtype": ["int8", 8, ...],
    "input.layout": ["chw", ...],
    "input.channels": ["gray", ...],
    "input.batch": [0, 1.5, "1", 65537, ...],
    "input.height": [32, 96, None, ...],
    "input.width": [64, "96", None, ...],
    "outputs": [None, ...],
    "outputs.format": [None, ["heads"], ...],
}


def test_wrong_metadata_is_named(driver: Driver) -> None:
    cases = [(path, value) for path, values in WRONG.items() for value in values]
    answers = driver.ask(*(("metadata", changed(path, value).encode(), ()) for path, value in cases))
    for (path, value), answer in zip(cases, answers, strict=True):
        assert isinstance(answer, str), (path, value)
        assert answer.startswith(f"runtime_error: metadata: {path} "), (answer, value)
    answers = driver.ask(
        ("metadata", changed("conf", "x\x1b[31m" + 100 * "y").encode(), ()),
        ("metadata", changed("preprocess.padding", [1]).encode(), ()),
        ("metadata", changed("input.batch", 0).encode(), ()),
    )
    assert list(answers) == [
        f"runtime_error: metadata: conf must be a number in 0..1, got x [31m{34 * 'y'}",
        "runtime_error: metadata: preprocess.padding must be one of center bottom_right, got a list",
        "runtime_error: metadata: input.batch must be a whole number in 1..65536, got 0",
    ]


NOT_JSON = (
    *("", " ", "\0", "{", "}", "[", "[1", "[1,", "[1,]", '{"a"', '{"a":', '{"a":1', '{"a":1,', '{"a":1,}', "{a:1}"),
    *(
        "{1:2}",
        '{"a" 1}',
        "[1 2]",
        "1 2",
        "nul",
        "nulll",
        "True",
        "NaN",
        "Infinity",
        "-Infinity",
        "-",
        "+1",
        "01",
        "1.",
    ),
    *(".5", "1e", "1e+", "0x10", "--1", '"', '"\\', '"\\x"', '"\\u12"', '"\\u12G4"', '"\\ud800"', '"\\ud800\\u0041"'),
    *('"\\udc00"', '"\\ud800\\', '"a\nb"', '"a\0b"', "'a'", "/**/1", "\ufeff{}", "{}x", "{}\0", "[1]]", "\x85{}"),
)


def test_what_is_no_json_is_refused(driver: Driver) -> None:
    deep = ["[" * 66 + "]" * 66, "[" * 10_000_000, '{"a":' * 100_000, " " * (2**24 + 1)]
    texts = [*NOT_JSON, *deep]
    for text, answer in zip(texts, driver.ask(*(("metadata", t.encode(), ()) for t in texts)), strict=True):
        assert isinstance(answer, str), text[:40]
        assert answer.startswith("runtime_error: metadata: must be JSON, got "), (text[:40], answer)
    fine = ["0", "-0.5E+3", "[]", "{ }", ' {"a" : [ 1 ,\t2 ] }\r\n', '"\\u00e9\\ud83d\\ude00\\/"', "[" * 65 + "]" * 65]
    for text, answer in zip(fine, driver.ask(*(("metadata", t.encode(), ()) for t in fine)), strict=True):
        json.loads(text)
        assert answer in (
            "runtime_error: metadata: format_version is missing",
            f"runtime_error: metadata: all must be an object, got {answer.partition('got ')[2]}",  # type: ignore[arg-type]
        ), answer


def test_damaged_metadata_never_crashes(driver: Driver) -> None:
    text = spec_of(card={"a": [1, {"b": "\u00e9"}]}).to_json().encode()
    cut = [text[:length] for length in range(len(text))]
    assert all(isinstance(answer, str) for answer in driver.ask(*(("metadata", part, ()) for part in cut)))
    rng = np.random.default_rng(0)
    damaged = []
    for _ in range(3000):
        copy = np.frombuffer(text, np.uint8).copy()
        at = rng.integers(0, len(copy), rng.integers(1, 4))
        copy[at] = rng.choice([*b'{}[]",:\\u0-9.eE \x00\xff', 0x80], len(at))
        damaged.append(copy.tobytes())
    for answer in driver.ask(*(("metadata", part, ()) for part in damaged)):
        assert isinstance(answer, bytes) or answer.startswith("runtime_error: metadata: ")


# --- letterbox ---

PLAIN = Preprocess(size=(64, 96), fit=(60, 92))
PREPROCESSES = {
    "coco": PLAIN,
    "corner": replace(PLAIN, fit=(64, 96), padding="bottom_right", channels="bgr"),
    "stretched": replace(PLAIN, keep_ratio=False, pad_value=0, mean=(1.5, 2.25, 3.7), divisor=(58.4, -57.1, 255.0)),
    "not enlarged": replace(PLAIN, enlarge=False, pad_value=255, channels="bgr", mean=(103.5, 116.3, 123.7)),
    "never resized": replace(PLAIN, fit=None, padding="bottom_right"),
    "smallest frame": replace(PLAIN, rect=True),
    "any frame": replace(PLAIN, fit=None, rect=True),
}
SIDES = ((1, 1), (1, 7), (7, 1), (2, 2), (3, 300), (37, 61), (60, 92), (64, 96), (61, 93), (120, 184), (121, 185))


def geometry_bytes(geometry: Geometry) -> bytes:
    sides = [*geometry.original, *geometry.resized, *geometry.frame, geometry.top, geometry.left]
    return struct.pack("8i2d", *sides, *geometry.scale)


def plan_of(spec: ExportSpec, height: int, width: int) -> Geometry:
    """The package's; the frame of a file of one size is that size."""
    geometry = spec.preprocess.plan(height, width)
    if spec.dynamic_size or geometry.frame == spec.preprocess.size:
        return geometry
    height, width = spec.preprocess.size
    free = (height - geometry.resized[0], width - geometry.resized[1])
    if min(free) < 0:
        raise ValueError("does not fit")
    top, left = (side // 2 if spec.preprocess.padding == "center" else 0 for side in free)
    return replace(geometry, frame=spec.preprocess.size, top=top, left=left)


def expected_input(spec: ExportSpec, picture: np.ndarray, order: str, geometry: Geometry) -> np.ndarray:
    """By the package's letterbox: in the order of `spec.channels`, of a picture in `order`."""
    colours = slice(None) if spec.channels == spec.preprocess.channels else slice(None, None, -1)
    scaling = {"mean": (0, 0, 0), "divisor": (1, 1, 1)}
    if not spec.uint8:
        scaling = {"mean": spec.preprocess.mean[colours], "divisor": spec.preprocess.divisor[colours]}
    out = ops.letterbox(
        picture,
        frame=geometry.frame,
        resized=geometry.resized,
        offset=(geometry.top, geometry.left),
        pad_value=spec.preprocess.pad_value,
        swap_channels=order != spec.channels,
        layout="hwc" if spec.nhwc else "chw",
        **scaling,  # type: ignore[arg-type]
    )
    return out.astype(np.uint8) if spec.uint8 else out


def letterbox(spec: ExportSpec, picture: np.ndarray, order: str, geometry: Geometry, gap: int = 0) -> Request:
    """Of a picture whose rows are `gap` bytes apart; nothing follows the last one."""
    height, width = picture.shape[:2]
    rows = np.full((height, 3 * width + gap), 99, np.uint8)
    rows[:, : 3 * width] = picture.reshape(height, -1)
    numbers = [height, width, 3 * width + gap, order == "bgr", spec.uint8, 3 * math.prod(geometry.frame)]
    return ("letterbox", rows.tobytes()[: rows.size - gap], [int(number) for number in numbers])


@pytest.mark.parametrize("name", PREPROCESSES)
def test_letterbox_is_that_of_the_package(driver: Driver, name: str) -> None:
    rng = np.random.default_rng(1)
    requests: list[Request] = []
    expected: list[bytes | None] = []
    cases = [
        (uint8, nhwc, channels, order, dynamic)
        for uint8 in (True, False)
        for nhwc in (True, False)
        for channels in ("rgb", "bgr")
        for order in ("rgb", "bgr")
        for dynamic in (True, False)
    ]
    for number, (uint8, nhwc, channels, order, dynamic) in enumerate(cases):
        spec = spec_of(PREPROCESSES[name], uint8=uint8, nhwc=nhwc, channels=channels, dynamic_size=dynamic)
        requests.append(metadata(spec))
        expected.append(None)
        for sides in SIDES:
            try:
                geometry = plan_of(spec, *sides)
            except ValueError:
                continue
            picture = rng.integers(0, 256, (*sides, 3), np.uint8)
            picture[rng.random(sides) < 0.3] = rng.choice([0, 255])
            requests.append(letterbox(spec, picture, order, geometry, gap=number % 3))
            expected.append(geometry_bytes(geometry) + expected_input(spec, picture, order, geometry).tobytes())
    assert len(requests) > 4 * len(cases)
    for request, answer, wanted in zip(requests, driver.ask(*requests), expected, strict=True):
        assert isinstance(answer, bytes), (answer, request[2])
        assert wanted is None or answer == wanted, request[2]


def test_a_large_picture(driver: Driver) -> None:
    spec = spec_of(Preprocess(), uint8=False)
    requests, expected = [metadata(spec)], []
    for seed, sides in enumerate(((480, 640), (1080, 811))):
        picture = np.random.default_rng(seed).integers(0, 256, (*sides, 3), np.uint8)
        geometry = plan_of(spec, *sides)
        requests.append(letterbox(spec, picture, "bgr", geometry))
        expected.append(geometry_bytes(geometry) + expected_input(spec, picture, "bgr", geometry).tobytes())
    assert list(driver.ask(*requests))[1:] == expected


def test_plans_are_those_of_the_package(driver: Driver) -> None:
    rng = np.random.default_rng(2)
    sides = [(int(h), int(w)) for h, w in np.exp(rng.uniform(0, 9, (300, 2))).astype(int) + 1]
    sides += [(h, 2 * 92) for h in range(1, 130)]  # halves: 184 becomes 92, odd heights n + 0.5
    sides += [(1, 2**20), (2**20, 2**20), (4000, 6)]
    for spec in (spec_of(p, dynamic_size=True) for p in PREPROCESSES.values()):
        answers = driver.ask(metadata(spec), *(("plan", b"", pair) for pair in sides))
        next(answers)
        for pair, answer in zip(sides, answers, strict=True):
            try:
                assert answer == geometry_bytes(spec.preprocess.plan(*pair)), pair
            except ValueError:
                assert isinstance(answer, str), pair


def test_arguments_that_do_not_fit(driver: Driver) -> None:
    spec = spec_of(replace(PLAIN, fit=None))
    picture = np.zeros((4, 5, 3), np.uint8)
    whole = letterbox(spec, picture, "rgb", plan_of(spec, 4, 5))
    count = whole[2][-1]
    fits = [48, 1088, 12, 272, 3, 68]  # values of the outputs of 32x32
    cases: list[tuple[str, bytes, list[int], str]] = [
        ("plan", b"", [0, 5], "plan: height and width must lie in 1..1048576, got 0x5"),
        ("plan", b"", [5, -1], "plan: height and width must lie in 1..1048576, got 5x-1"),
        ("plan", b"", [1, 2**20 + 1], "plan: height and width must lie in 1..1048576, got 1x1048577"),
        ("plan", b"", [65, 96], "plan: a 65x96 picture does not fit into 64x96"),
        (
            "letterbox",
            whole[1],
            [4, 5, 14, 0, 1, count],
            "letterbox: picture must have data and rows of 3 * width bytes",
        ),
        ("letterbox", whole[1], [4, 5, -15, 0, 1, count], "letterbox: picture must have data and rows of 3 * width"),
        ("letterbox", b"", [4, 5, 15, 0, 1, count], "letterbox: picture must have data"),
        ("letterbox", whole[1], [4, 5, 15, 0, 0, count], "letterbox: out must be of std::uint8_t for this input"),
        (
            "letterbox",
            whole[1],
            [4, 5, 15, 0, 1, count - 1],
            f"letterbox: out must have {count} values, got {count - 1}",
        ),
        ("letterbox", whole[1], [4, 5, 15, 0, 1, 0], f"letterbox: out must have {count} values, got 0"),
        ("heads", b"", [0, 32, *fits], "detections_from_heads: frame must be multiples of 32, got 0x32"),
        ("heads", b"", [-32, -32, *fits], "detections_from_heads: frame must be multiples of 32, got -32x-32"),
        ("heads", b"", [40, 32, *fits], "detections_from_heads: frame must be multiples of 32, got 40x32"),
        ("heads", b"", [64, 32, *fits], "detections_from_heads: cls must have 96 values, got 48"),
        ("heads", b"", [32, 32, *fits[:3], 271, *fits[4:]], "detections_from_heads: reg must have 272 values, got 271"),
        ("heads", b"", [32, 32, *fits[:5], 0], "detections_from_heads: reg must have 68 values, got 0"),
        ("raw", b"", [7, 3], "detections_from_raw: boxes must have 4 values, got 7"),
        ("raw", b"", [8, 5], "detections_from_raw: scores must have 6 values, got 5"),
        ("raw", b"", [8, 0], "detections_from_raw: scores must have 6 values, got 0"),
    ]
    floats = {"heads": bytes(4 * sum(fits)), "raw": bytes(60)}
    requests = [(command, payload or floats.get(command, b""), numbers) for command, payload, numbers, _ in cases]
    answers = driver.ask(metadata(spec), *requests)
    next(answers)
    for case, answer in zip(cases, answers, strict=True):
        assert isinstance(answer, str)
        assert answer.startswith(f"invalid_argument: {case[3]}")
    (error,) = driver.ask(("plan", b"", (5, 5)))  # no metadata yet
    assert error == "invalid_argument: plan: a 5x5 picture does not fit into 0x0"


# --- selection ---


def rows_of(answer: bytes | str) -> np.ndarray:
    """float32 (N, 6), as the package has them."""
    assert isinstance(answer, bytes), answer
    table = np.frombuffer(answer, np.dtype([("box", "<f4", 5), ("class_id", "<i4")]))
    return np.concatenate([table["box"], table["class_id"][:, None]], axis=1, dtype=np.float32)


def all_settings(conf: float, iou: float) -> Iterator[DetectSettings]:
    for multi_label in (True, False):
        for agnostic in (False, True):
            for top_k, max_det in ((1024, 300), (1024, 5), (40, 300), (1, 1)):
                yield DetectSettings(conf, iou, top_k, max_det, multi_label, agnostic)


FRAME = (64, 96)


def head_outputs(rng: np.random.Generator, kind: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Logits per level, `(K, h, w)` and `(68, h, w)`; on a grid, so that no rounding decides which score is higher."""
    cls, reg = [], []
    for stride in (8, 16, 32):
        cells = (FRAME[0] // stride, FRAME[1] // stride)
        if kind == "ties":
            cls.append(rng.choice([-3.0, 0.0, 1.0, 18.0, 30.0], (3, *cells), p=[0.7, 0.1, 0.1, 0.05, 0.05]))
            reg.append(np.repeat(rng.choice([0.0, 1.0], (4, 1, *cells)), 17, axis=1).reshape(68, *cells))
        else:
            cls.append(rng.integers(-400, 200, (3, *cells)) / 64)
            reg.append(rng.normal(0, 3, (68, *cells)))
        if kind == "broken":
            for tensor in (cls[-1], reg[-1]):
                broken = rng.random(tensor.shape) < 0.02
                tensor[broken] = rng.choice([np.nan, np.inf, -np.inf, 1e38, -1e38, -88.0], broken.sum())
    return [x.astype(np.float32) for x in cls], [x.astype(np.float32) for x in reg]


def heads(cls: list[np.ndarray], reg: list[np.ndarray]) -> Request:
    tensors = [x for level in zip(cls, reg, strict=True) for x in level]
    return ("heads", b"".join(x.tobytes() for x in tensors), (*FRAME, *(x.size for x in tensors)))


@pytest.mark.parametrize("kind", ["random", "ties", "broken"])
@pytest.mark.parametrize("conf", [0.0, 0.25, 0.5, 1.0])
def test_heads_become_the_detections_of_the_package(driver: Driver, kind: str, conf: float) -> None:
    rng = np.random.default_rng(3)
    requests, expected = [], []
    for settings in all_settings(conf, 0.6):
        cls, reg = head_outputs(rng, kind)
        requests += [metadata(spec_of(settings=settings)), heads(cls, reg)]
        batches = [[x[None] for x in outputs] for outputs in (cls, reg)]
        expected.append(select_detections(*batches, settings, channels_last=False)[0])
    most = 0
    for wanted, answer in zip(expected, list(driver.ask(*requests))[1::2], strict=True):
        found = rows_of(answer)
        assert found[:, 5].tolist() == wanted[:, 5].tolist()
        np.testing.assert_allclose(found[:, 4], wanted[:, 4], rtol=2 * SIGMOID_RTOL, atol=1e-37)
        np.testing.assert_allclose(found[:, :4], wanted[:, :4], rtol=1e-6, atol=2 * 32 * DISTANCE_ATOL)
        most = max(most, len(wanted))
    assert most > 10 or conf == 1.0


def raw(boxes: np.ndarray, scores: np.ndarray) -> Request:
    return ("raw", boxes.tobytes() + scores.tobytes(), (boxes.size, scores.size))


def raw_outputs(rng: np.random.Generator, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `(A, 4)` and scores `(A, K)`."""
    anchors = 126
    if kind == "ties":  # small whole numbers: many overlaps of exactly 0.5, many equal scores
        corner = rng.integers(0, 6, (anchors, 2))
        boxes = np.concatenate([corner, corner + rng.integers(0, 5, (anchors, 2))], axis=1)
        scores = rng.choice([0.125, 0.25, 0.5, 1.0], (anchors, 3))
    else:
        corner = rng.uniform(-20, 60, (anchors, 2))
        boxes = np.concatenate([corner, corner + rng.normal(20, 15, (anchors, 2))], axis=1)
        scores = rng.random((anchors, 3))
    if kind == "broken":
        for tensor in (boxes, scores):
            broken = rng.random(tensor.shape) < 0.05
            tensor[broken] = rng.choice([np.nan, np.inf, -np.inf, 3e38, -3e38, -0.0, 1e-42], broken.sum())
    return boxes.astype(np.float32), scores.astype(np.float32)


@pytest.mark.parametrize("kind", ["random", "ties", "broken"])
@pytest.mark.parametrize("conf", [0.0, 0.25, 1.0])
def test_raw_outputs_become_the_detections_of_the_package(driver: Driver, kind: str, conf: float) -> None:
    rng = np.random.default_rng(4)
    requests, expected = [], []
    for settings in all_settings(conf, 0.5):
        boxes, scores = raw_outputs(rng, kind)
        requests += [metadata(spec_of(settings=settings, outputs="raw")), raw(boxes, scores)]
        rows, counts = ops.batched_nms(boxes[None], scores[None], **asdict(settings))
        expected.append(rows[0, : counts[0]])
    for wanted, answer in zip(expected, list(driver.ask(*requests))[1::2], strict=True):
        found = rows_of(answer)
        assert len(found) == len(wanted)
        assert np.array_equal(found, wanted)
    assert max(map(len, expected)) > 10 or conf == 1.0


def test_an_overlap_of_the_threshold_is_none_above_it(driver: Driver) -> None:
    """Also where the compiler has FMA, whose overlaps differ in the last bit."""
    rng = np.random.default_rng(7)
    requests = []
    for _ in range(200):
        corner = rng.uniform(0, 9, (2, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(20, 40, (2, 2))], axis=1).astype(np.float32)
        overlap = ops.reference.iou(*boxes)
        scores = np.array([[0.9, 0, 0], [0.8, 0, 0]], np.float32)
        for iou in (overlap, np.nextafter(overlap, np.float32(0))):
            requests += [metadata(spec_of(settings=DetectSettings(iou=float(iou)))), raw(boxes, scores)]
    assert [len(rows_of(answer)) for answer in list(driver.ask(*requests))[1::2]] == [2, 1] * 200


def test_no_anchors(driver: Driver) -> None:
    assert list(driver.ask(metadata(spec_of()), ("raw", b"", (0, 0))))[1] == b""


@pytest.mark.parametrize("name", PREPROCESSES)
def test_boxes_go_back_to_the_picture(driver: Driver, name: str) -> None:
    spec = spec_of(PREPROCESSES[name], dynamic_size=True)
    boxes = np.random.default_rng(5).normal(50, 60, (100, 6)).astype(np.float32)
    boxes[0, :4] = (-3e38, 3e38, 3e38, -3e38)
    boxes[:, 5] = 0
    sides = [pair for pair in SIDES if max(pair) < 64 or spec.preprocess.fit]
    answers = driver.ask(metadata(spec), *(("picture", boxes.tobytes(), pair) for pair in sides))
    next(answers)
    for pair, answer in zip(sides, answers, strict=True):
        with np.errstate(over="ignore"):
            expected = spec.preprocess.plan(*pair).boxes_to_picture(boxes.copy())
        assert np.array_equal(bits(rows_of(answer)), bits(expected)), pair


# --- the example ---


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    openvino = Path(pytest.importorskip("openvino").__file__).parent
    libraries = sorted((openvino / "libs").glob("libopenvino.*"))
    if not libraries or not (openvino / "include" / "openvino" / "openvino.hpp").exists():
        pytest.skip(f"the package openvino has no C++ headers and libraries in {openvino}")
    path = tmp_path_factory.mktemp("example") / "example"
    link = (libraries[0], f"-Wl,-rpath,{libraries[0].parent}", "-o", path)
    compile_("-O1", *WARNINGS, "-isystem", openvino / "include", INCLUDE / "example_openvino.cpp", *link)
    return path


def write_ppm(path: Path, picture: np.ndarray) -> Path:
    height, width = picture.shape[:2]
    path.write_bytes(b"P6\n# made by hand\n%d %d\n255\n" % (width, height) + picture.tobytes())
    return path


def expected_detections(path: Path, spec: ExportSpec, picture: np.ndarray) -> np.ndarray:
    """The network in ONNX Runtime, the rest in the package."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    geometry = spec.preprocess.plan(*picture.shape[:2])
    x = expected_input(spec, picture, "rgb", geometry)[None]
    outputs = dict(zip(spec.output_names, session.run(list(spec.output_names), {"input": x}), strict=True))
    if spec.outputs == "raw":
        rows, counts = ops.batched_nms(outputs["boxes"], outputs["scores"], **asdict(spec.settings))
        found = rows[0, : counts[0]]
    else:
        levels = [[outputs[f"{kind}{stride}"] for stride in (8, 16, 32)] for kind in ("cls", "reg")]
        (found,) = select_detections(*levels, spec.settings, channels_last=False)
    return geometry.boxes_to_picture(found)


def parsed(lines: Iterable[str], names: dict[int, str]) -> np.ndarray:
    numbers = {name: number for number, name in names.items()}
    rows = []
    for line in lines:
        name, *values = line.rsplit(" ", 5)
        score, *box = map(float, values)
        rows.append([*box, score, numbers[name]])
    return np.array(rows, np.float32).reshape(-1, 6)


@pytest.mark.parametrize(
    ("outputs", "fields"),
    [
        ("heads", {}),
        ("raw", {"channels": "bgr", "batch": None}),
        ("heads", {"uint8": False, "nhwc": True, "channels": "bgr", "dynamic_size": True}),
        ("raw", {"uint8": False, "dynamic_size": True}),
    ],
)
def test_the_example_sees_what_onnx_runtime_sees(
    example: Path, tmp_path: Path, outputs: str, fields: dict[str, Any]
) -> None:
    pytest.importorskip("onnx")
    from yolonas.exporting.onnx_file import write_onnx

    settings = DetectSettings(conf=0.2, iou=0.5, max_det=40)
    spec = spec_of(Preprocess().with_size((96, 128)), settings, outputs=outputs, **fields)
    network = tmp_path / "narrow.onnx"
    write_onnx(network, narrow("s"), spec)
    picture = np.random.default_rng(6).integers(0, 256, (75, 111, 3), np.uint8)
    done = subprocess.run(
        [example, network, write_ppm(tmp_path / "p.ppm", picture)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = expected_detections(network, spec, picture)
    found = parsed(done.stdout.splitlines(), NAMES)
    assert len(expected) >= 5
    assert found[:, 5].tolist() == expected[:, 5].tolist()
    np.testing.assert_allclose(found[:, 4], expected[:, 4], atol=1e-3)
    np.testing.assert_allclose(found[:, :4], expected[:, :4], atol=0.05)


def test_the_example_reads_openvino_files(example: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    from yolonas.exporting.onnx_file import write_onnx

    spec = spec_of(Preprocess().with_size((64, 96)), DetectSettings(conf=0.2, max_det=5))
    write_onnx(tmp_path / "n.onnx", narrow("s"), spec)
    picture = write_ppm(tmp_path / "p.ppm", np.full((40, 50, 3), 90, np.uint8))
    network = openvino.Core().read_model(tmp_path / "n.onnx")
    openvino.save_model(network, tmp_path / "converted.xml", compress_to_fp16=False)
    del network.get_rt_info()["framework"]
    openvino.save_model(network, tmp_path / "bare.xml", compress_to_fp16=False)
    network.set_rt_info(spec.to_json(), [METADATA_KEY])
    openvino.save_model(network, tmp_path / "ours.xml", compress_to_fp16=False)
    answers = {
        name: subprocess.run([example, tmp_path / name, picture], capture_output=True, text=True, check=False)
        for name in ("n.onnx", "converted.xml", "ours.xml", "bare.xml")
    }
    assert len(answers["n.onnx"].stdout.splitlines()) == 5
    assert answers["converted.xml"].stdout == answers["ours.xml"].stdout == answers["n.onnx"].stdout
    assert answers["bare.xml"].returncode == 1
    assert "rt" in answers["bare.xml"].stderr


def test_what_the_example_refuses(example: Path, tmp_path: Path) -> None:
    good = write_ppm(tmp_path / "good.ppm", np.zeros((4, 4, 3), np.uint8)).read_bytes()
    cases = {
        b"": "must be a binary PPM",
        good[:-1]: "is cut off",
        good.replace(b"P6", b"P3"): "must be a binary PPM",
        good.replace(b"255", b"65535"): "must be a binary PPM",
        good.replace(b"4 4", b"-4 4"): "must be a binary PPM",
        good.replace(b"4 4", b"0 4"): "must be a binary PPM",
        good.replace(b"4 4", b"99999999999 4"): "must be a binary PPM",
        good: "none.onnx",
    }
    for content, text in cases.items():
        (tmp_path / "p.ppm").write_bytes(content)
        command = [example, tmp_path / "none.onnx", tmp_path / "p.ppm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert text in done.stderr
    done = subprocess.run([example], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
