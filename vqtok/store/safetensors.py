"""The safetensors container: eight bytes of length, a JSON header, one packed little-endian buffer.

Written in one canonical form, so that equal content gives equal bytes: header keys sorted, no spaces but the padding to
a multiple of eight, tensors laid out by falling item size and then by name, so that each is aligned to its item size.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
import numpy.typing as npt

from vqtok.errors import ConfigError, IntegrityError
from vqtok.store.canonical import canonical_json, strict_json

Array = npt.NDArray[np.generic]

# numpy has no bfloat16: its bits travel as uint16 under the label BF16.
DTYPES: Mapping[str, np.dtype[np.generic]] = {
    label: np.dtype(code)
    for label, code in (
        ("BOOL", "?"), ("U8", "u1"), ("I8", "i1"), ("U16", "<u2"), ("I16", "<i2"), ("U32", "<u4"), ("I32", "<i4"),
        ("U64", "<u8"), ("I64", "<i8"), ("F16", "<f2"), ("BF16", "<u2"), ("F32", "<f4"), ("F64", "<f8"),
    )
}  # fmt: skip
_LABELS = {dtype: label for label, dtype in DTYPES.items() if label != "BF16"}
_MAX_DIMENSIONS = 32
_METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Where a tensor lies in the buffer.

    Attributes:
        dtype: a key of `DTYPES`.
        shape: the dimensions.
        start: first byte in the buffer.
        stop: one past the last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a container says of itself: text metadata and tensors by name."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorSpec]


def label_of(array: Array) -> str:
    """Return the container's name of a numpy dtype: "F32", "U16", ...; ConfigError when it has none."""
    label = _LABELS.get(array.dtype.newbyteorder("<"))
    if label is None:
        raise ConfigError(f"expected an array of one of {', '.join(_LABELS.values())}, got {array.dtype}")
    return label


def array_bytes(array: Array) -> memoryview:
    """Return the elements in C order, little-endian; a view where the array is so already."""
    packed = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    return packed.reshape(-1).view(np.uint8).data


def serialize(
    tensors: Mapping[str, Array], metadata: Mapping[str, str], checksum: str, labels: Mapping[str, str] | None = None
) -> list[memoryview]:
    """Return a container as pieces to write one after the other; tensors that are packed already are not copied.

    Args:
        tensors: arrays of any shape by name.
        metadata: text by name.
        checksum: the metadata key that gets the sha256 of `content_sha256`.
        labels: dtype by tensor name where it is not the array's own: "BF16" for uint16 bits.

    Raises:
        ConfigError: a dtype or text that the container cannot carry.
    """
    if _METADATA in tensors:
        raise ConfigError(f"expected tensor names other than {_METADATA}, which the container keeps for itself")
    labels = labels or {}
    described = {name: (labels.get(name) or label_of(array), array.shape) for name, array in tensors.items()}
    specs = _lay_out(described)
    buffers = [array_bytes(tensors[name]) for name in specs]
    digest = content_sha256(Header(metadata, specs), checksum, buffers)
    return [memoryview(_header_bytes(Header({**metadata, checksum: digest}, specs))), *buffers]


def content_sha256(header: Header, checksum: str, buffers: Iterable[memoryview]) -> str:
    """Return the sha256 of the header's canonical JSON (unpadded, without ``checksum``) and then the tensor buffer."""
    metadata = {key: text for key, text in header.metadata.items() if key != checksum}
    digest = hashlib.sha256(_header_json(Header(metadata, header.tensors)))
    for buffer in buffers:
        digest.update(buffer)
    return digest.hexdigest()


def header_length(prefix: bytes | memoryview, file_size: int, limit: int) -> int:
    """Return the length of the JSON header from a file's first eight bytes, checked before anything is allocated."""
    if len(prefix) < 8 or file_size < 8:
        raise IntegrityError(f"expected at least 8 bytes, got {file_size}: the file is empty or cut off")
    (length,) = cast(tuple[int], struct.unpack("<Q", prefix[:8]))
    if length > limit:
        raise IntegrityError(f"expected a header of at most {limit} bytes, got one of {length}: another kind of file?")
    if length > file_size - 8:
        raise IntegrityError(f"expected a header of {length} bytes, but the file has only {file_size - 8} more")
    return length


