"""Reads a pickle without executing anything: a small interpreter of the opcodes that only builds plain values.

Numbers, strings, lists, tuples and dicts come out as such; classes and instances as the inert `Global` and `Record` of
`pickle_names`, which also holds the list of what a file may name and call. There is no recursion, and steps, sizes and
copies are bounded, so that a hostile file ends in a CheckpointError. Tensors stay descriptions, to be loaded elsewhere.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

from ..errors import CheckpointError
from .pickle_names import Global, MalformedError, Record, call, checked_global, new, set_item

MAX_PICKLE_BYTES = 32 << 20  # real ones have under 2 MB: tensors are stored beside the pickle
MAX_STEPS = 3_000_000  # opcodes and copied elements; real ones take up to about 400,000
MAX_INT_BYTES = 1024
MAX_TEXT_NUMBER = 64  # characters of a number in the text opcodes of protocol 0

__all__ = ["MAX_PICKLE_BYTES", "MAX_STEPS", "Global", "Record", "read_pickle"]


def read_pickle(data: bytes, persistent_load: Callable[[Any], Any] | None = None) -> Any:
    """The value that a pickle of any protocol describes, built of plain values, `Global`s and `Record`s.

    Sets are read as lists. Dict entries whose key is not a string, bytes, number or None are left out.

    Args:
        data: the pickle; bytes after its STOP are ignored.
        persistent_load: makes the value for a persistent id; without it such ids are refused.

    Raises:
        CheckpointError: damaged, beyond a limit, or naming what is not allowed; the text has no file name.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise CheckpointError(f"has a pickle of {len(data)} bytes; at most {MAX_PICKLE_BYTES} are read")
    machine = _Machine(data, persistent_load)
    try:
        return machine.run()
    except (IndexError, KeyError, struct.error, MalformedError) as error:
        reason = error.args[0] if isinstance(error, MalformedError) else "its opcodes do not fit together"
        raise CheckpointError(f"is damaged: its pickle makes no sense at byte {machine.at} ({reason})") from None


class _Machine:
    """The pickle machine: a stack, the stacks below the open marks, and a memo."""

    def __init__(self, data: bytes, persistent_load: Callable[[Any], Any] | None):
        self.data = data
        self.at = 0
        self.steps = 0
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below the open marks
        self.memo: dict[int, Any] = {}
        self.persistent_load = persistent_load

    def run(self) -> Any:
        data = self.data
        while True:
            code = data[self.at]  # beyond the end: IndexError
            self.at += 1
            self.steps += 1
            if self.steps > MAX_STEPS:
                self.charge(0)
            if code == _STOP:
                return self.stack.pop()
            operation = _OPERATIONS[code]
            if operation is None:
                raise MalformedError(f"unknown opcode {code:#04x}")
            operation(self)

    def charge(self, steps: int) -> None:
        """Counts work beyond one step per opcode."""
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise CheckpointError(f"has a pickle of more than {MAX_STEPS} steps, far more than a checkpoint needs")

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise MalformedError(f"{count} bytes are claimed, {len(self.data) - self.at} are left")
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise MalformedError("a line has no end")
        piece = self.data[self.at : end]
        self.at = end + 1
        return piece

    def line_number(self) -> int:
        text = self.line().removesuffix(b"L")
        if len(text) > MAX_TEXT_NUMBER or not re.fullmatch(rb"[+-]?[0-9]+", text):
            raise MalformedError("a number that is none")
        return int(text)

    def text(self, size: int) -> str:
        return self.take(size).decode("utf-8", "replace")

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.outer.pop()
        return items


def _push(value: Any) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(value)


def _mark(machine: _Machine) -> None:
    machine.outer.append(machine.stack)
    machine.stack = []


