"""The pickle interpreter: plain values of every protocol, inert objects, and hostile pickles."""

from __future__ import annotations

import builtins
import collections
import contextlib
import datetime
import os
import pathlib
import pickle
import random
import subprocess
import sys
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hostile_pickles import STOP, Payload, call, name, number, payload, storage, tensor, text

from yolonas.checkpoint.pickle_names import numpy_dtype
from yolonas.checkpoint.pickle_reader import MAX_PICKLE_BYTES, MAX_STEPS, Global, Record, read_pickle
from yolonas.checkpoint.tensor_file import Storage, StoredTensor, TypedStorage
from yolonas.errors import CheckpointError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def load_storage(reference: Any) -> TypedStorage:
    """Stands for a file with one storage of 64 bytes."""
    if type(reference) is not tuple or len(reference) != 5:
        raise CheckpointError("no storage")
    return TypedStorage(Storage("data/0", 0, 64), "float32", 16)


class Plain:
    def __init__(self) -> None:
        self.shape = (640, 640)


class Slots:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 7


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values(protocol: int):
    value = {
        "none": None,
        "flags": [True, False],
        "numbers": (0, 1, -1, 255, 256, 65535, 65536, -(2**31), 2**31, 2**100, -(2**100), 0.5, -1e300, float("inf")),
        "texts": ["", "a", "ä\n\\u0041", "日本語 🙂", "x" * 300],
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        3: {None: {}, 1.5: [], True: ()},
    }
    shared = ["again"]
    value["twice"] = (shared, shared)
    read = read_pickle(pickle.dumps(value, protocol=protocol))
    assert read == value
    assert read["twice"][0] is read["twice"][1]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bytes_sets_and_ordered_dicts(protocol: int):
    value = [b"", b"\x00\xff", {3}, frozenset({"a"}), collections.OrderedDict(b=1, a=2)]
    read = read_pickle(pickle.dumps(value, protocol=protocol))
    if protocol < 3:
        read[0] = b"" if isinstance(read[0], Record) else read[0]  # bytes() has an opcode only from protocol 3
    assert read == [b"", b"\x00\xff", [3], ["a"], {"b": 1, "a": 2}]
    assert list(read[4]) == ["b", "a"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_are_inert_records(protocol: int):
    read = read_pickle(pickle.dumps([Plain(), Plain], protocol=protocol))
    assert isinstance(read[0], Record)
    assert read[0].class_name == "Plain"
    assert read[0].attributes == {"shape": (640, 640)}
    assert isinstance(read[1], Global)
    assert read[1].full.endswith("test_pickle_reader.Plain")


@pytest.mark.parametrize("protocol", range(2, 6))
def test_slots_and_subclasses(protocol: int):
    slots, counter = read_pickle(pickle.dumps([Slots(), collections.Counter("aab")], protocol=protocol))
    assert slots.attributes == {"value": 7}
    assert counter.args == ({"a": 2, "b": 1},)
    table = read_pickle(pickle.dumps(collections.defaultdict(list, a=[1]), protocol=protocol))
    assert table.items == {"a": [1]}


@pytest.mark.parametrize("protocol", range(2, 6))
def test_numpy_values(protocol: int):
    values = [np.float64(0.475), np.float32(0.5), np.int64(-3), np.bool_(True)]
    read = read_pickle(pickle.dumps(values, protocol=protocol))
    assert read == [0.475, 0.5, -3, True]
    assert [type(value) for value in read] == [float, float, int, bool]
    array = read_pickle(pickle.dumps(np.array([1.0, 2.0], np.float32), protocol=protocol))
    assert isinstance(array, Record)
    if protocol < 5:
        assert numpy_dtype(array.state[2]) == "<f4"


def test_harmless_library_objects_are_records():
    value = [pathlib.PurePosixPath("a/b"), datetime.datetime(2023, 5, 1), Payload(slice, 1, 2)]
    assert all(isinstance(item, Record) for item in read_pickle(pickle.dumps(value, protocol=2)))


def test_cycles():
    value: list[Any] = [1]
    value.append(value)
    read = read_pickle(pickle.dumps(value))
    assert read[1] is read


def test_tensor_is_a_description():
    read = read_pickle(tensor("0", 16, (4, 3), (4, 1), offset=1) + STOP, load_storage)
    assert read == StoredTensor(Storage("data/0", 0, 64), "float32", 1, (4, 3), (4, 1))
    parameter = call("torch._utils", "_rebuild_parameter", tensor("0", 16, (16,), (1,)), b"\x88", b"N") + STOP
    assert read_pickle(parameter, load_storage).shape == (16,)
    subclass = (
        call(
            "torch._tensor",
            "_rebuild_from_type_v2",
            name("torch._utils", "_rebuild_tensor_v2"),
            name("torch.nn.parameter", "Buffer"),
            b"(" + storage("0", 16) + number(0) + b"(" + number(2) + b"t(" + number(1) + b"t\x89Nt",
            b"N",
        )
        + STOP
    )
    assert read_pickle(subclass, load_storage).shape == (2,)


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [
        ((17,), (1,), 0),
        ((16,), (1,), 1),
        ((4, 4), (5, 1), 0),
        ((2,), (2**40,), 0),
        ((2**31, 2**31), (1, 1), 0),
        ((2**61, 2**61), (2**61, 1), 0),
        ((-1,), (1,), 0),
        ((2,), (-1,), 1),
        ((1,), (1,), -1),
        ((1,), (1,), 2**63),
        ((2, 2), (1,), 0),
        ((1,) * 17, (1,) * 17, 0),
    ],
)
def test_tensors_outside_their_storage(shape: tuple[int, ...], stride: tuple[int, ...], offset: int):
    with pytest.raises(CheckpointError, match="damaged"):
        read_pickle(tensor("0", 16, shape, stride, offset) + STOP, load_storage)


