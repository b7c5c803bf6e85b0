"""Formats of one long stream of ids: nanoGPT's ``.bin``, and Megatron's ``.bin`` with ``.idx``."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from vqtok.dataset.exports.rows import Row
from vqtok.errors import IntegrityError

MEGATRON = {"<u2": 8, "<i4": 4}  # Megatron-LM's codes of dtypes; it knows no uint32
_MAGIC = b"MMIDIDX\0\0"


def stream(rows: Iterable[Row], dtype: str) -> bytes:
    """Return the ids of rows, one after the other."""
    return np.concatenate([np.zeros(0, np.int64), *(row.ids for row in rows)]).astype(dtype).tobytes()


def lines(rows: Iterable[Row]) -> bytes:
    """Return a line of JSON an image: what the stream does not say."""
    found = [json.dumps({"key": row.key, "length": len(row.ids), **row.note}, sort_keys=True) for row in rows]
    return "".join(f"{line}\n" for line in found).encode()


def read_stream(path: Path, dtype: str) -> Iterator[Row]:
    """Yield the rows of a ``.bin`` by the lines beside it."""
    ids = np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
    at = 0
    with open(f"{path}.jsonl", encoding="utf-8") as file:
        for line in file:
            fields = json.loads(line)
            length = int(fields.pop("length"))
            if not 0 <= length <= len(ids) - at:
                raise IntegrityError(f"{str(path)!r}: expected {length} more ids, got {len(ids) - at}: it was cut off")
            yield Row(fields.pop("key"), np.array(ids[at : at + length], np.int64), fields)
            at += length
    if at != len(ids):
        raise IntegrityError(f"{str(path)!r}: expected {at} ids, got {len(ids)}")


def megatron_index(lengths: np.ndarray[tuple[int], np.dtype[np.int32]], dtype: str) -> bytes:
    r"""Return the ``.idx`` of Megatron-LM's IndexedDataset, version 1: every image is a document.

    >>> len(megatron_index(np.array([3, 2], np.int32), "<u2"))
    82
    """
    count = len(lengths)
    starts = np.concatenate([[0], np.cumsum(lengths.astype(np.int64))[:-1]]) if count else np.zeros(0, np.int64)
    head = _MAGIC + struct.pack("<QBQQ", 1, MEGATRON[dtype], count, count + 1)
    pointers = (starts * np.dtype(dtype).itemsize).astype("<i8")
    return head + lengths.astype("<i4").tobytes() + pointers.tobytes() + np.arange(count + 1, dtype="<i8").tobytes()