def _pop(machine: _Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


def _nothing(machine: _Machine) -> None:
    pass


def _protocol(machine: _Machine) -> None:
    version = machine.number(1)
    if version > 5:
        raise MalformedError(f"pickle protocol {version} is not known")


def _long(size: int) -> Callable[[_Machine], None]:
    def read(machine: _Machine) -> None:
        count = machine.number(size)
        if count > MAX_INT_BYTES:
            raise MalformedError(f"an integer of {count} bytes")
        machine.stack.append(int.from_bytes(machine.take(count), "little", signed=True))

    return read


def _text(size: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.text(machine.number(size)))


def _bytes(size: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.take(machine.number(size)))


def _byte_string(size: int) -> Callable[[_Machine], None]:
    # Strings as Python 2 wrote them: latin-1 keeps their bytes.
    return lambda machine: machine.stack.append(machine.take(machine.number(size)).decode("latin-1"))


def _line_int(machine: _Machine) -> None:
    flags = {b"00": False, b"01": True}  # how protocol 0 spells them
    start = machine.at
    line = machine.line()
    if line in flags:
        machine.stack.append(flags[line])
    else:
        machine.at = start
        machine.stack.append(machine.line_number())


def _line_float(machine: _Machine) -> None:
    text = machine.line()
    try:
        machine.stack.append(float(text[:MAX_TEXT_NUMBER]))
    except ValueError:
        raise MalformedError("a number that is none") from None


def _line_string(machine: _Machine) -> None:
    text = machine.line()
    if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"') or b"\\" in text:
        raise MalformedError("a string of protocol 0 without quotes or with escapes")
    machine.stack.append(text[1:-1].decode("latin-1"))


def _line_text(machine: _Machine) -> None:
    machine.stack.append(machine.line().decode("raw_unicode_escape", "replace"))


def _tuple_of(size: int) -> Callable[[_Machine], None]:
    def build(machine: _Machine) -> None:
        if len(machine.stack) < size:
            raise IndexError
        machine.stack[-size:] = [tuple(machine.stack[-size:])]

    return build


def _append(machine: _Machine) -> None:
    value = machine.stack.pop()
    _extend(machine.stack[-1], [value])


def _appends(machine: _Machine) -> None:
    values = machine.pop_mark()
    _extend(machine.stack[-1], values)


def _extend(target: Any, values: list[Any]) -> None:
    if isinstance(target, Record):
        target = target.elements
    if type(target) is not list:
        raise MalformedError("elements for something that is no list")
    target.extend(values)


def _set_item(machine: _Machine) -> None:
    value = machine.stack.pop()
    key = machine.stack.pop()
    _update(machine.stack[-1], [key, value])


def _set_items(machine: _Machine) -> None:
    items = machine.pop_mark()
    _update(machine.stack[-1], items)


def _update(target: Any, items: list[Any]) -> None:
    if isinstance(target, Record):
        target = target.items
    if type(target) is not dict or len(items) % 2:
        raise MalformedError("entries for something that is no dict")
    for i in range(0, len(items), 2):
        set_item(target, items[i], items[i + 1])


def _new_dict(machine: _Machine) -> None:
    items = machine.pop_mark()
    machine.stack.append({})
    _update(machine.stack[-1], items)


def _frozen_set(machine: _Machine) -> None:
    items = machine.pop_mark()
    machine.stack.append(items)


_new_list = _frozen_set  # a set is read as a list


def _new_tuple(machine: _Machine) -> None:
    items = machine.pop_mark()  # changes machine.stack
    machine.stack.append(tuple(items))


def _put(size: int) -> Callable[[_Machine], None]:
    def put(machine: _Machine) -> None:
        machine.memo[machine.number(size)] = machine.stack[-1]

    return put


def _get(size: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.memo[machine.number(size)])


def _line_put(machine: _Machine) -> None:
    machine.memo[machine.line_number()] = machine.stack[-1]


def _line_get(machine: _Machine) -> None:
    machine.stack.append(machine.memo[machine.line_number()])


def _memoize(machine: _Machine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _line_global(machine: _Machine) -> None:
    machine.stack.append(_global_of_lines(machine))


def _global_of_lines(machine: _Machine) -> Global:
    module = machine.line().decode("utf-8", "replace")
    return checked_global(module, machine.line().decode("utf-8", "replace"))


def _stack_global(machine: _Machine) -> None:
    name = machine.stack.pop()
    machine.stack.append(checked_global(machine.stack.pop(), name))


def _reduce(machine: _Machine) -> None:
    args = machine.stack.pop()
    machine.stack.append(call(machine.stack.pop(), args, machine.charge))


def _line_instance(machine: _Machine) -> None:
    cls = _global_of_lines(machine)
    args = machine.pop_mark()
    machine.stack.append(call(cls, tuple(args), machine.charge))


def _instance(machine: _Machine) -> None:
    args = machine.pop_mark()
    machine.stack.append(call(args[0], tuple(args[1:]), machine.charge))


def _new_object(machine: _Machine) -> None:
    args = machine.stack.pop()
    machine.stack.append(new(machine.stack.pop(), args))


def _new_object_ex(machine: _Machine) -> None:
    machine.stack.pop()  # keyword arguments
    _new_object(machine)


def _build(machine: _Machine) -> None:
    state = machine.stack.pop()
    if isinstance(machine.stack[-1], Record):
        machine.stack[-1].state = state
    # Plain values with attributes (an OrderedDict with its `_metadata`) stay as they are.


def _persistent_id(machine: _Machine) -> None:
    if machine.persistent_load is None:
        raise MalformedError("a reference to something outside the pickle")
    machine.stack.append(machine.persistent_load(machine.stack.pop()))


def _refused(reason: str) -> Callable[[_Machine], None]:
    def refuse(machine: _Machine) -> None:
        raise MalformedError(reason)

    return refuse


_STOP = ord(".")
_BY_OPCODE: dict[bytes, Callable[[_Machine], None]] = {
    **{b"(": _mark, b"0": _pop, b"1": _Machine.pop_mark, b"2": lambda machine: machine.stack.append(machine.stack[-1])},
    **{b"\x80": _protocol, b"\x95": lambda machine: _nothing(machine.take(8)), b"\x98": _nothing},
    **{b"N": _push(None), b"\x88": _push(True), b"\x89": _push(False)},
    **{b"I": _line_int, b"L": lambda machine: machine.stack.append(machine.line_number()), b"F": _line_float},
    **{b"K": lambda machine: machine.stack.append(machine.number(1))},
    **{b"M": lambda machine: machine.stack.append(machine.number(2))},
    **{b"J": lambda machine: machine.stack.append(int.from_bytes(machine.take(4), "little", signed=True))},
    **{b"G": lambda machine: machine.stack.append(struct.unpack(">d", machine.take(8))[0])},
    **{b"\x8a": _long(1), b"\x8b": _long(4)},
    **{b"S": _line_string, b"T": _byte_string(4), b"U": _byte_string(1)},
    **{b"V": _line_text, b"X": _text(4), b"\x8c": _text(1), b"\x8d": _text(8)},
    **{b"B": _bytes(4), b"C": _bytes(1), b"\x8e": _bytes(8), b"\x96": _bytes(8)},
    **{b")": _push(()), b"t": _new_tuple, b"\x85": _tuple_of(1), b"\x86": _tuple_of(2), b"\x87": _tuple_of(3)},
    **{b"]": lambda machine: machine.stack.append([]), b"l": _new_list, b"a": _append, b"e": _appends},
    **{b"}": lambda machine: machine.stack.append({}), b"d": _new_dict, b"s": _set_item, b"u": _set_items},
    **{b"\x8f": lambda machine: machine.stack.append([]), b"\x90": _appends, b"\x91": _frozen_set},
    **{b"p": _line_put, b"q": _put(1), b"r": _put(4), b"\x94": _memoize},
    **{b"g": _line_get, b"h": _get(1), b"j": _get(4)},
    **{b"c": _line_global, b"\x93": _stack_global, b"R": _reduce, b"b": _build},
    **{b"i": _line_instance, b"o": _instance, b"\x81": _new_object, b"\x92": _new_object_ex},
    **{b"Q": _persistent_id, b"P": _refused("a reference of protocol 0")},
    **{b"\x97": _refused("a buffer outside the pickle")},
    **dict.fromkeys((b"\x82", b"\x83", b"\x84"), _refused("an entry of the extension registry")),
}
_OPERATIONS: list[Callable[[_Machine], None] | None] = [_BY_OPCODE.get(bytes([code])) for code in range(256)]