def parse_header(raw: bytes, buffer_size: int) -> Header:
    """Read a JSON header and prove that its tensors cover the buffer exactly once.

    Args:
        raw: the header, padding included.
        buffer_size: bytes that follow it.

    Raises:
        IntegrityError: anything else.
    """
    try:
        value = strict_json(raw)
    except ValueError as error:
        raise IntegrityError(f"expected a header of strict UTF-8 JSON, but it is damaged: {error}") from error
    if not isinstance(value, dict) or not raw.startswith(b"{"):
        raise IntegrityError(f"expected a header that is a JSON object, got {raw[:20]!r}")
    entries = cast(dict[str, object], value)
    metadata = entries.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise IntegrityError(f"expected {_METADATA} to map text to text, got {str(metadata)[:80]}")
    header = Header(cast(dict[str, str], metadata), {name: _spec(name, entry) for name, entry in entries.items()})
    _check_cover(header, buffer_size)
    return header


def check_canonical(header: Header, raw: bytes) -> None:
    """Raise IntegrityError unless the header's bytes are those that `serialize` would have written."""
    described = {name: (spec.dtype, spec.shape) for name, spec in header.tensors.items()}
    if _header_bytes(Header(header.metadata, _lay_out(described)))[8:] != raw:
        raise IntegrityError("expected the header in canonical form, but its bytes differ from it")


def view(header: Header, name: str, buffer: memoryview) -> Array:
    """Return one tensor as a view of the buffer (bits as uint16 when it is BF16)."""
    spec = header.tensors[name]
    data = np.frombuffer(buffer, np.uint8)[spec.start : spec.stop]
    return data.view(DTYPES[spec.dtype]).reshape(spec.shape)


def _lay_out(described: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, TensorSpec]:
    """Give every tensor its place: larger items first, then by name."""
    specs: dict[str, TensorSpec] = {}
    start = 0
    for name in sorted(described, key=lambda name: (-DTYPES[described[name][0]].itemsize, name)):
        label, shape = described[name]
        stop = start + math.prod(shape) * DTYPES[label].itemsize
        specs[name] = TensorSpec(label, tuple(shape), start, stop)
        start = stop
    return specs


def _header_json(header: Header) -> bytes:
    """Return the canonical JSON of a header, unpadded."""
    entries: dict[str, object] = {
        name: {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": (spec.start, spec.stop)}
        for name, spec in header.tensors.items()
    }
    return canonical_json({**entries, _METADATA: header.metadata}).encode("utf-8")


def _header_bytes(header: Header) -> bytes:
    """Return length, canonical JSON and padding: the buffer starts at a multiple of eight."""
    text = _header_json(header)
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _spec(name: str, entry: object) -> TensorSpec:
    """Read one tensor's entry; its sizes must agree without overflow."""
    if not isinstance(entry, dict) or set(cast(dict[str, object], entry)) != {"dtype", "shape", "data_offsets"}:
        raise IntegrityError(f"expected dtype, shape and data_offsets of tensor {name!r}, got {str(entry)[:80]}")
    label, shape, offsets = (cast(dict[str, object], entry)[key] for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(label, str) or label not in DTYPES:
        raise IntegrityError(f"expected tensor {name!r} of one of {', '.join(DTYPES)}, got {str(label)[:20]!r}")
    sizes, ends = _integers(name, shape, _MAX_DIMENSIONS), _integers(name, offsets, 2)
    # numpy multiplies the dimensions that are not zero even when another one is.
    if math.prod(size or 1 for size in sizes) * DTYPES[label].itemsize >= 2**63:
        raise IntegrityError(f"expected tensor {name!r} to be addressable, but its shape {sizes} overflows")
    if len(ends) != 2 or ends[1] - ends[0] != math.prod(sizes) * DTYPES[label].itemsize:
        raise IntegrityError(f"expected offsets of tensor {name!r} to span {label} {sizes}, got {ends}")
    return TensorSpec(label, sizes, ends[0], ends[1])


def _integers(name: str, value: object, limit: int) -> tuple[int, ...]:
    """Return a short list of non-negative integers; true is not 1 here."""
    items = cast(list[object], value) if isinstance(value, list) else []
    numbers = tuple(item for item in items if type(item) is int and 0 <= item < 2**63)
    if not isinstance(value, list) or len(numbers) != len(items) or len(items) > limit:
        raise IntegrityError(f"expected at most {limit} sizes of tensor {name!r}, none negative, got {str(value)[:80]}")
    return numbers


def _check_cover(header: Header, buffer_size: int) -> None:
    """Refuse holes, overlaps, and bytes that belong to no tensor."""
    spans = sorted((spec.start, spec.stop) for spec in header.tensors.values())
    for (_, before), (after, _) in pairwise([(0, 0), *spans]):
        if before != after:
            kind = "an overlap" if after < before else "a hole"
            raise IntegrityError(f"expected tensors end to end, but there is {kind} at byte {min(before, after)}")
    came = spans[-1][1] if spans else 0
    if came != buffer_size:
        raise IntegrityError(f"expected {came} bytes of tensors, got {buffer_size}: the file was cut off or added to")
