"""The files that checkpoints come in, read without running any of them: safetensors, torch's zip, torch's older format.

A `Checkpoint` holds shapes first; numbers are read one tensor at a time, each once, when a model asks for them.
"""

from __future__ import annotations

import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from vqtok.adapters.unpickle import TORCHSCRIPT, Inert, Storage, StoredTensor, unpickle
from vqtok.errors import InputError, IntegrityError, MismatchError, escape
from vqtok.store import safetensors
from vqtok.store.reading import open_regular, read_exactly, size_of

# Where publishers keep the state dict: averaged weights before raw ones, as their own loaders look.
TOPS = ("ema", "model", "state_dict", "module")
_MAX_PICKLE = 1 << 28
_MAX_NODES = 100_000
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "BOOL": torch.bool,
    "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in a file: its shape and dtype, and how its numbers are read."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


Entries: TypeAlias = dict[str, Entry]


def read_entries(path: Path) -> Entries:
    """Return what a file holds, by name, without its numbers.

    Raises:
        InputError: there is no such file, or it is of no format that is read here.
        IntegrityError: it is damaged, cut off, or names something that no checkpoint needs.
    """
    try:
        with open_regular(path, "a checkpoint") as file:
            head = read_exactly(file, min(16, size_of(file))).tobytes()
        if head[:4] == b"PK\x03\x04":
            return _flattened(*_open_zip(path))
        if head[:1] == b"\x80":
            return _flattened(*_open_legacy(path))
        if head[8:9] == b"{":
            return _open_safetensors(path)
    except (IntegrityError, MismatchError) as error:
        raise type(error)(f"{str(path)!r}: {error}") from None
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError) as error:
        raise IntegrityError(f"{str(path)!r}: expected a whole checkpoint, but it is damaged: {error}") from None
    raise InputError(
        f"{str(path)!r}: expected safetensors or what torch.save writes, got a file that begins with {head[:8]!r}"
    )


def read_tensor(name: str, entry: Entry) -> Tensor:
    """Return a tensor as float32; its numbers must be floating-point and finite.

    Raises:
        IntegrityError: they are not.
    """
    if not entry.dtype.is_floating_point:
        raise IntegrityError(f"expected floating-point weights, but tensor {name!r} is {entry.dtype}")
    tensor = entry.read()
    narrowed = tensor.to(torch.float32)
    if not _finite(narrowed):
        if _finite(tensor):
            raise IntegrityError(f"expected weights that float32 can hold, but tensor {name!r} is beyond")
        raise IntegrityError(f"expected finite weights, but tensor {name!r} holds NaN or infinity: it is damaged")
    return narrowed


def _finite(tensor: Tensor) -> bool:
    """Tell whether all numbers are finite, in one pass: a tensor of answers takes fifteen times as long."""
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


# safetensors ---------------------------------------------------------------------------------------------------------


def _open_safetensors(path: Path) -> Entries:
    with open_regular(path, "a checkpoint") as file:
        size = size_of(file)
        length = safetensors.header_length(read_exactly(file, 8), size, 100_000_000)
        header = safetensors.parse_header(read_exactly(file, length).tobytes(), size - 8 - length)
    start = 8 + length

    def entry(spec: safetensors.TensorSpec) -> Entry:
        dtype, place = _TORCH[spec.dtype], (start + spec.start, spec.stop - spec.start)
        return Entry(spec.shape, dtype, lambda: _as_tensor(_bytes(path, *place), dtype).reshape(spec.shape))

    return {name: entry(spec) for name, spec in header.tensors.items()}


# torch.save ----------------------------------------------------------------------------------------------------------

_Reader: TypeAlias = Callable[[Storage], np.ndarray[Any, Any]]


def _open_zip(path: Path) -> tuple[object, _Reader]:
    """Open what torch writes since 1.6: a zip whose members are not compressed, one a storage."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise IntegrityError("expected members of different names, got the same name twice")
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise InputError(f"{str(path)!r}: expected what torch.save writes, got a zip of other content")
        root = pickles[0].removesuffix("data.pkl")
        if members[pickles[0]].file_size > _MAX_PICKLE:
            raise IntegrityError(f"expected a pickle of at most {_MAX_PICKLE} bytes")
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in members else b"little"
        if order != b"little":
            raise IntegrityError(f"expected little-endian numbers, got {order[:20]!r}: save it anew on this machine")
        tree = unpickle(archive.read(pickles[0]))

    def read(storage: Storage) -> np.ndarray[Any, Any]:
        return _read_member(path, members.get(f"{root}data/{storage.key}"), storage)

    return tree, read


def _read_member(path: Path, info: zipfile.ZipInfo | None, storage: Storage) -> np.ndarray[Any, Any]:
    """Read a storage straight from the archive, and compare its checksum."""
    size = storage.length * storage.dtype.itemsize
    if info is None or info.compress_type != zipfile.ZIP_STORED or not info.file_size == info.compress_size == size:
        raise IntegrityError(f"{str(path)!r}: expected {size} bytes for storage {escape(storage.key)!r}, got others")
    local = _bytes(path, info.header_offset, 30).tobytes()
    if local[:4] != b"PK\x03\x04":
        raise IntegrityError(f"{str(path)!r}: expected storage {escape(storage.key)!r}, but the archive is damaged")
    name_length, extra_length = struct.unpack("<HH", local[26:30])
    data = _bytes(path, info.header_offset + 30 + name_length + extra_length, size)
    if zlib.crc32(data.data) != info.CRC:
        raise IntegrityError(
            f"{str(path)!r}: storage {escape(storage.key)!r} has another checksum: the file is damaged"
        )
    return data


def _open_legacy(path: Path) -> tuple[object, _Reader]:
    """Open what torch wrote before 1.6: pickles one after the other, then storages, each behind its length."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        if unpickle(stream) != _LEGACY_MAGIC:  # pyright: ignore[reportArgumentType]
            raise IntegrityError(
                "expected what torch.save writes, got another kind of pickle: nothing of it was run. Save a state dict "
                "with torch.save, or safetensors"
            )
        unpickle(stream)  # pyright: ignore[reportArgumentType]  # the protocol's version
        unpickle(stream)  # pyright: ignore[reportArgumentType]  # sizes of C types
        tree, keys = unpickle(stream), unpickle(stream)  # pyright: ignore[reportArgumentType]
        start = stream.tell()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise IntegrityError("expected a list of storages, but it is damaged")
    dtypes = {storage.key: storage for storage in _storages(tree)}
    places: dict[str, int] = {}
    for key in keys:
        (length,) = struct.unpack("<q", _bytes(path, start, 8).tobytes())
        if key not in dtypes or length != dtypes[key].length:
            raise IntegrityError(f"expected storage {escape(key)!r} as the pickle describes it, got another")
        places[key] = start + 8
        start += 8 + length * dtypes[key].dtype.itemsize

    def read(storage: Storage) -> np.ndarray[Any, Any]:
        if storage.key not in places:
            raise IntegrityError(f"{str(path)!r}: expected storage {escape(storage.key)!r}, got none")
        return _bytes(path, places[storage.key], storage.length * storage.dtype.itemsize)

    return tree, read


