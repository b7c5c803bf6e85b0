"""A run or a token file to another format, and from there to token files again, nothing lost."""

from __future__ import annotations

import hashlib
import mmap
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from vqtok.dataset.documents import Document, Part, read_document
from vqtok.dataset.exports import streams, tables
from vqtok.dataset.exports.rows import Content, Row, from_rows, to_rows
from vqtok.dataset.folder import RunFolder
from vqtok.dataset.numbering import Numbering
from vqtok.errors import ConfigError, InputError, IntegrityError, OutputError, escape
from vqtok.store import canonical_json, read_token_file
from vqtok.store.commit import commit, output_errors
from vqtok.store.reading import file_sha256
from vqtok.store.temporary import temporary_path

_Write = Callable[[Sequence[Row], str, str], bytes]
_Read = Callable[[Path], Iterator[Row]]
_PER_SHARD: Mapping[str, tuple[str, _Write, _Read]] = {
    "npz": (".npz", tables.write_npz, tables.read_npz),
    "parquet": (".parquet", tables.write_parquet, tables.read_parquet),
    "jsonl": (".jsonl", tables.write_jsonl, tables.read_jsonl),
    "webdataset": (".tar", tables.write_webdataset, tables.read_webdataset),
}
FORMATS = (*_PER_SHARD, "bin", "megatron")
DTYPES = {"u16": "<u2", "u32": "<u4", "i32": "<i4"}


class Sidecar(Document):
    """What stands beside an export: how to read it, and its checksums.

    Attributes:
        kind: one of `FORMATS`.
        dtype: of ids, as numpy writes it.
        vocab_size: number of codes.
        numbering: how codes became ids.
        model: fingerprint of the model, or "".
        record: how the tokens were made.
        images: number of rows.
        tokens: number of ids.
        files: checksum and size by name.
    """

    kind: Literal["npz", "parquet", "jsonl", "webdataset", "bin", "megatron"]
    dtype: Literal["<u2", "<u4", "<i4"]
    vocab_size: int = Field(ge=1)
    numbering: Numbering
    model: str
    record: dict[str, Any]
    images: int
    tokens: int
    files: dict[str, Part]


@dataclass(frozen=True, slots=True)
class Source:
    """Tokens to convert: the shards of a run in order, or one token file."""

    path: Path
    shards: int

    def __iter__(self) -> Iterator[Content]:
        """Yield each shard, checked."""
        if self.shards < 0:
            file = read_token_file(self.path)
            yield Content(file.tokens, file.source_sha256 if len(file.source_sha256) else None)
            return
        folder = RunFolder(self.path)
        for number in range(self.shards):
            file = read_token_file(folder.shard(number))
            about = {str(row["key"]): row for row in folder.read("rows", number)}
            yield Content(file.tokens, file.source_sha256 if len(file.source_sha256) else None, about)


def open_source(path: str) -> Source:
    """Return the tokens at a path.

    Raises:
        InputError: nothing is there, or a run that is not complete.
    """
    if not os.path.isdir(path):
        return Source(Path(path), -1)
    folder = RunFolder(path)
    manifest = folder.manifest()
    for number in range(len(manifest.chunks)):
        if not folder.exists(manifest, number):
            raise InputError(
                f"{path!r}: expected a complete run, but shard {number} is missing or damaged: vqtok status"
            )
    return Source(Path(path), len(manifest.chunks))


def export(
    source: Source, target: Path, kind: str, numbering: Numbering, dtype: str = "auto", *, overwrite: bool = False
) -> Sidecar:
    """Write tokens in another format, with ``TARGET.json`` beside it that says how to read it.

    ``npz``, ``parquet``, ``jsonl`` and ``webdataset`` have a file a shard, in a folder where there are several shards;
    ``bin`` and ``megatron`` are one stream.

    Args:
        source: the tokens; memory holds one shard at a time.
        target: file or folder to write.
        kind: one of `FORMATS`.
        numbering: how codes become ids.
        dtype: ``auto``, ``u16`` or ``u32``.
        overwrite: replace files that exist.

    Raises:
        ConfigError: ids do not fit the dtype.
        OutputError: it exists, or cannot be written.
    """
    writer: _Writer | None = None
    for content in source:
        if writer is None:
            size = content.tokens.vocab_size
            numbering.check(size)
            chosen = choose_dtype(dtype, numbering.largest(size), kind)
            writer = _Writer(target, kind, chosen, source.shards > 1, overwrite)
        writer.add(content, numbering)
    if writer is None:
        raise InputError(f"{str(source.path)!r}: expected at least one shard, got none")
    return writer.close(numbering)


def choose_dtype(dtype: str, largest: int, kind: str) -> str:
    """Return the dtype for ids up to the largest; none is ever cut short.

    >>> choose_dtype("auto", 65535, "bin"), choose_dtype("auto", 65536, "bin"), choose_dtype("auto", 65536, "megatron")
    ('<u2', '<u4', '<i4')
    """
    wide = "<i4" if kind == "megatron" else "<u4"
    chosen = ("<u2" if largest <= 0xFFFF else wide) if dtype == "auto" else "<u2" if dtype == "u16" else wide
    if largest > np.iinfo(np.dtype(chosen)).max:
        raise ConfigError(f"expected ids that fit {chosen[1:]}, but the largest is {largest}: use --dtype u32")
    return chosen


