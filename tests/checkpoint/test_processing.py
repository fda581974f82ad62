"""super-gradients' stored processing, in all the forms that occur, becomes the convention that it means."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hostile_pickles import STOP, call, entry, name, number, text

from yolonas.checkpoint.pickle_reader import read_pickle
from yolonas.checkpoint.processing import MAX_STEPS, plain_list, preprocess_from_metadata, read_processing
from yolonas.errors import CheckpointError
from yolonas.preprocess import Preprocess

REVERSE, PERMUTE = "ReverseImageChannels", {"ImagePermute": {"permutation": (2, 0, 1)}}
STANDARD = {"StandardizeImage": {"max_value": 255.0}}
COCO = Preprocess()
ROBOFLOW = Preprocess(fit=(640, 640), padding="bottom_right", channels="bgr")


def compose(*steps: Any) -> dict[str, Any]:
    return {"ComposeProcessing": {"processings": list(steps)}}


def rescale(*shape: int) -> dict[str, Any]:
    return {"DetectionLongestMaxSizeRescale": {"output_shape": shape}}


def pad(kind: str, *shape: int, value: Any = 114) -> dict[str, Any]:
    return {f"Detection{kind}Padding": {"output_shape": shape, "pad_value": value}}


def live(*steps: bytes) -> Any:
    """The record of a pickled ComposeProcessing whose steps are given by their opcodes."""
    module = "super_gradients.training.processing.processing"
    built = b"".join(steps)
    data = name(module, "ComposeProcessing") + b")\x81}" + entry("processings", b"](" + built + b"e") + b"b" + STOP
    return read_pickle(data)


def step(kind: str, **values: bytes) -> bytes:
    attributes = b"".join(entry(key, value) for key, value in values.items())
    return name("super_gradients.training.processing.processing", kind) + b")\x81}" + attributes + b"b"


def pair(height: int, width: int) -> bytes:
    return number(height) + number(width) + b"\x86"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (compose(rescale(636, 636), pad("Center", 640, 640), STANDARD, PERMUTE), COCO),
        (compose(REVERSE, rescale(636, 636), {REVERSE: {}}, pad("Center", 640, 640), STANDARD, PERMUTE), COCO),
        (compose(REVERSE, *[rescale(640, 640)] * 2, pad("BottomRight", 640, 640), PERMUTE, STANDARD), ROBOFLOW),
        ([rescale(636, 636), pad("Center", 640, 640), STANDARD], COCO),
        (compose(compose(rescale(636, 636)), pad("Center", 640, 640), STANDARD), COCO),
        (compose(rescale(284, 284), pad("Center", 288, 288), STANDARD), Preprocess(size=(288, 288), fit=(284, 284))),
        (compose(rescale(300, 600), pad("Center", 320, 640), STANDARD), Preprocess(size=(320, 640), fit=(300, 600))),
        (compose({"DetectionRescale": {"output_shape": 640}}, STANDARD), Preprocess(fit=(640, 640), keep_ratio=False)),
        (compose(rescale(630, 630), STANDARD), Preprocess(fit=(630, 630))),
        (compose(pad("Center", 640, 640, value=[127, 127, 127]), STANDARD), Preprocess(fit=None, pad_value=127)),
        (
            compose({"DetectionAutoPadding": {"pad_value": 0}}, STANDARD),
            Preprocess(fit=None, padding="bottom_right", pad_value=0),
        ),
    ],
)
def test_conventions(value: Any, expected: Preprocess):
    assert read_processing(value) == (expected, [])


def test_scaling_and_normalisation_are_put_together():
    normalise = {"NormalizeImage": {"mean": (0.5, 0.25, 0.125), "std": [0.5, 0.25, 0.5]}}
    found, _ = read_processing(compose(rescale(636, 636), pad("Center", 640, 640), STANDARD, normalise, PERMUTE))
    assert found.mean == (127.5, 63.75, 31.875)
    assert found.divisor == (127.5, 63.75, 127.5)
    reversed_, _ = read_processing(compose(rescale(636, 636), pad("Center", 640, 640), STANDARD, normalise, REVERSE))
    assert reversed_.mean == (31.875, 63.75, 127.5)
    assert reversed_.channels == "bgr"
    plain, _ = read_processing(compose({"NormalizeImage": {"mean": [1.0] * 3, "std": [2.0] * 3}}))
    assert (plain.mean, plain.divisor) == ((1.0,) * 3, (2.0,) * 3)


def test_live_objects():
    found, notes = read_processing(
        live(
            step("ReverseImageChannels"),
            step("DetectionLongestMaxSizeRescale", output_shape=pair(636, 636)),
            step("DetectionCenterPadding", output_shape=pair(640, 640), pad_value=number(114)),
            step("StandardizeImage", max_value=b"G" + b"\x40\x6f\xe0\0\0\0\0\0"),
            step("ImagePermute", permutation=number(2) + number(0) + number(1) + b"\x87"),
        )
    )
    assert found == Preprocess(channels="bgr")
    assert notes == []


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numpy_arrays_in_live_objects(dtype: type):
    array = pickle.dumps(np.array([0.5, 0.5, 0.5], dtype), protocol=2)[2:-1]  # without PROTO and STOP
    found, _ = read_processing(live(step("NormalizeImage", mean=array, std=array)))
    assert found.mean == (0.5, 0.5, 0.5)
    assert found.divisor == (0.5, 0.5, 0.5)


def test_omegaconf_lists():
    node = name("omegaconf.nodes", "AnyNode") + b")\x81}" + entry("_val", text("cell")) + b"b"
    names = name("omegaconf.listconfig", "ListConfig") + b")\x81}" + entry("_content", b"](" + node * 2 + b"e") + b"b"
    assert plain_list(read_pickle(names + STOP)) == ["cell", "cell"]


@pytest.mark.parametrize("value", [None, {}, [], 3, "", {"a": 1, "b": 2}, compose()])
def test_nothing(value: Any):
    assert read_processing(value)[0] is None or value == ""


def test_unknown_steps_are_noted():
    found, notes = read_processing(
        compose(rescale(636, 636), {"Sharpen": {"by": 3}}, pad("Center", 640, 640), STANDARD)
    )
    assert found == COCO
    assert notes == ["The processing step Sharpen is not known and was left out."]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (compose(rescale(0, 640)), r"DetectionLongestMaxSizeRescale\.output_shape must lie in 1\.\.16384, got 0x640"),
        (compose(rescale(640)), r"must be \(height, width\), got \[640\]"),
        (compose(rescale(10**9, 10**9)), "must lie in"),
        (compose({"DetectionLongestMaxSizeRescale": {}}), r"must be \(height, width\), got None"),
        (compose({"DetectionLongestMaxSizeRescale": 5}), "got None"),
        (compose({"DetectionLongestMaxSizeRescale": {"output_shape": "640"}}), "got '640'"),
        (compose({"DetectionLongestMaxSizeRescale": {"output_shape": [[[]], {}]}}), r"got \['list', 'dict'\]"),
        (compose(rescale(640, 640), pad("Center", 320, 320)), "fit must lie between"),
        (compose(rescale(600, 600), pad("Center", 600, 600)), "multiples of 32"),
        (compose(pad("Center", 640, 640, value=256)), r"0\.\.255, got 256"),
        (compose(pad("Center", 640, 640, value=(1, 2, 3))), "same in all channels"),
        (compose(pad("Center", 640, 640, value=float("nan"))), "got nan"),
        (compose(pad("Center", 640, 640, value=True)), "got True"),
        (compose(STANDARD, pad("Center", 640, 640)), "before the scaling"),
        (compose({"StandardizeImage": {"max_value": 0}}), "divisor not zero"),
        (compose({"StandardizeImage": {"max_value": float("inf")}}), "usual size, got inf"),
        (compose({"StandardizeImage": {"max_value": "255"}}), "got '255'"),
        (compose({"NormalizeImage": {"mean": [0, 0, 0]}}), r"std must be three numbers, got None"),
        (compose({"NormalizeImage": {"mean": [0, 0], "std": [1, 1, 1]}}), "three numbers"),
        (compose({"NormalizeImage": {"mean": [0, 0, 0], "std": [1, 0, 1]}}), "divisor not zero"),
        (compose({"ImagePermute": {"permutation": (0, 1, 2)}}), r"must be \(2, 0, 1\)"),
        (compose(*[REVERSE] * (MAX_STEPS + 1)), "at most 64 steps"),
    ],
)
def test_values_that_make_no_sense(value: Any, reason: str):
    with pytest.raises(CheckpointError, match=reason):
        read_processing(value)


def test_endless_nesting():
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(CheckpointError, match="at most 64 steps"):
        read_processing(value)
    cycle: list[Any] = [REVERSE]
    cycle.append(cycle)
    with pytest.raises(CheckpointError, match="at most 64 steps"):
        read_processing(cycle)
    double: list[Any] = []
    for _ in range(100):
        double = [double, double]
    with pytest.raises(CheckpointError, match="at most 64 steps"):
        read_processing(double)
    deep = compose({"DetectionLongestMaxSizeRescale": {"output_shape": value}})
    with pytest.raises(CheckpointError, match=r"got \['list'\]"):
        read_processing(deep)


def test_calls_with_arguments_are_not_mistaken_for_state():
    data = (
        call("super_gradients.training.processing.processing", "ComposeProcessing", b"](" + text(REVERSE) + b"e") + STOP
    )
    assert read_processing(read_pickle(data))[0] is None


def test_metadata_round_trip():
    for value in (COCO, ROBOFLOW, Preprocess(fit=None, rect=True), Preprocess(mean=(1, 2, 3), divisor=(1, 2, 4))):
        as_json = {k: list(v) if isinstance(v, tuple) else v for k, v in value.to_dict().items()}
        assert preprocess_from_metadata(as_json) == value


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"size": "640"}, r"preprocess\.size must be \(height, width\)"),
        ({"size": [640, 641]}, "multiples of 32"),
        ({"size": [True, 640]}, "must be"),
        ({"size": None}, "must be"),
        ({"fit": [700, 700]}, "fit must lie between"),
        ({"keep_ratio": 1}, "must be true or false, got 1"),
        ({"padding": "left"}, "padding must be"),
        ({"padding": ["center"]}, "must be a string"),
        ({"channels": None}, "channels must be"),
        ({"mean": [0, 0, "0"]}, "usual size, got '0'"),
        ({"divisor": [255.0] * 4}, "three numbers"),
        ({"divisor": [0.0] * 3}, "divisor not zero"),
        ({"pad_value": 1e9}, r"0\.\.255"),
        ({"colour": "rgb"}, "unknown keys colour"),
    ],
)
def test_metadata_that_makes_no_sense(change: dict[str, Any], reason: str):
    with pytest.raises(CheckpointError, match=reason):
        preprocess_from_metadata({**COCO.to_dict(), **change})
    with pytest.raises(CheckpointError, match="must be an object"):
        preprocess_from_metadata([])