def test_expanded_tensor_is_told_apart():
    read = read_pickle(tensor("0", 16, (10**6, 10**6), (0, 0)) + STOP, load_storage)
    assert read.overlaps_itself


# Attacks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("function", "args"),
    [
        (os.system, ("touch {marker}",)),
        (builtins.eval, ("open('{marker}', 'w')",)),
        (builtins.exec, ("open('{marker}', 'w')",)),
        (builtins.open, ("{marker}", "w")),
        (builtins.__import__, ("antigravity",)),
        (subprocess.Popen, (["touch", "{marker}"],)),
        (os.remove, ("{marker}",)),
        (sys.exit, (1,)),
        (getattr, (os, "system")),
        (pickle.loads, (b"cos\nsystem\n(Vls\ntR.",)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_calls_are_refused_and_not_made(tmp_path: pathlib.Path, function: Any, args: tuple[Any, ...], protocol: int):
    marker = tmp_path / "marker"
    args = tuple(arg.format(marker=marker) if isinstance(arg, str) else arg for arg in args if arg is not os)
    with pytest.raises(CheckpointError, match=r"asks for \w+\.\w+, which no checkpoint needs; nothing of it"):
        read_pickle(payload(function, *args, protocol=protocol))
    assert not marker.exists()
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch.jit._script", "unpackage_script_module"),
        ("torch.serialization", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("torch.utils.cpp_extension", "load_inline"),
        ("torch.fx.graph_module", "reduce_graph_module"),
        ("torch._dynamo.guards", "eval"),
        ("torch.package.package_importer", "PackageImporter"),
        ("torch.ops", "load_library"),
        ("torch._utils", "_import_dotted_name"),
        ("torch", "nn.modules.os.system"),
        ("torch.nn", "Module.__init__.__globals__"),
        ("super_gradients", "Trainer.__init__.__globals__.get"),
        ("numpy.testing._private.utils", "runstring"),
        ("numpy", "load"),
        ("builtins", "getattr"),
        ("__builtin__", "apply"),
        ("operator", "attrgetter"),
        ("functools", "reduce"),
        ("types", "CodeType"),
        ("nt", "system"),
        ("posix", "system"),
        ("os", "path.os.system"),
        ("importlib", "import_module"),
        ("pip", "main"),
        ("_posixsubprocess", "fork_exec"),
        ("copyreg", "add_extension"),
        ("logging.config", "listen"),
    ],
)
def test_names_that_are_refused(module: str, attribute: str):
    for data in (
        call(module, attribute),
        text(module) + text(attribute) + b"\x93)R",
        b"(" + name(module, attribute) + b"o",
    ):
        with pytest.raises(CheckpointError, match="nothing of it was executed"):
            read_pickle(data + STOP)
    with pytest.raises(CheckpointError, match="nothing of it was executed"):
        read_pickle(f"(i{module}\n{attribute}\n.".encode())


@pytest.mark.parametrize(
    ("module", "attribute"), [("os", "system"), ("builtins", "eval"), ("subprocess", "Popen"), ("torch", "nn.a.os.b")]
)
def test_dangerous_names_are_refused_even_as_values(module: str, attribute: str):
    for data in (name(module, attribute), name(module, attribute) + b")\x81"):
        with pytest.raises(CheckpointError, match="asks for"):
            read_pickle(data + STOP)


def test_unknown_packages_may_be_mentioned_but_not_called():
    assert isinstance(read_pickle(name("somebody.models", "Config") + b")\x81."), Record)
    assert isinstance(read_pickle(name("torch.distributed", "ReduceOp") + b")\x81."), Record)
    with pytest.raises(CheckpointError, match=r"asks to call somebody\.models\.build, which is not allowed"):
        read_pickle(call("somebody.models", "build") + STOP)


def test_chain_of_getattr():
    chain = call("builtins", "getattr", call("builtins", "__import__", text("os")), text("system"))
    with pytest.raises(CheckpointError, match=r"builtins\.getattr"):
        read_pickle(chain + STOP)


def test_inert_calls_do_not_import():
    data = call("super_gradients.training.processing.processing", "ComposeProcessing", b"]") + STOP
    read = read_pickle(data)
    assert isinstance(read, Record)
    assert read.args == ([],)
    assert "super_gradients" not in sys.modules


@pytest.mark.parametrize("opener", [b"]", b"(", b"}", b"\x8f"], ids=["list", "mark", "dict", "set"])
def test_deep_nesting(opener: bytes):
    depth = 300_000
    closer = {b"]": b"a", b"(": b"t", b"}": b"NNs0s", b"\x8f": b"a"}[opener]
    try:
        value = read_pickle(opener * depth + closer * (depth - 1) + STOP)
    except CheckpointError:
        return
    del value  # taking such a structure apart must not overflow the stack either


def test_deep_tuples_records_and_keys():
    deep = b")" + b"\x85" * 500_000
    assert isinstance(read_pickle(deep + STOP), tuple)
    assert read_pickle(b"}" + deep + b"K\x01s.") == {}  # hashing such a key would overflow the stack
    nested = name("super_gradients.a", "B") + b"q\x00)\x81" + b"h\x00)\x81q\x01" + b"b" + STOP
    assert isinstance(read_pickle(nested), Record)
    chain = name("super_gradients.a", "B") + b"q\x00)\x81" + b"q\x010h\x00)\x81h\x01b" * 200_000 + STOP
    assert isinstance(read_pickle(chain), Record)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"K",
        b"X\xff\xff\xff\x7fabc.",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"B\xff\xff\xff\xff.",
        b"\x96\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\x8b\xff\xff\xff\x7f\x01.",
        b"\x8a\xff\x01.",
        b"\x8b\x01\x04\x00\x00" + b"\x01" * 1025 + b".",
        b"I" + b"9" * 100_000 + b"\n.",
        b"L" + b"9" * 100_000 + b"L\n.",
        b"Fnan or so\n.",
        b"Sunquoted\n.",
        b"h\x05.",
        b"j\xff\xff\xff\xff.",
        b"q\x00.",
        b"p0\n.",
        b"t.",
        b"e.",
        b"u.",
        b"a.",
        b"s.",
        b"R.",
        b"b.",
        b"0.",
        b"1.",
        b"2.",
        b"Q.",
        b"P1\n.",
        b"\x82\x01.",
        b"\x84\x01\x00\x00\x00.",
        b"\x97.",
        b"\x80\x09N.",
        b"\xff.",
        b"N)R.",
        b"K\x01K\x02R.",
        b"NN\x93.",
        b"(o.",
        b"K\x01K\x02s.",
        b"}(K\x01u.",
        b"Na.",
        b"c" + b"a" * 1000 + b"\nb\n.",
        b"cos",
        name("torch._utils", "_rebuild_tensor_v2") + b")R.",
        name("torch._utils", "_rebuild_parameter") + b")R.",
        name("torch", "Size") + b"K\x01\x85R.",
        call("_codecs", "encode", text("日本"), text("latin1")) + STOP,
        call("_codecs", "encode", text("a"), text("punycode")) + STOP,
        call("collections", "OrderedDict", b"]K\x01a") + STOP,
    ],
)
def test_nonsense(data: bytes):
    with pytest.raises(CheckpointError, match="is damaged"):
        read_pickle(data)


