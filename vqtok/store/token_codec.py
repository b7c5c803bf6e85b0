"""Token files as bytes: `Tokens` to tensors and header, and back with every promise checked."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt

from vqtok.errors import ConfigError, IntegrityError, MismatchError
from vqtok.store import safetensors
from vqtok.store.token_header import TokenHeader, header_json, parse_header_json
from vqtok.store.token_keys import decode_keys, encode_keys
from vqtok.types import Tokens

VERSION = "1"
CHECKSUM = "vqt.sha256"
MAX_HEADER_BYTES = 1 << 20
_MAX_CODES = 1 << 32
_MAX_IMAGES = 1 << 31
_UINT16_CODES = 1 << 16
_METADATA = {"vqt.version", "vqt.header", CHECKSUM}
_REQUIRED = {"tokens", "offsets", "grid", "size", "crc32", "keys", "key_offsets"}
_OPTIONAL = {"source_sha256", "keep"}

_Array = npt.NDArray[np.generic]
_Bytes = npt.NDArray[np.uint8]
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TokenFile:
    """All that a token file holds.

    Attributes:
        tokens: the tokens of n images.
        header: what the file says of itself.
        source_sha256: uint8 [n, 32], hash of each image's file, or [0, 32] when the file has none.
    """

    tokens: Tokens
    header: TokenHeader
    source_sha256: _Bytes


def pack(tokens: Tokens, source_sha256: _Bytes | None) -> list[memoryview]:
    """Return the pieces of a token file; ConfigError when the tokens break a promise of the format."""
    if not 1 <= tokens.vocab_size <= _MAX_CODES:
        raise ConfigError(f"expected a vocab_size of 1..{_MAX_CODES}, got {tokens.vocab_size}")
    if not _has_extent(tokens):
        raise ConfigError("expected Tokens.grids and Tokens.sizes of at least 1, got 0")
    arrays = _required_arrays(tokens)
    layout = _layout(tokens.offsets, arrays["grid"], dynamic=tokens.keep.size > 0)
    if not layout:
        raise ConfigError("expected at most Q * h * w tokens an image, got more: check Tokens.grids and Tokens.offsets")
    if source_sha256 is not None:
        if source_sha256.dtype != np.uint8 or source_sha256.shape != (len(tokens), 32):
            raise ConfigError(
                f"expected source_sha256 as uint8 [{len(tokens)}, 32], got {source_sha256.dtype} {source_sha256.shape}"
            )
        arrays["source_sha256"] = source_sha256
    if tokens.keep.size:
        arrays["keep"] = np.packbits(tokens.keep)
    counts = {"images": len(tokens), "tokens": int(tokens.ids.size)}
    text = header_json(tokens.record, tokens.fingerprint, counts, int(tokens.vocab_size), layout)
    pieces = safetensors.serialize(arrays, {"vqt.version": VERSION, "vqt.header": text}, CHECKSUM)
    if (length := len(pieces[0]) - 8) > MAX_HEADER_BYTES:
        raise ConfigError(f"expected a header of at most {MAX_HEADER_BYTES} bytes, got {length}: shorten the record")
    return pieces


def checksum_of(pieces: Sequence[memoryview]) -> str:
    """Return the checksum that `pack` put into the header."""
    return safetensors.parse_header(bytes(pieces[0][8:]), sum(map(len, pieces[1:]))).metadata[CHECKSUM]


def unpack(data: memoryview) -> TokenFile:
    """Read a token file from memory; nothing is returned before everything is checked.

    Raises:
        IntegrityError: damaged, truncated or malformed.
        MismatchError: intact, but of another format version.
    """
    length = safetensors.header_length(data[:8], len(data), MAX_HEADER_BYTES)
    buffer = data[8 + length :]
    raw = bytes(data[8 : 8 + length])
    container = safetensors.parse_header(raw, len(buffer))
    _check_metadata(container, raw, buffer)
    header = parse_header_json(container.metadata["vqt.header"], container.metadata[CHECKSUM])
    _check_profile(container, header)
    arrays = {name: safetensors.view(container, name, buffer) for name in container.tensors}
    tokens = _checked_tokens(arrays, header)
    source = arrays.get("source_sha256", np.empty((0, 32), np.uint8))
    return TokenFile(tokens, header, cast(_Bytes, source.copy()))


def _required_arrays(tokens: Tokens) -> dict[str, _Array]:
    """Return the tensors that every file has, in their stored dtypes."""
    keys = encode_keys(tokens.keys)
    ids = _narrow("ids", tokens.ids, "<u2" if tokens.vocab_size <= _UINT16_CODES else "<u4", tokens.vocab_size - 1)
    grid = _narrow("grids", tokens.grids, "<u2", 0xFFFF)
    return {
        "tokens": ids,
        "offsets": _narrow("offsets", tokens.offsets, "<u8", ids.size),
        "grid": grid,
        "size": _narrow("sizes", tokens.sizes, "<u4", 0xFFFFFFFF),
        "crc32": _crc32(keys, grid, ids, tokens.offsets),
        "keys": np.frombuffer(b"".join(keys), np.uint8),
        "key_offsets": np.cumsum([0, *map(len, keys)], dtype=np.uint64),
    }


def _checked_tokens(arrays: Mapping[str, _Array], header: TokenHeader) -> Tokens:
    """Return the tokens after checking what their values promise."""
    offsets = _offsets("offsets", arrays["offsets"], arrays["tokens"].size)
    keys = decode_keys(arrays["keys"], _offsets("key_offsets", arrays["key_offsets"], arrays["keys"].size))
    tokens = Tokens(
        ids=arrays["tokens"].astype(np.int64),
        offsets=offsets,
        grids=arrays["grid"].astype(np.int64),
        sizes=arrays["size"].astype(np.int64),
        vocab_size=header.vocab_size,
        keys=tuple(key.decode("utf-8") for key in keys),
        fingerprint=header.fingerprints["model"],
        record=header.record(),
    )
    if tokens.ids.size and (largest := int(tokens.ids.max())) >= header.vocab_size:
        raise IntegrityError(f"expected tokens below {header.vocab_size}, got {largest}")
    if not _has_extent(tokens):
        raise IntegrityError("expected grids and sizes of at least 1, got 0")
    if _layout(offsets, tokens.grids, dynamic="keep" in arrays) != header.layout:
        raise IntegrityError(f"expected tokens that fill their grids as layout {header.layout!r} says, but they do not")
    wrong = np.flatnonzero(_crc32(keys, arrays["grid"], arrays["tokens"], offsets) != arrays["crc32"])
    if wrong.size:
        raise IntegrityError(
            f"expected the stored crc32 of image {tokens.keys[wrong[0]]!r}, but its tokens have another"
        )
    return _with_keep(tokens, cast(_Bytes, arrays["keep"])) if "keep" in arrays else tokens


def _with_keep(tokens: Tokens, packed: _Bytes) -> Tokens:
    """Return the tokens with the positions that were kept: a bit each, the first of a byte is its highest."""
    positions = int(tokens.grids[:, 1:].prod(axis=1).sum())
    keep = np.unpackbits(packed)
    if packed.size != -(-positions // 8) or keep[positions:].any() or not positions:
        raise IntegrityError(f"expected 'keep' with a bit for each of {positions} positions, got {packed.size} bytes")
    try:
        return replace(tokens, keep=keep[:positions].astype(np.bool_))
    except ConfigError as error:
        raise IntegrityError(str(error)) from None


def _check_metadata(container: safetensors.Header, raw: bytes, buffer: memoryview) -> None:
    """Check kind, form, checksum and version, in this order: all versions share the rules of form and checksum.

    So a damaged version number is damage, and an intact file of a later version is told apart from it.
    """
    if "vqt.version" not in container.metadata or CHECKSUM not in container.metadata:
        raise IntegrityError("expected a token file (.vqt), but this safetensors file lacks vqt.version and vqt.sha256")
    safetensors.check_canonical(container, raw)
    came, expected = safetensors.content_sha256(container, CHECKSUM, [buffer]), container.metadata[CHECKSUM]
    if came != expected:
        raise IntegrityError(f"expected content of sha256 {expected[:64]!r}, got {came!r}")
    if container.metadata["vqt.version"] != VERSION:
        raise MismatchError(
            f"expected token file version {VERSION}, got {container.metadata['vqt.version'][:20]!r}: "
            "read it with the vqtok that wrote it, or a newer one"
        )
    if set(container.metadata) != _METADATA:
        raise IntegrityError(f"expected metadata {sorted(_METADATA)}, got {sorted(container.metadata)}")


def _check_profile(container: safetensors.Header, header: TokenHeader) -> None:
    """Check names, dtypes and shapes of the tensors against the profile and the header's counts."""
    names = set(container.tensors)
    if not _REQUIRED <= names <= _REQUIRED | _OPTIONAL:
        raise IntegrityError(f"expected tensors {sorted(_REQUIRED)}, got {sorted(names)}")
    if not (1 <= header.vocab_size <= _MAX_CODES and 0 <= header.images <= _MAX_IMAGES):
        raise IntegrityError(
            f"expected 1..{_MAX_CODES} codes and at most {_MAX_IMAGES} images, got {header.vocab_size}, {header.images}"
        )
    n, some = header.images, container.tensors
    expected = {
        "tokens": ("U16" if header.vocab_size <= _UINT16_CODES else "U32", (header.tokens,)),
        "offsets": ("U64", (n + 1,)),
        "grid": ("U16", (n, 3)),
        "size": ("U32", (n, 2)),
        "crc32": ("U32", (n,)),
        "key_offsets": ("U64", (n + 1,)),
        "source_sha256": ("U8", (n, 32)),
    } | {name: ("U8", some[name].shape if len(some[name].shape) == 1 else (-1,)) for name in names & {"keys", "keep"}}
    for name, spec in some.items():
        if (spec.dtype, spec.shape) != expected[name]:
            raise IntegrityError(f"expected tensor {name!r} as {expected[name]}, got {spec.dtype} {spec.shape}")


