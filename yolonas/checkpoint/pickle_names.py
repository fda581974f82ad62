"""What a name in a pickle may stand for: the allow-list, the few calls that have a meaning, and inert records.

Nothing here imports or looks up the thing that a name names: a class or function is two strings (`Global`), an instance
is its class, arguments and state (`Record`). The opcodes are in `pickle_reader`.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable
from typing import Any

from ..errors import CheckpointError
from .tensor_file import ITEM_SIZES, TypedStorage, stored_tensor

MAX_NAME = 512  # characters of module and name

# Names that may be mentioned, instantiated and called; a call makes a `Record` unless `_CALLS` says otherwise. Other
# packages' classes may be mentioned or instantiated without a call (that is data too), but names of Python's own
# library that are not listed are refused wherever they stand.
_ALLOWED = re.compile(
    "|".join(
        [
            r"(super_gradients|modern_yolonas|ultralytics|omegaconf|pytorch_quantization|torchmetrics|torchvision)\..*",
            r"(lightning|lightning_fabric|lightning_utilities|pytorch_lightning)\..*",
            r"torch\.(nn|optim|amp|cuda\.amp|utils\.data|torch_version)\..*",
            r"torch\.(Size|Tensor|Generator|device|dtype|layout|strided|memory_format|contiguous_format|channels_last)",
            rf"torch\.(double|float|half|long|int|short|{'|'.join(ITEM_SIZES)})",
            r"torch\.\w*Storage|torch\.storage\.\w*Storage|torch\.serialization\._get_layout",
            r"torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2",
            r"numpy\.(ndarray|dtype|generic|bool_?|u?int\d*|float\d*|complex\d*|str_|bytes_)",
            r"numpy\._?core\.(multiarray\.(scalar|_reconstruct)|numeric\._frombuffer)",
            r"numpy\.random\.(_pickle\.__\w+_ctor|_\w+\.\w+)",
            r"builtins\.(object|type|bool|int|float|complex|str|bytes|bytearray|slice|range)",
            r"builtins\.(tuple|list|dict|set|frozenset|\w+Error|\w+Exception|\w+Warning)",
            r"collections\.(OrderedDict|defaultdict|Counter|deque)|_codecs\.encode",
            r"copyreg\.(_reconstructor|__newobj__|__newobj_ex__)",
            r"pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path|functools\.partial|decimal\.Decimal|uuid\.UUID",
            r"datetime\.(datetime|date|time|timedelta|timezone)|argparse\.Namespace|types\.(SimpleNamespace|NoneType)",
            r"typing\.\w+|enum\.\w+|logging\.(getLogger|Logger)",
        ]
    ),
    re.DOTALL,
)
_LIBRARY = frozenset({*sys.stdlib_module_names, "pip", "setuptools"})
_PYTHON_2 = {  # protocols 0 to 2 write the names of Python 2
    **{"__builtin__": "builtins", "exceptions": "builtins", "copy_reg": "copyreg"},
    **{"commands": "subprocess", "cPickle": "pickle"},
}

# torch's storage classes by the dtype of their elements.
_STORAGE_DTYPES = {
    **{"DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16"},
    **{"LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8"},
    **{"ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": None},
    **{"ComplexDoubleStorage": "complex128", "ComplexFloatStorage": "complex64", "QInt8Storage": "qint8"},
    **{"QUInt8Storage": "quint8", "QInt32Storage": "qint32"},
    **{"QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4"},
}


class Global:
    """The name of a class or function in the file. It stands for nothing in this process."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    @property
    def full(self) -> str:
        return f"{self.module}.{self.name}"

    def __repr__(self) -> str:
        return f"Global({self.full})"


