"""A run folder: where its files are, how they come to be, and what of it exists.

``manifest.json``, ``plan/00000.jsonl``, ``shards/00000.vqt`` with ``shards/00000.json`` (the commit record),
``rows/00000.jsonl``, ``failures/00000.jsonl`` and ``ties/00000.jsonl`` where there is something to say, ``index.json``,
``LOCK``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vqtok.dataset.decoding import Failure
from vqtok.dataset.documents import Index, Manifest, Part, Record, read_document, read_file
from vqtok.dataset.items import Item, parse_item
from vqtok.dataset.ledger import Ties, read_ties
from vqtok.errors import InputError, IntegrityError, OutputError, ReproducibilityError, VqtokError, escape
from vqtok.store import read_token_file, remove_stale_temporaries, token_codec
from vqtok.store.commit import Data, Verify, as_buffers, commit, compare, output_errors
from vqtok.store.lock import locked
from vqtok.types import Tokens

MANIFEST, INDEX, LOCK = "manifest.json", "index.json", "LOCK"
FOLDERS = ("plan", "shards", "failures", "rows", "ties")


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """What a shard holds before it is committed.

    Attributes:
        tokens: one row an image, or several when it was cropped.
        source_sha256: uint8 [n, 32] of the rows, or None.
        failures: of the images that are not in it.
        rows: JSON of each row beside its tokens; empty when there is nothing to say.
        ties: which tokens are near ties; None when nobody looked.
    """

    tokens: Tokens
    source_sha256: npt.NDArray[np.uint8] | None
    failures: Sequence[Failure]
    rows: Sequence[dict[str, object]]
    ties: Ties | None = None


class RunFolder:
    """A run on disk.

    Args:
        path: the folder; need not exist.

    >>> RunFolder("run").shard(3).name
    '00003.vqt'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def shard(self, number: int) -> Path:
        """Return the token file of a shard."""
        return self.path / "shards" / f"{number:05d}.vqt"

    def record_path(self, number: int) -> Path:
        """Return the commit record of a shard."""
        return self.path / "shards" / f"{number:05d}.json"

    def lines(self, kind: str, number: int) -> Path:
        """Return the file of a shard among ``plan``, ``failures``, ``rows`` or ``ties``."""
        return self.path / kind / f"{number:05d}.jsonl"

    # Reading ---------------------------------------------------------------------------------------------------------

    def manifest(self) -> Manifest:
        """Return what the run shall be; InputError when the folder holds no run."""
        if not os.path.lexists(self.path / MANIFEST):
            raise InputError(f"{str(self.path)!r}: expected a run folder (manifest.json), found none")
        return read_document(Manifest, self.path / MANIFEST)

    def items(self, manifest: Manifest, number: int) -> list[Item]:
        """Return the images of a shard.

        Raises:
            IntegrityError: the plan is damaged.
        """
        return [parse_item(line) for line in self._plan(manifest, number).split(b"\n") if line]

    def count(self, manifest: Manifest, number: int) -> int:
        """Return the number of images of a shard."""
        return self._plan(manifest, number).count(b"\n")

    def _plan(self, manifest: Manifest, number: int) -> bytes:
        path = self.lines("plan", number)
        data = read_file(path, "a plan")
        if hashlib.sha256(data).hexdigest() != manifest.chunks[number]:
            raise IntegrityError(f"{str(path)!r}: expected the plan that the manifest names, but its sha256 differs")
        return data

    def record(self, manifest: Manifest, number: int) -> Record | None:
        """Return the commit record of a shard, or None when there is none.

        Raises:
            IntegrityError: it is damaged, or another shard's.
        """
        path = self.record_path(number)
        if not os.path.lexists(path):
            return None
        record = read_document(Record, path)
        expected = (number, manifest.settings.fingerprint(), manifest.chunks[number])
        if (record.shard, record.settings, record.plan) != expected:
            raise IntegrityError(f"{str(path)!r}: expected the record of shard {number} of this run, got another's")
        return record

    def exists(self, manifest: Manifest, number: int) -> bool:
        """Tell whether a shard exists: its record is sound, and its files are those that it names."""
        try:
            record = self.record(manifest, number)
            return record is not None and all(
                hashlib.sha256(read_file(self.part(kind, number), "a file of a shard")).hexdigest() == part.sha256
                for kind, part in record.files.items()
            )
        except (VqtokError, OSError):
            return False

    def part(self, kind: str, number: int) -> Path:
        """Return a file of a shard by its name in the record."""
        return self.shard(number) if kind == "vqt" else self.lines(kind, number)

    def ties(self, number: int) -> Ties | None:
        """Return which tokens of a shard are near ties; None when nobody looked."""
        return read_ties(self.lines("ties", number))

    def read(self, kind: str, number: int) -> list[dict[str, object]]:
        """Return the lines of a shard's ``failures`` or ``rows``; none when there is no such file."""
        path = self.lines(kind, number)
        if not os.path.lexists(path):
            return []
        try:
            rows = [json.loads(line) for line in read_file(path, f"{kind} of a shard").split(b"\n") if line]
            if all(isinstance(row, dict) and isinstance(row["key"], str) for row in rows):
                return rows
            reason = "no object with a key"
        except (ValueError, KeyError, RecursionError) as error:
            reason = escape(str(error), 100)
        raise IntegrityError(f"{str(path)!r}: expected {kind} of a shard, got {reason}: run vqtok verify")

    def tokens(self, number: int) -> Tokens:
        """Return the tokens of a shard, checked."""
        return read_token_file(self.shard(number)).tokens

    # Writing ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self, rank: int = 0, world_size: int = 1) -> Iterator[None]:
        """Hold the folder for one process; the lock goes with the process, so none is ever stale.

        Raises:
            OutputError: another process holds it.
        """
        name = LOCK if world_size == 1 else f"{LOCK}.{rank}"
        with output_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path / name):
            for folder in FOLDERS:
                with output_errors(self.path / folder):
                    (self.path / folder).mkdir(exist_ok=True)
                remove_stale_temporaries(self.path / folder)
            remove_stale_temporaries(self.path)
            yield

    def commit_manifest(self, manifest: Manifest, *, overwrite: bool = False) -> None:
        """Write the manifest, after the plan."""
        self.put(self.path / MANIFEST, manifest.pack(), replace=overwrite)

    def commit_shard(self, manifest: Manifest, number: int, shard: Shard, items: Sequence[Item]) -> Record:
        """Write a shard: its files first, the record last.

        Raises:
            ReproducibilityError: another process committed other bytes for it.
        """
        pieces = token_codec.pack(shard.tokens, shard.source_sha256)
        files = {"vqt": _part(pieces)}
        failures = _lines([failure.record() for failure in shard.failures])
        ties = _lines(shard.ties.rows(shard.tokens.keys)) if shard.ties else b""
        for kind, data in (("failures", failures), ("rows", _lines(shard.rows)), ("ties", ties)):
            path = self.lines(kind, number)
            if data:
                files[kind] = _part([data])
                self.put(path, data, replace=True)
            else:
                with output_errors(path), suppress(FileNotFoundError):
                    os.unlink(path)  # of another attempt
        expected = token_codec.checksum_of(pieces)

        def verify(written: Path) -> None:
            if read_token_file(written).header.sha256 != expected:
                raise IntegrityError(f"expected tokens of sha256 {expected}")

        self.put(self.shard(number), pieces, replace=True, verify=verify)
        record = describe(manifest, number, shard, items, files)
        self.put(self.record_path(number), record.pack(), replace=not self._recorded(manifest, number))
        return record

    def _recorded(self, manifest: Manifest, number: int) -> bool:
        """Tell whether there is a sound record, which must not be changed."""
        try:
            return self.record(manifest, number) is not None
        except VqtokError:
            return False

    def put(self, path: Path, data: Data, *, replace: bool = False, verify: Verify | None = None) -> None:
        """Commit a file; one that holds the same bytes is left alone, one that holds others is refused or replaced."""
        if self._holds(path, data, replace):
            return
        try:
            commit(path, data, verify=verify, overwrite=replace)
        except OutputError as error:
            # Another rank may have been faster. A file of our own whose folder could not be synced is no success.
            taken = error.__cause__ is None or isinstance(error.__cause__, FileExistsError)
            if replace or not taken or not self._holds(path, data, replace):
                raise

    def _holds(self, path: Path, data: Data, replace: bool) -> bool:
        """Tell whether a file is there with these bytes; ReproducibilityError for others that may not be replaced."""
        if not os.path.lexists(path):
            return False
        with suppress(VqtokError, OSError):
            compare(path, as_buffers(data))
            return True
        if replace:
            return False
        raise ReproducibilityError(
            f"{str(path)!r}: expected the bytes that were written before, but these differ: run vqtok verify"
        )

    def discard(self, number: int) -> None:
        """Let a shard exist no more: its record goes first."""
        path = self.record_path(number)
        with output_errors(path), suppress(FileNotFoundError):
            os.unlink(path)

    def commit_index(self, manifest: Manifest) -> Index | None:
        """Write the index when all shards exist, and return it."""
        records = []
        for number in range(len(manifest.chunks)):
            record = self.record(manifest, number)
            if record is None:
                return None
            records.append(record)
        index = summarize(manifest, records)
        self.put(self.path / INDEX, index.pack(), replace=True)
        return index

    def foreign(self) -> str:
        """Return a name in the folder that no run has, or ""."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise OutputError(f"cannot write {str(self.path)!r}: {error.strerror}: choose another folder") from None
        known = {MANIFEST, INDEX, *FOLDERS}
        return next((x for x in sorted(names) if x not in known and not x.startswith((LOCK, "."))), "")


def describe(manifest: Manifest, number: int, shard: Shard, items: Sequence[Item], files: dict[str, Part]) -> Record:
    """Return the commit record of a shard."""
    kinds: dict[str, int] = {}
    for failure in shard.failures:
        kinds[failure.kind] = kinds.get(failure.kind, 0) + 1
    execution = shard.tokens.record.get("execution", {})
    return Record(
        shard=number,
        settings=manifest.settings.fingerprint(),
        plan=manifest.chunks[number],
        images=len(items),
        ok=len(items) - len(shard.failures),
        failed=len(shard.failures),
        rows=len(shard.tokens),
        tokens=int(shard.tokens.ids.size),
        keys=[items[0].key, items[-1].key] if items else [],
        failures=kinds,
        files=files,  # pyright: ignore[reportArgumentType]
        execution=dict(execution) if isinstance(execution, dict) else {},
    )


def summarize(manifest: Manifest, records: Sequence[Record]) -> Index:
    """Return the index of commit records."""
    kinds: dict[str, int] = {}
    for record in records:
        for kind, count in record.failures.items():
            kinds[kind] = kinds.get(kind, 0) + count
    return Index(
        job=manifest.job(),
        images=sum(record.images for record in records),
        ok=sum(record.ok for record in records),
        failed=sum(record.failed for record in records),
        rows=sum(record.rows for record in records),
        tokens=sum(record.tokens for record in records),
        failures=kinds,
        shards=[
            {"shard": r.shard, "sha256": r.files["vqt"].sha256, "rows": r.rows, "tokens": r.tokens, "keys": r.keys}
            for r in records
        ],
    )


def _part(pieces: Sequence[bytes | memoryview]) -> Part:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return Part(sha256=digest.hexdigest(), bytes=sum(memoryview(piece).nbytes for piece in pieces))


def _lines(rows: Sequence[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row, sort_keys=True, separators=(",", ":")) + "\n" for row in rows).encode()
