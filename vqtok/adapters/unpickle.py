"""Pickles as data: a machine that builds tensors, plain containers and inert stand-ins, and calls nothing.

Python's own unpickler imports what a file names and calls it. This one has no way to: a name stays a `Name`, and what a
file calls is looked up in `CALLS`, whose functions are all in this module. A class whose package is in `STAND_INS`
becomes an `Inert` that only collects what the file gives it. Every other name is refused, whatever is done with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple, TypeAlias

import torch

from vqtok.errors import IntegrityError, escape

STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Packages whose classes checkpoints name beside their weights: callbacks, settings, whole modules.
STAND_INS = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "dall_e.", "torch.nn.modules.")
STAND_IN_NAMES = {
    ("argparse", "Namespace"),
    ("pathlib", "PosixPath"),
    ("typing", "Any"),
    ("torch", "device"),
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}
_MAX_OPCODES = 50_000_000
_MAX_DIMENSIONS = 16


class Name(NamedTuple):
    """A global that a pickle names; nothing was imported."""

    module: str
    name: str


class Storage(NamedTuple):
    """Numbers that lie elsewhere in the file."""

    key: str
    dtype: torch.dtype
    length: int


class StoredTensor(NamedTuple):
    """A tensor as a view of numbers that lie elsewhere; it was checked to lie inside them."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(eq=False, slots=True)
class Inert:
    """What stands for an object of a foreign class."""

    name: Name
    arguments: object
    state: object = None
    items: list[object] = field(default_factory=list)


class _Damaged(Exception):
    """What the machine says of a pickle that makes no sense; it becomes an IntegrityError."""


_Stack: TypeAlias = list[Any]
_MARK = object()


def unpickle(stream: IO[bytes] | bytes) -> object:
    """Return what a pickle describes: dicts, lists, tuples, numbers, text, `StoredTensor`, `Inert`, `Name`.

    Args:
        stream: the pickle; a file is left just behind it.

    Raises:
        IntegrityError: it is damaged, or names something that no checkpoint needs. Nothing of it was run.

    >>> import collections, pickle
    >>> unpickle(pickle.dumps(collections.OrderedDict(a=[1, (2.0, "b")]), protocol=2))
    {'a': [1, (2.0, 'b')]}
    """
    import pickletools  # knows the opcodes; decodes their arguments and does nothing with them

    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > _MAX_OPCODES:
                raise IntegrityError(f"expected a pickle of at most {_MAX_OPCODES} steps, got more")
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except (_Damaged, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise IntegrityError(f"expected a pickle, but it is damaged: {escape(str(error))}") from None


class _Machine:
    """The stack, the memo, and one step at a time."""

    def __init__(self) -> None:
        self.stack: _Stack = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _PUSHES:
            self.stack.append(argument)
        elif opcode in _MAKES:
            self.stack.append(_MAKES[opcode]())
        elif opcode in _STEPS:
            _STEPS[opcode](self, argument)
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            raise IntegrityError(f"expected a checkpoint's pickle, got the opcode {opcode}: nothing of it was run")

    def marked(self) -> _Stack:
        """Take what lies above the last mark, and the mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise _Damaged("a mark is missing")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def popped(self, count: int) -> _Stack:
        if len(self.stack) < count:
            raise _Damaged("the stack is too short")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items


def _collect(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, Inert):
        target.items.extend(items)
    else:
        raise _Damaged(f"items for {type(target).__name__}")


def _set_items(target: Any, flat: list[Any]) -> None:
    if isinstance(target, Inert):
        target.items.extend(flat)
        return
    if not isinstance(target, dict) or len(flat) % 2:
        raise _Damaged(f"entries for {type(target).__name__}")
    target.update(zip(flat[::2], flat[1::2], strict=True))


def _build(machine: _Machine, _: Any) -> None:
    target, state = machine.popped(2)
    if isinstance(target, Inert):
        target.state = state
    elif not isinstance(target, dict):  # of a dict's own attributes nothing is needed: state dicts keep versions there
        raise _Damaged(f"a state for {type(target).__name__}")
    machine.stack.append(target)


def _name(module: Any, name: Any) -> Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise _Damaged("a name is no text")
    found = Name(module, name)
    known = (
        found in CALLS
        or found in STAND_IN_NAMES
        or found.module.startswith(STAND_INS)
        or (found.module in ("torch", "torch.storage") and found.name in STORAGES)
    )
    if not known:
        shown = escape(f"{found.module}.{found.name}")
        raise IntegrityError(
            f"expected weights, but the file names {shown}, which no checkpoint needs: "
            "refused, nothing of it was run. If you trust its author, ask for a plain state dict or safetensors"
        )
    return found


def _call(machine: _Machine, _: Any) -> None:
    callee, arguments = machine.popped(2)
    if not isinstance(callee, Name) or not isinstance(arguments, tuple):
        raise _Damaged(f"a call of {type(callee).__name__}")
    call = CALLS.get(callee)
    machine.stack.append(call(*arguments) if call else Inert(callee, arguments))


def _class_of_module(key: tuple[Any, ...]) -> Name | None:
    """Return what torch's older format says of a module's class, beside whose name it has its source."""
    return key[1] if len(key) == 4 and key[0] == "module" and isinstance(key[1], Name) else None


def _persistent(machine: _Machine, _: Any) -> None:
    key = machine.stack.pop()
    if not isinstance(key, tuple):
        raise _Damaged("what lies elsewhere is described otherwise")
    if (name := _class_of_module(key)) is not None:
        machine.stack.append(name)
        return
    if len(key) not in (5, 6) or key[0] != "storage" or (len(key) == 6 and key[5]):
        raise _Damaged("a storage is described otherwise")
    kind, name, length = key[1], key[2], key[4]
    if not isinstance(kind, Name) or kind.name not in STORAGES or not isinstance(name, str) or type(length) is not int:
        raise _Damaged("a storage is described otherwise")
    machine.stack.append(Storage(name, STORAGES[kind.name], length))


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    """Check a view's bounds, and that no number is seen twice."""
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or any(type(x) is not int or x < 0 for x in numbers):
        raise _Damaged("a tensor is described otherwise")
    if len(shape) != len(stride) or len(shape) > _MAX_DIMENSIONS:
        raise _Damaged(f"a tensor of shape {shape} and strides {stride}")
    size = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if size else 0
    if last >= max(1, storage.length) or size > storage.length:
        raise IntegrityError(f"expected a tensor inside its storage of {storage.length} numbers, got {shape}")
    return StoredTensor(storage, offset, tuple(shape), tuple(stride))


def _parameter(tensor: Any, *_: Any) -> StoredTensor:
    if not isinstance(tensor, StoredTensor):
        raise _Damaged("a parameter is no tensor")
    return tensor


def _mapping(items: Iterable[Any] = ()) -> dict[Any, Any]:
    return {key: value for key, value in items}


def _listed(items: Any = ()) -> list[Any]:
    return list(items)


def _default_mapping(factory: Any = None) -> dict[Any, Any]:
    return {}


CALLS: dict[Name, Callable[..., object]] = {
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Name("torch._utils", "_rebuild_tensor"): _tensor,
    Name("torch._utils", "_rebuild_parameter"): _parameter,
    Name("torch", "Size"): tuple,
    Name("collections", "OrderedDict"): _mapping,
    Name("collections", "defaultdict"): _default_mapping,
    Name("__builtin__", "set"): _listed,
    Name("builtins", "set"): _listed,
}

_PUSHES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8".split()
)
_MAKES: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
    "MARK": lambda: _MARK,
}