def _storages(tree: object) -> list[Storage]:
    """Return every storage of a tree, each object visited once."""
    found, seen, waiting = [], set(), [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, StoredTensor):
            found.append(node.storage)
        elif isinstance(node, Storage):
            found.append(node)
        elif isinstance(node, dict | list | tuple | Inert) and id(node) not in seen:
            seen.add(id(node))
            waiting += _children(node)
    return found


def _children(node: dict[Any, Any] | list[Any] | tuple[Any, ...] | Inert) -> list[Any]:
    if isinstance(node, Inert):
        return [node.state, node.arguments, *node.items]
    return [*node.values(), *node] if isinstance(node, dict) else list(node)


# Trees to names ------------------------------------------------------------------------------------------------------


def _flattened(tree: object, read: _Reader) -> Entries:
    """Return a checkpoint's tensors by dotted name: of its state dict, wherever it lies, or its module."""
    found: Entries = {}
    for name, tensor in _tensors(_state(tree)):
        if name in found:
            raise IntegrityError(f"expected one tensor of each name, got two of {escape(name)!r}")
        found[name] = Entry(tensor.shape, tensor.storage.dtype, _view(tensor, read))
    if not found:
        raise InputError("expected a checkpoint with weights, got one without any tensor by name")
    return found


def _state(tree: object) -> object:
    """Find the state dict: the tree itself when it has tensors, or what lies under one of `TOPS`, twice at most."""
    for _ in range(2):
        if not isinstance(tree, dict) or any(isinstance(value, StoredTensor) for value in tree.values()):
            break
        tree = next((tree[top] for top in TOPS if isinstance(tree.get(top), dict | Inert) and tree[top]), tree)
    return tree


def _tensors(state: object) -> Iterator[tuple[str, StoredTensor]]:
    """Yield tensors by name: entries of a state dict, or parameters and buffers of a pickled module."""
    waiting = [("", state, 0)]
    for _ in range(_MAX_NODES):
        if not waiting:
            return
        name, node, depth = waiting.pop()
        if isinstance(node, StoredTensor):
            yield name, node
        elif isinstance(node, Inert) or (isinstance(node, dict) and depth == 0):
            pairs = ((f"{name}.{key}" if name else str(key), value) for key, value in _parts(node).items())
            waiting += reversed([(key, value, depth + 1) for key, value in pairs])
    raise IntegrityError(f"expected at most {_MAX_NODES} tensors and modules, got more")


def _parts(node: dict[Any, Any] | Inert) -> dict[Any, Any]:
    """Return what a module or a state dict is made of, by name."""
    if isinstance(node, dict):
        return {key: value for key, value in node.items() if isinstance(key, str)}
    state = node.state if isinstance(node.state, dict) else {}
    if f"{node.name.module}.".startswith(TORCHSCRIPT):  # there a module's parts are attributes like others
        return state
    parts = [state.get(key) for key in ("_parameters", "_buffers", "_modules")]
    return {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}


def _view(tensor: StoredTensor, read: _Reader) -> Callable[[], Tensor]:
    def view() -> Tensor:
        whole = _as_tensor(read(tensor.storage), tensor.storage.dtype)
        part = torch.as_strided(whole, tensor.shape, tensor.stride, tensor.offset)
        # What is a part only would keep the whole alive.
        return part.contiguous() if part.numel() == len(whole) else part.clone(memory_format=torch.contiguous_format)

    return view


def _bytes(path: Path, start: int, size: int) -> np.ndarray[Any, Any]:
    """Return bytes of a file, writable, in memory of their own."""
    with open_regular(path, "a checkpoint") as file:
        if start + size > size_of(file):
            raise IntegrityError(f"{str(path)!r}: expected {size} bytes at {start}, but the file ends before: cut off?")
        os.lseek(file.fileno(), start, os.SEEK_SET)
        return np.frombuffer(read_exactly(file, size), np.uint8)


def _as_tensor(data: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(data).view(dtype) if len(data) else torch.empty(0, dtype=dtype)


# Several files -------------------------------------------------------------------------------------------------------


def join(parts: Mapping[str, Entries]) -> Entries:
    """Return the tensors of several files as one, each file's names behind its key."""
    return {f"{key}{name}": entry for key, entries in parts.items() for name, entry in entries.items()}