def _has_extent(tokens: Tokens) -> bool:
    """Tell whether every image has pixels and positions."""
    return bool((tokens.grids > 0).all() and (tokens.sizes > 0).all())


def _layout(offsets: _Ints, grids: _Array, *, dynamic: bool) -> str:
    """Return "grid" when all spans fill their grids, "runs" when some fall short, "" when one is too long."""
    spans, cells = np.diff(offsets.astype(np.int64)), grids.astype(np.int64).prod(axis=1)
    if (spans > cells).any():
        return ""
    return "runs" if dynamic or (spans != cells).any() else "grid"


def _crc32(keys: Sequence[bytes], grid: _Array, ids: _Array, offsets: _Ints) -> npt.NDArray[np.uint32]:
    """Return each image's checksum over its key, its grid row and its tokens as they are stored."""
    rows, data = safetensors.array_bytes(grid), safetensors.array_bytes(ids)
    spans = (offsets.astype(np.int64) * ids.itemsize).tolist()
    sums = [
        zlib.crc32(data[spans[i] : spans[i + 1]], zlib.crc32(rows[6 * i : 6 * i + 6], zlib.crc32(key)))
        for i, key in enumerate(keys)
    ]
    return np.array(sums, np.uint32)


def _narrow(name: str, array: _Array, dtype: str, largest: int) -> _Array:
    """Return integers in their stored dtype, or refuse those that do not fit."""
    if array.size and (int(array.min()) < 0 or int(array.max()) > largest):
        raise ConfigError(f"expected Tokens.{name} in 0..{largest}, got {int(array.min())}..{int(array.max())}")
    return array.astype(dtype)


def _offsets(name: str, array: _Array, end: int) -> _Ints:
    """Return boundaries that start at 0, never fall, and end where the data ends."""
    bounds = cast(npt.NDArray[np.uint64], array)
    if bounds[0] != 0 or bounds[-1] != end or (bounds[1:] < bounds[:-1]).any():
        raise IntegrityError(f"expected {name} to rise from 0 to {end}, got {bounds[:3].tolist()}..{int(bounds[-1])}")
    return bounds.astype(np.int64)