def test_persistent_ids_need_a_file():
    with pytest.raises(CheckpointError, match="outside the pickle"):
        read_pickle(storage("0", 1) + STOP)


def test_size_and_steps_are_limited():
    with pytest.raises(CheckpointError, match="at most"):
        read_pickle(b"N" * (MAX_PICKLE_BYTES + 1))
    with pytest.raises(CheckpointError, match="steps"):
        read_pickle(b"N0" * MAX_STEPS)


def test_copies_of_large_containers_are_limited():
    large = b"](" + b"N" * 100_000 + b"eq\x000"
    for again in (
        name("builtins", "set") + b"q\x010" + b"h\x01h\x00\x85R" * 100_000,
        name("torch", "Size") + b"q\x010" + b"h\x01h\x00\x85R" * 100_000,
        name("_codecs", "encode") + b"q\x010" + text("x" * 1_000_000) + b"q\x020" + b"h\x01h\x02\x85R" * 100_000,
    ):
        tracemalloc.start()
        start = time.perf_counter()
        with contextlib.suppress(CheckpointError):
            read_pickle(large + again + STOP)
        assert tracemalloc.get_traced_memory()[1] < 400 << 20
        tracemalloc.stop()
        assert time.perf_counter() - start < 20


def test_colliding_keys_do_not_take_forever():
    modulus = (1 << 61) - 1  # Python's hash of k * modulus is 0 for every k
    data = b"}" + b"".join(number(k * modulus) + b"Ns" for k in range(1, 20_000)) + STOP
    start = time.perf_counter()
    assert read_pickle(data) == {}
    assert time.perf_counter() - start < 5


def test_random_damage_never_escapes():
    generator = random.Random(0)
    value = [Plain(), collections.OrderedDict(a=1), np.float64(2), {"k": (1, 2.5, "text", b"bytes", {1, 2})}, Plain]
    originals = [pickle.dumps(value, protocol=protocol) for protocol in PROTOCOLS]
    originals.append(tensor("0", 16, (4, 4), (4, 1)) + STOP)
    for original in originals:
        for length in range(len(original)):
            with pytest.raises(CheckpointError):
                read_pickle(original[:length], load_storage)
        for _ in range(1500):
            data = bytearray(original)
            for _ in range(generator.choice((1, 1, 2, 8))):
                data[generator.randrange(len(data))] = generator.randrange(256)
            with contextlib.suppress(CheckpointError):
                read_pickle(bytes(data), load_storage)