class _Writer:
    """Writes shard after shard, and the sidecar at the end."""

    def __init__(self, target: Path, kind: str, dtype: str, several: bool, overwrite: bool) -> None:
        self.target, self.kind, self.dtype, self.overwrite = target, kind, dtype, overwrite
        self.several = several and kind in _PER_SHARD
        self.files: dict[str, Part] = {}
        self.images = self.tokens = 0
        self.first: Content | None = None
        self.lengths: list[int] = []
        self.scratch: dict[str, Path] = {}
        with output_errors(target):
            if self.several:
                target.mkdir(exist_ok=True)
        if not overwrite and self.sidecar.exists():
            raise OutputError(f"{str(self.sidecar)!r}: it exists already: choose another name, or use --overwrite")

    @property
    def sidecar(self) -> Path:
        return self.target / "vqtok.json" if self.several else self.target.with_name(f"{self.target.name}.json")

    def add(self, content: Content, numbering: Numbering) -> None:
        """Write a shard."""
        self.first = self.first or content
        rows = to_rows(content, numbering)
        self.images, self.tokens = self.images + len(rows), self.tokens + sum(len(row.ids) for row in rows)
        if self.kind in _PER_SHARD:
            suffix, write, _ = _PER_SHARD[self.kind]
            path = self.target / f"{len(self.files):05d}{suffix}" if self.several else self.target
            self._commit(path, write(rows, self.dtype, self._meta(numbering)))
            return
        self.lengths += [len(row.ids) for row in rows]
        self._append("", streams.stream(rows, self.dtype))
        self._append(".jsonl", streams.lines(rows))

    def close(self, numbering: Numbering) -> Sidecar:
        """Finish streams and write the sidecar."""
        try:
            for ending, scratch in self.scratch.items():
                self._adopt(self.target.with_name(self.target.name + ending), scratch)
        finally:
            for scratch in self.scratch.values():
                with suppress(OSError):
                    scratch.unlink()
        if self.kind == "megatron":
            index = streams.megatron_index(np.array(self.lengths, np.int32), self.dtype)
            self._commit(self.target.with_suffix(".idx"), index)
        tokens = self.first.tokens if self.first else None
        sidecar = Sidecar(
            kind=self.kind,  # pyright: ignore[reportArgumentType]
            dtype=self.dtype,  # pyright: ignore[reportArgumentType]
            vocab_size=tokens.vocab_size if tokens else 1,
            numbering=numbering,
            model=tokens.fingerprint if tokens else "",
            record=dict(tokens.record) if tokens else {},
            images=self.images,
            tokens=self.tokens,
            files=self.files,
        )
        commit(self.sidecar, sidecar.pack(), overwrite=self.overwrite)
        return sidecar

    def _meta(self, numbering: Numbering) -> str:
        tokens = self.first.tokens if self.first else None
        model, size = (tokens.fingerprint, tokens.vocab_size) if tokens else ("", 1)
        return canonical_json({"model": model, "vocab_size": size, "numbering": numbering.model_dump(mode="json")})

    def _commit(self, path: Path, data: bytes) -> None:
        commit(path, data, overwrite=self.overwrite)
        self.files[path.name] = Part(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))

    def _append(self, ending: str, data: bytes) -> None:
        path = self.scratch.setdefault(ending, temporary_path(self.target.absolute()))
        with output_errors(self.target), open(path, "ab") as file:
            file.write(data)

    def _adopt(self, path: Path, scratch: Path) -> None:
        """Commit what was collected: mapped, so that a stream may be larger than memory."""
        if not scratch.stat().st_size:
            self._commit(path, b"")
            return
        with open(scratch, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            with memoryview(data) as view:
                commit(path, [view[i : i + (1 << 24)] for i in range(0, len(view), 1 << 24)], overwrite=self.overwrite)
                digest = hashlib.sha256(view).hexdigest()
            self.files[path.name] = Part(sha256=digest, bytes=scratch.stat().st_size)


def read_export(path: Path) -> Iterator[Content]:
    """Yield the shards of an export, as they were before.

    Raises:
        InputError: there is no sidecar.
        IntegrityError: a file is not what the sidecar says.
    """
    several = path.is_dir()
    sidecar = read_document(Sidecar, path / "vqtok.json" if several else path.with_name(f"{path.name}.json"))
    for name, part in sidecar.files.items():
        if os.path.basename(name) != name or name in ("", ".", ".."):
            raise IntegrityError(f"{str(path)!r}: expected plain file names in its sidecar, got {escape(name, 80)!r}")
        _check_file((path if several else path.parent) / name, part)
    if sidecar.kind in _PER_SHARD:
        read = _PER_SHARD[sidecar.kind][2]
        groups = (read(path / name if several else path) for name in sorted(sidecar.files))
    else:
        groups = iter([streams.read_stream(path, sidecar.dtype)])
    for rows in groups:
        try:
            yield from_rows(rows, sidecar.numbering, sidecar.vocab_size, sidecar.record, sidecar.model)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, tarfile.TarError) as error:
            reason = escape(str(error), 200)  # whoever can write a sidecar can write its checksums
            raise IntegrityError(f"{str(path)!r}: expected an export as its sidecar says, got: {reason}") from None


def _check_file(path: Path, part: Part) -> None:
    if file_sha256(path, "a file of the export") != part.sha256:
        raise IntegrityError(f"{str(path)!r}: expected the bytes that its sidecar names, got others: it is damaged")