class Record:
    """An instance of some class, inert: what the file says of it."""

    __slots__ = ("args", "cls", "elements", "items", "state")

    def __init__(self, cls: Global, args: tuple[Any, ...] = ()):
        self.cls = cls
        self.args = args  # of the constructor
        self.state: Any = None  # mostly the dict of attributes
        self.items: dict[Any, Any] = {}  # of subclasses of dict
        self.elements: list[Any] = []  # of subclasses of list

    @property
    def class_name(self) -> str:
        """Without the module."""
        return self.cls.name

    @property
    def attributes(self) -> dict[Any, Any]:
        """The instance's attributes; empty where the file gives none."""
        state = self.state
        if type(state) is tuple and len(state) == 2:  # (dict, slots)
            state = state[0] if isinstance(state[0], dict) else state[1]
        return state if isinstance(state, dict) else {}

    def __repr__(self) -> str:
        return f"Record({self.cls.full})"


class MalformedError(Exception):
    """The pickle does not fit together; `read_pickle` turns it into a CheckpointError."""


def checked_global(module: Any, name: Any) -> Global:
    """A name from the file. Raises CheckpointError for one that no checkpoint needs."""
    if type(module) is not str or type(name) is not str or len(module) + len(name) > MAX_NAME:
        raise MalformedError("a class has no proper name")
    found = Global(_PYTHON_2.get(module, module), name)
    package = found.module.split(".")[0]
    chain = "." in name and ("__" in name or package in ("torch", "numpy"))  # such as Module.__init__.__globals__
    if chain or (package in _LIBRARY and ("." in name or not _ALLOWED.fullmatch(found.full))):
        raise CheckpointError(f"asks for {found.full}, which no checkpoint needs; nothing of it was executed")
    return found


def call(function: Any, args: Any, charge: Callable[[int], None]) -> Any:
    """The value that stands for `function(*args)`.

    `charge(n)` is told of n copied elements, so that copies of one large container cannot pile up.
    Raises CheckpointError for a function that is not on the list.
    """
    if not isinstance(function, Global) or type(args) is not tuple:
        raise MalformedError("a call of something that is no function")
    meaning = _CALLS.get(function.full)
    if meaning is not None:
        return meaning(function, args, charge)
    if not _ALLOWED.fullmatch(function.full):
        raise CheckpointError(f"asks to call {function.full}, which is not allowed; nothing of it was executed")
    return Record(function, args)


def new(cls: Any, args: Any) -> Any:
    """The value that stands for an instance made without a constructor."""
    if not isinstance(cls, Global) or type(args) is not tuple:
        raise MalformedError("an instance of something that is no class")
    return {} if cls.full == "collections.OrderedDict" else Record(cls, args)


def storage_dtype(cls: Any) -> str | None:
    """The element type of a torch storage class; None for bytes whose type the tensor tells."""
    if not isinstance(cls, Global) or not cls.module.startswith("torch") or cls.name not in _STORAGE_DTYPES:
        raise MalformedError("a storage of an unknown class")
    return _STORAGE_DTYPES[cls.name]


def _dict(function: Global, args: tuple[Any, ...], charge: Callable[[int], None]) -> Any:
    values: dict[Any, Any] = {}
    for pair in args[0] if args and type(args[0]) in (list, tuple) else ():
        charge(1)
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise MalformedError("a dict entry without key and value")
        set_item(values, *pair)
    return values


def _list(function: Global, args: tuple[Any, ...], charge: Callable[[int], None]) -> Any:
    # No copy: nothing that is read here needs one, and copies of one long list could fill the memory.
    return args[0] if args and type(args[0]) is list else [] if not args else Record(function, args)


def _size(function: Global, args: tuple[Any, ...], charge: Callable[[int], None]) -> Any:
    if len(args) != 1 or type(args[0]) not in (list, tuple):
        raise MalformedError("a torch.Size of no numbers")
    charge(len(args[0]))
    return tuple(args[0])


def _rebuild_tensor(function: Global, args: tuple[Any, ...], charge: Callable[[int], None]) -> Any:
    # v1 (storage, offset, shape, stride), v2 (..., requires_grad, hooks[, metadata]), v3 (..., dtype[, metadata])
    if len(args) < 4 or not isinstance(args[0], TypedStorage):
        raise MalformedError("a tensor without a storage")
    dtype = None
    if function.name == "_rebuild_tensor_v3":
        if len(args) < 7 or not isinstance(args[6], Global) or args[6].name not in ITEM_SIZES:
            raise MalformedError("a tensor of no known type")
        dtype = args[6].name
    return stored_tensor(*args[:4], dtype=dtype)


