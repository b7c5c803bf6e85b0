"""Formats with a row an image: npz, parquet (``datasets.load_dataset("parquet", ...)`` opens it), jsonl, WebDataset."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt

from vqtok.dataset.exports.rows import Row
from vqtok.dataset.tables import pyarrow
from vqtok.errors import IntegrityError

_PLAIN = ("label", "caption")
_MOST_BYTES = 1 << 32  # of an array that a file announces, before it is allocated


def write_npz(rows: Sequence[Row], dtype: str, meta: str) -> bytes:
    """Return an npz: ``tokens``, ``offsets``, ``grid``, ``size``, ``keys`` and ``notes`` (UTF-8), ``meta_json``."""
    buffer = io.BytesIO()
    keys, notes = _text([row.key for row in rows]), _text([row.note_json() for row in rows])
    np.savez(
        buffer,
        tokens=np.concatenate([np.zeros(0, np.int64), *(row.ids for row in rows)]).astype(dtype),
        offsets=np.cumsum([0, *(len(row.ids) for row in rows)], dtype=np.int64),
        grid=np.array([row.note["grid"] for row in rows], np.int64).reshape(-1, 3),
        size=np.array([row.note["size"] for row in rows], np.int64).reshape(-1, 2),
        keys=keys[0],
        key_offsets=keys[1],
        notes=notes[0],
        note_offsets=notes[1],
        meta_json=np.frombuffer(meta.encode(), np.uint8),
    )
    return buffer.getvalue()


def read_npz(path: Path) -> Iterator[Row]:
    """Yield the rows of an npz; sizes are checked before anything is unpacked."""
    with zipfile.ZipFile(path) as archive:
        if (size := sum(entry.file_size for entry in archive.infolist())) > _MOST_BYTES:
            raise IntegrityError(f"{str(path)!r}: expected at most {_MOST_BYTES} bytes unpacked, got {size}")
    with np.load(path) as arrays:
        tokens, offsets = arrays["tokens"].astype(np.int64), arrays["offsets"].tolist()
        keys = _untext(arrays["keys"], arrays["key_offsets"])
        notes = _untext(arrays["notes"], arrays["note_offsets"])
    for i, key in enumerate(keys):
        yield Row(key, tokens[offsets[i] : offsets[i + 1]], json.loads(notes[i]))


def _text(items: Sequence[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    data = [item.encode() for item in items]
    return np.frombuffer(b"".join(data), np.uint8), np.cumsum([0, *map(len, data)], dtype=np.int64)


def _untext(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> list[str]:
    raw, ends = data.tobytes(), offsets.tolist()
    return [raw[a:b].decode() for a, b in itertools.pairwise(ends)]


def write_parquet(rows: Sequence[Row], dtype: str, meta: str) -> bytes:
    """Return a parquet file, zstd and with page checksums: default parquet does not see most flipped bits."""
    arrow, parquet = pyarrow("pyarrow"), pyarrow("pyarrow.parquet")
    number = arrow.uint16() if dtype == "<u2" else arrow.uint32()
    grids = np.array([row.note["grid"] for row in rows], np.int32).reshape(-1, 3)
    sizes = np.array([row.note["size"] for row in rows], np.int32).reshape(-1, 2)
    values = np.concatenate([np.zeros(0, np.int64), *(row.ids for row in rows)]).astype(dtype)
    offsets = arrow.array(np.cumsum([0, *(len(row.ids) for row in rows)], dtype=np.int32))
    columns: dict[str, Any] = {
        "key": arrow.array([row.key for row in rows], arrow.string()),
        "tokens": arrow.ListArray.from_arrays(offsets, arrow.array(values, number)),
        "codebooks": grids[:, 0],
        "h": grids[:, 1],
        "w": grids[:, 2],
        "height": sizes[:, 0],
        "width": sizes[:, 1],
    }
    for name in _PLAIN:
        found = [row.note.get(name) for row in rows]
        if any(value is not None for value in found):
            whole = all(value is None or isinstance(value, int) for value in found)
            columns[name] = found if whole else [None if value is None else str(value) for value in found]
    columns["note"] = arrow.array([row.note_json() for row in rows], arrow.string())
    table = arrow.table(columns).replace_schema_metadata({"vqtok": meta})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def read_parquet(path: Path) -> Iterator[Row]:
    """Yield the rows of a parquet file, its page checksums compared."""
    file = pyarrow("pyarrow.parquet").ParquetFile(path, page_checksum_verification=True)
    for batch in file.iter_batches(columns=["key", "tokens", "note"]):
        for row in batch.to_pylist():
            yield Row(row["key"], np.array(row["tokens"], np.int64), json.loads(row["note"]))


def write_jsonl(rows: Sequence[Row], dtype: str, meta: str) -> bytes:
    """Return a line of JSON an image: ``key``, ``tokens``, and the note's fields."""
    lines = [json.dumps({"key": row.key, "tokens": row.ids.tolist(), **row.note}, sort_keys=True) for row in rows]
    return "".join(f"{line}\n" for line in lines).encode()


def read_jsonl(path: Path) -> Iterator[Row]:
    """Yield the rows of a jsonl export."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            fields = json.loads(line)
            yield Row(fields.pop("key"), np.array(fields.pop("tokens"), np.int64), fields)


def write_webdataset(rows: Sequence[Row], dtype: str, meta: str) -> bytes:
    """Return a tar with ``KEY.npy`` and ``KEY.json`` an image; dots of keys are escaped, or they would end the name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for row in rows:
            array = io.BytesIO()
            np.save(array, row.ids.astype(dtype))
            name = quote(row.key, safe="/ ").replace(".", "%2E")
            for suffix, data in (("npy", array.getvalue()), ("json", row.note_json().encode())):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def read_webdataset(path: Path) -> Iterator[Row]:
    """Yield the rows of a WebDataset shard."""
    with tarfile.open(path, "r:") as tar:
        pending: dict[str, npt.NDArray[np.int64]] = {}
        for member in tar:
            name, _, suffix = member.name.rpartition(".")
            file = tar.extractfile(member)
            if file is None:
                raise IntegrityError(f"{str(path)!r}: expected plain members, got {member.name[:80]!r}")
            if suffix == "npy":
                pending[name] = np.load(io.BytesIO(file.read())).astype(np.int64)
            else:
                yield Row(unquote(name), pending.pop(name), json.loads(file.read()))
