"""INT8 ONNX files against the rules that TensorRT's documentation has for explicit quantisation, one test each.

TensorRT does not run here: this is what can be said of the graph alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_networks import narrow, picture, quantize_

from yolonas.config import DetectSettings
from yolonas.exporting.onnx_file import write_onnx
from yolonas.exporting.spec import ExportSpec
from yolonas.preprocess import Preprocess

onnx = pytest.importorskip("onnx")

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


class Written:
    """A graph with its wiring."""

    def __init__(self, path: Path):
        self.graph = onnx.load(path).graph
        self.nodes = list(self.graph.node)
        self.constants = {one.name: onnx.numpy_helper.to_array(one) for one in self.graph.initializer}
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.outputs = {one.name for one in self.graph.output}

    def of(self, *ops: str) -> list[Any]:
        return [node for node in self.nodes if node.op_type in ops]

    def makes(self, name: str) -> str:
        """The operator that a tensor comes from; "" for constants and the input."""
        return self.maker[name].op_type if name in self.maker else ""

    def readers(self, name: str) -> list[Any]:
        return [node for node in self.nodes if name in node.input]

    def axis(self, node: Any) -> int:
        return next((one.i for one in node.attribute if one.name == "axis"), 1)

    def scale(self, node: Any) -> float:
        return float(self.constants[node.input[1]])

    def weighted(self) -> list[Any]:
        return self.of("Conv", "ConvTranspose")

    def quantized(self) -> list[Any]:
        return [node for node in self.weighted() if self.makes(node.input[1]) == DEQUANTIZE]


@pytest.fixture(
    scope="module",
    params=[(variant, tensorrt, kept) for variant in "sml" for tensorrt in (True, False) for kept in (False, True)],
    ids=lambda one: f"{one[0]}{', for tensorrt' * one[1]}{', some in float' * one[2]}",
)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    variant, tensorrt, kept = request.param

    def in_float(name: str) -> bool:
        return kept and ("stage3" in name or name in ("backbone.stem.conv", "heads.head2.cls_pred"))

    model = quantize_(narrow(variant), picture(1, 64, 64), kept=in_float)
    spec = ExportSpec(
        variant=variant,
        names={0: "a", 1: "b", 2: "c"},
        preprocess=Preprocess(size=(64, 64), fit=None),
        settings=DetectSettings(),
        precision="int8",
    )
    path = tmp_path_factory.mktemp("qdq") / "model.onnx"
    write_onnx(path, model, spec, for_tensorrt=tensorrt)
    result = Written(path)
    result.tensorrt, result.kept = tensorrt, kept  # type: ignore[attr-defined]
    return result


def test_zero_points_are_zero_and_int8(written: Written) -> None:
    pairs = written.of(QUANTIZE, DEQUANTIZE)
    assert pairs
    for node in pairs:
        zero = written.constants[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()


def test_activations_have_one_scale_and_weights_one_per_output_channel(written: Written) -> None:
    for node in written.of(QUANTIZE):
        assert written.constants[node.input[1]].shape == ()
    for node in written.quantized():
        weight = written.maker[node.input[1]]
        values, scale = (written.constants[name] for name in weight.input[:2])
        axis = 1 if node.op_type == "ConvTranspose" else 0
        assert values.dtype == np.int8
        assert values.min() >= -127
        assert written.axis(weight) == axis
        assert scale.shape == (values.shape[axis],)


def test_scales_are_positive(written: Written) -> None:
    for node in written.of(QUANTIZE, DEQUANTIZE):
        scale = written.constants[node.input[1]]
        assert scale.dtype == np.float32
        assert (scale > 0).all()
        assert np.isfinite(scale).all()


def test_all_inputs_of_weighted_operators_are_quantised(written: Written) -> None:
    quantized = written.quantized()
    assert len(quantized) == len(written.weighted()) or written.kept
    for node in quantized:
        assert written.makes(node.input[0]) == DEQUANTIZE
        assert node.input[2] in written.constants  # the bias: float32, which TensorRT wants
        assert written.constants[node.input[2]].dtype == np.float32


def test_operators_in_float_have_plain_weights(written: Written) -> None:
    plain = [node for node in written.weighted() if node.input[1] in written.constants]
    assert len(plain) + len(written.quantized()) == len(written.weighted())
    assert bool(plain) == written.kept
    assert all(written.constants[node.input[1]].dtype == np.float32 for node in plain)


def test_a_quantised_tensor_goes_into_a_dequantisation(written: Written) -> None:
    """Or, where the file is not for TensorRT, into a concatenation of others of the same scale."""
    for node in written.of(QUANTIZE):
        readers = written.readers(node.output[0])
        assert readers
        for reader in readers:
            assert reader.op_type == DEQUANTIZE or (reader.op_type == "Concat" and not written.tensorrt)
            if reader.op_type == DEQUANTIZE:
                assert written.scale(reader) == written.scale(node)


def test_nothing_stands_between_a_convolution_and_its_activation(written: Written) -> None:
    for node in written.of("Conv"):
        (after,) = written.readers(node.output[0]) or [None]
        if after is None or after.op_type in ("Reshape", "Identity"):
            assert "_pred" in node.name
            continue
        assert after.op_type == "Relu"
        for follower in written.readers(after.output[0]):
            in_float = node not in written.quantized()
            assert follower.op_type in (QUANTIZE, "Add") or in_float or written.kept


def test_shortcuts_come_out_of_a_pair(written: Written) -> None:
    """The sum behind a convolution is fused with it where the other side has int8 values."""
    sums = [node for node in written.of("Add") if node.name.endswith(".sum")]
    assert sums
    for node in sums:
        first, second = node.input
        assert written.makes(first) == "Relu"
        factor = written.maker[second]
        assert factor.op_type == "Mul"
        assert written.makes(factor.input[0]) == DEQUANTIZE or written.kept


def test_concatenations_need_no_requantisation(written: Written) -> None:
    joins = [node for node in written.of("Concat") if node.name.split(".")[0] in ("backbone", "neck")]
    assert joins
    for node in joins:
        makers = [written.maker[name] for name in node.input]
        if {maker.op_type for maker in makers} == {"Relu"} or any(m.op_type in ("Add", "Relu") for m in makers):
            assert written.kept
            continue
        assert {maker.op_type for maker in makers} == {DEQUANTIZE if written.tensorrt else QUANTIZE}
        (scale,) = {written.scale(maker) for maker in makers}
        readers = written.readers(node.output[0])
        assert {reader.op_type for reader in readers} == {QUANTIZE if written.tensorrt else DEQUANTIZE}
        assert {written.scale(reader) for reader in readers} == {scale}


def test_pools_stay_in_integers(written: Written) -> None:
    pools = written.of("MaxPool")
    assert len(pools) == 3
    for node in pools:
        before = written.maker[node.input[0]]
        (after,) = written.readers(node.output[0])
        assert (before.op_type, after.op_type) == (DEQUANTIZE, QUANTIZE)
        assert written.scale(before) == written.scale(after)


def test_heads_and_decoding_are_in_float(written: Written) -> None:
    """So boxes and scores never share a scale: nothing behind the head outputs is quantised."""
    reached = [node.output[0] for node in written.weighted() if node.name.endswith("_pred")]
    assert len(reached) == 6
    seen = set()
    while reached:
        name = reached.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in written.readers(name):
            assert node.op_type not in (QUANTIZE, DEQUANTIZE), node.name
            reached += node.output
    assert written.outputs <= seen


def test_the_file_is_a_quarter(tmp_path: Path) -> None:
    """Weights are stored in int8, not as floats that a runtime has to quantise."""
    model = narrow("s", 80)
    spec = ExportSpec(
        variant="s",
        names={number: str(number) for number in range(80)},
        preprocess=Preprocess(size=(64, 64), fit=None),
        settings=DetectSettings(),
    )
    write_onnx(tmp_path / "float.onnx", model, spec)
    quantize_(model, picture(1, 64, 64))
    write_onnx(tmp_path / "int8.onnx", model, spec)
    weights = [
        sum(onnx.numpy_helper.to_array(one).nbytes for one in onnx.load(tmp_path / name).graph.initializer)
        for name in ("float.onnx", "int8.onnx")
    ]
    assert weights[1] < 0.4 * weights[0]  # of a network an eighth as wide, where scales count for more
