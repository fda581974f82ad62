"""Collects the nodes and constants of an ONNX graph, and streams the file: weights are never all in memory twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..errors import missing_package

if TYPE_CHECKING:
    import onnx

# The oldest format version that each opset may stand in: the older it is, the more runtimes read it.
IR_VERSIONS = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}

Tensor = Callable[[], np.ndarray]


class Builder:
    """A graph in the making. Every method that adds a node returns the name of its output, which is the node's too.

    Args:
        opset: one of `IR_VERSIONS`.
    """

    def __init__(self, opset: int):
        try:
            import onnx
        except ImportError as error:
            raise missing_package("export: ONNX files", "onnx", "onnx") from error
        self._onnx = onnx
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._tensors: dict[str, Tensor] = {}

    def node(self, op: str, inputs: Iterable[str], name: str, **attributes: Any) -> str:
        """Adds a node with one output, called `name`."""
        self.nodes.append(self._onnx.helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def nodes_of(self, op: str, inputs: Iterable[str], names: list[str], **attributes: Any) -> list[str]:
        """Adds a node with several outputs, called after the first."""
        self.nodes.append(self._onnx.helper.make_node(op, list(inputs), names, names[0], **attributes))
        return names

    def constant(self, name: str, value: np.ndarray | Tensor) -> str:
        """Adds a constant under a name of its own; one that is computed, when the file is written."""
        assert name not in self._tensors
        self._tensors[name] = value if callable(value) else (lambda: value)
        return name

    def shared(self, name: str, value: Any, dtype: Any) -> str:
        """A small constant that may be asked for again under the same name."""
        if name not in self._tensors:
            self.constant(name, np.asarray(value, dtype))
        return name

    def ints(self, *values: int) -> str:
        """A one-dimensional int64 constant, such as axes or a shape."""
        return self.shared(f"ints_{'_'.join(map(str, values))}", values, np.int64)

    def int(self, value: int) -> str:
        """An int64 number."""
        return self.shared(f"int_{value}", value, np.int64)

    def float(self, value: float) -> str:
        """A float32 number."""
        return self.shared(f"float_{np.float32(value)!s}", value, np.float32)

    def input(self, name: str, dtype: str, shape: Iterable[int | str]) -> str:
        self.inputs.append(self._value(name, dtype, shape))
        return name

    def output(self, name: str, dtype: str, shape: Iterable[int | str]) -> None:
        self.outputs.append(self._value(name, dtype, shape))

    def reduce(self, op: str, x: str, axis: int, name: str, *, keepdims: bool = False) -> str:
        """ReduceMax or ReduceSum over one axis, which is an attribute in older opsets and an input in newer ones."""
        if self.opset >= (13 if op == "ReduceSum" else 18):
            return self.node(op, [x, self.ints(axis)], name, keepdims=int(keepdims))
        return self.node(op, [x], name, axes=[axis], keepdims=int(keepdims))

    def side(self, x: str, axis: int, name: str) -> str:
        """The length of an axis, int64 `(1,)`."""
        return self.node("Gather", [self.node("Shape", [x], f"{name}_shape"), self.ints(axis)], name, axis=0)

    def cast(self, x: str, dtype: str, name: str) -> str:
        """float32, float16, int64, bool."""
        return self.node("Cast", [x], name, to=self._type(dtype))

    def write(self, file: BinaryIO, *, graph_name: str, doc: str, version: str, metadata: Mapping[str, str]) -> None:
        """Writes a ModelProto. The constants, most of the file, are made and written one after another."""
        make = self._onnx.helper
        used = {name for node in self.nodes for name in node.input}
        tensors = {name: value for name, value in self._tensors.items() if name in used}
        graph = make.make_graph(self.nodes, graph_name, self.inputs, self.outputs)
        model = make.make_model(
            self._onnx.GraphProto(name=graph_name),
            opset_imports=[make.make_opsetid("", self.opset)],
            ir_version=IR_VERSIONS[self.opset],
            producer_name="yolonas",
            producer_version=version,
            doc_string=doc,
        )
        make.set_model_props(model, dict(metadata))
        model.ClearField("graph")
        sizes = {name: self._tensor(name, value()).ByteSize() for name, value in tensors.items()}
        body = graph.SerializeToString()
        tensor_tag, graph_tag = _tag(graph, "initializer"), _tag(model, "graph")
        total = len(body) + sum(len(tensor_tag) + len(_varint(size)) + size for size in sizes.values())
        file.write(model.SerializeToString() + graph_tag + _varint(total) + body)
        for name, value in tensors.items():
            data = self._tensor(name, value()).SerializeToString()
            assert len(data) == sizes[name]
            file.write(tensor_tag + _varint(len(data)))
            file.write(data)

    def _tensor(self, name: str, value: np.ndarray) -> onnx.TensorProto:
        return self._onnx.numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)

    def _type(self, dtype: str) -> int:
        return self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def _value(self, name: str, dtype: str, shape: Iterable[int | str]) -> onnx.ValueInfoProto:
        return self._onnx.helper.make_tensor_value_info(name, self._type(dtype), list(shape))


def _tag(message: Any, field: str) -> bytes:
    """What stands before a message in a message."""
    return _varint(message.DESCRIPTOR.fields_by_name[field].number << 3 | 2)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that more follow."""
    parts = [number >> shift & 0x7F for shift in range(0, max(1, 7 * math.ceil(number.bit_length() / 7)), 7)]
    return bytes([part | 0x80 for part in parts[:-1]] + parts[-1:])