def _first(function: Global, args: tuple[Any, ...], charge: Callable[[int], None]) -> Any:
    if not args:
        raise MalformedError("a parameter without a tensor")
    return args[0]


def _rebuild_from_type(function: Global, args: tuple[Any, ...], charge: Callable[[int], None]) -> Any:
    # (rebuild, class, arguments, state): a tensor of a subclass or with attributes of its own.
    if len(args) < 3 or not isinstance(args[0], Global) or type(args[2]) is not tuple:
        raise MalformedError("a tensor of a subclass without its parts")
    if args[0].full in _TENSOR_CALLS:
        return _TENSOR_CALLS[args[0].full](args[0], args[2], charge)
    return Record(function, args)


def _encode(function: Global, args: tuple[Any, ...], charge: Callable[[int], None]) -> Any:
    # How protocol 2 spells bytes: as a string of the characters 0 to 255.
    if not args or type(args[0]) is not str or args[1:] not in ((), ("latin1",), ("latin-1",)):
        raise MalformedError("bytes that are not spelled in latin-1")
    charge(len(args[0]) // 16)
    try:
        return args[0].encode("latin-1")
    except UnicodeEncodeError:
        raise MalformedError("bytes that are not spelled in latin-1") from None


def _reconstruct(function: Global, args: tuple[Any, ...], charge: Callable[[int], None]) -> Any:
    # Protocols 0 and 1: (class, base class, state of the base)
    return new(args[0] if args else None, ())


def _new_object(function: Global, args: tuple[Any, ...], charge: Callable[[int], None]) -> Any:
    return new(args[0] if args else None, ())


def _numpy_scalar(function: Global, args: tuple[Any, ...], charge: Callable[[int], None]) -> Any:
    # (dtype, bytes); anything but a plain number stays a record.
    code = _NUMPY_CODES.get(numpy_dtype(args[0])) if len(args) == 2 else None
    if code is None or type(args[1]) is not bytes or len(args[1]) != struct.calcsize(code):
        return Record(function, args)
    return struct.unpack(code, args[1])[0]


def numpy_dtype(value: Any) -> str:
    """The name of a recorded NumPy dtype with its byte order, such as `<f8`; empty where there is none."""
    if not isinstance(value, Record) or value.cls.full != "numpy.dtype" or not value.args:
        return ""
    state = value.state
    order = state[1] if type(state) is tuple and len(state) > 1 and state[1] in ("<", ">", "|") else "<"
    return f"{order}{value.args[0]}"[:16] if type(value.args[0]) is str else ""


def set_item(target: dict[Any, Any], key: Any, value: Any) -> None:
    """Sets an entry if its key is a plain one. Others are left out, since nothing that is read here needs them.

    Hashing a deeply nested tuple would recurse without a limit, and huge integers can be made to collide.
    """
    if key is None or type(key) in (str, bytes, bool, float) or (type(key) is int and abs(key) < 1 << 60):
        target[key] = value


_NUMPY_CODES = {
    order + name: (">" if order == ">" else "<") + code
    for order in "<>|"
    for name, code in {
        **{"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b"},
        **{"u8": "Q", "u4": "I", "u2": "H", "u1": "B", "b1": "?"},
    }.items()
}

_TENSOR_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
}
_CALLS: dict[str, Callable[..., Any]] = {
    **_TENSOR_CALLS,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _size,
    "collections.OrderedDict": _dict,
    "builtins.dict": _dict,
    "builtins.set": _list,
    "builtins.frozenset": _list,
    "builtins.list": _list,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _reconstruct,
    "copyreg.__newobj__": _new_object,
    "copyreg.__newobj_ex__": _new_object,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}