def _put(machine: _Machine, argument: Any) -> None:
    machine.memo[len(machine.memo) if argument is None else argument] = machine.stack[-1]


def _append(machine: _Machine, _: Any) -> None:
    item = machine.stack.pop()
    _collect(machine.stack[-1], [item])


def _appends(machine: _Machine, _: Any) -> None:
    items = machine.marked()
    _collect(machine.stack[-1], items)


def _set_item(machine: _Machine, _: Any) -> None:
    pair = machine.popped(2)
    _set_items(machine.stack[-1], pair)


def _sets(machine: _Machine, _: Any) -> None:
    items = machine.marked()
    _set_items(machine.stack[-1], items)


def _dict(machine: _Machine, _: Any) -> None:
    items = machine.marked()
    machine.stack.append({})
    _set_items(machine.stack[-1], items)


def _stack_global(machine: _Machine, _: Any) -> None:
    machine.stack.append(_name(*machine.popped(2)))


_STEPS: dict[str, Callable[[_Machine, Any], object]] = {
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": lambda machine, _: machine.marked(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.stack.append(tuple(machine.popped(1))),
    "TUPLE2": lambda machine, _: machine.stack.append(tuple(machine.popped(2))),
    "TUPLE3": lambda machine, _: machine.stack.append(tuple(machine.popped(3))),
    "LIST": lambda machine, _: machine.stack.append(machine.marked()),
    "FROZENSET": lambda machine, _: machine.stack.append(tuple(machine.marked())),
    "DICT": _dict,
    "APPEND": _append,
    "APPENDS": _appends,
    "ADDITEMS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _sets,
    "PUT": lambda machine, argument: _put(machine, int(argument)),
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _put,
    "GET": lambda machine, argument: machine.stack.append(machine.memo[int(argument)]),
    "BINGET": lambda machine, argument: machine.stack.append(machine.memo[argument]),
    "LONG_BINGET": lambda machine, argument: machine.stack.append(machine.memo[argument]),
    "GLOBAL": lambda machine, argument: machine.stack.append(_name(*argument.split(" ", 1))),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _call,
    "NEWOBJ": _call,
    "BUILD": _build,
    "BINPERSID": _persistent,
}
