"""Is a run whole? Every checksum, and every listed image exactly once: in its shard, or among the failures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby, zip_longest

import numpy as np

from vqtok.dataset.documents import Index, Manifest, Record, read_document, read_file
from vqtok.dataset.folder import INDEX, RunFolder, summarize
from vqtok.dataset.items import Item
from vqtok.dataset.ledger import Ties
from vqtok.errors import VqtokError
from vqtok.store import TokenFile, read_token_file
from vqtok.types import Tokens


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a shard.

    Attributes:
        shard: its number, or -1 for what belongs to the whole run.
        kind: ``missing`` or ``corrupt``.
        message: which file, and why.
    """

    shard: int
    kind: str
    message: str

    def record(self) -> dict[str, object]:
        """Return the problem as JSON."""
        return asdict(self)


@dataclass(slots=True)
class Report:
    """What checking a run found.

    Attributes:
        shards: number of shards planned.
        images: number of images planned.
        ok: images found in sound shards.
        failed: failures of sound shards.
        problems: of the others.
    """

    shards: int = 0
    images: int = 0
    ok: int = 0
    failed: int = 0
    problems: list[Problem] = field(default_factory=list)


def check_run(folder: RunFolder, manifest: Manifest) -> Iterator[tuple[int, Problem | Record]]:
    """Yield each shard's number with its record, or with what is wrong with it."""
    for number in range(len(manifest.chunks)):
        try:
            record = folder.record(manifest, number)
            if record is None:
                yield number, Problem(number, "missing", f"shard {number} was not committed yet")
                continue
            check_shard(folder, manifest, record)
        except (VqtokError, OSError) as error:
            yield number, Problem(number, "corrupt", str(error))
        else:
            yield number, record


def check_shard(folder: RunFolder, manifest: Manifest, record: Record) -> None:
    """Raise IntegrityError (or InputError for a missing file) unless a shard is what its record says."""
    from vqtok.errors import IntegrityError

    number = record.shard
    for kind, part in record.files.items():
        path = folder.part(kind, number)
        data = read_file(path, "a file of a shard")
        if len(data) != part.bytes or hashlib.sha256(data).hexdigest() != part.sha256:
            raise IntegrityError(f"{str(path)!r}: expected the bytes that its record names, got others: it is damaged")
    items = folder.items(manifest, number)
    content = read_token_file(folder.shard(number))
    failed = [str(row["key"]) for row in folder.read("failures", number)] if "failures" in record.files else []
    if problem := _miscount(items, content.tokens, failed, manifest.settings.crop) or _misfit(
        content, manifest, record
    ):
        raise IntegrityError(f"{str(folder.shard(number))!r}: {problem}")


def _miscount(items: Sequence[Item], tokens: Tokens, failed: Sequence[str], crop: str) -> str:
    """Say which image is lost, doubled or out of order, or ""."""
    many = crop == "ten" or (crop.startswith("random:") and crop != "random:1")
    found = [key for key, _ in groupby(key.rpartition("#")[0] for key in tokens.keys)] if many else [*tokens.keys]
    gone = set(failed)
    expected = [item.key for item in items if item.key not in gone]
    if found != expected or len(gone) != len(failed) or not gone <= {item.key for item in items}:
        both = zip_longest(found, expected, fillvalue="")
        came, wanted = next((pair for pair in both if pair[0] != pair[1]), ("", ""))
        return f"expected every listed image once, in order, but found {came!r} where {wanted!r} belongs"
    return ""


def _misfit(content: TokenFile, manifest: Manifest, record: Record) -> str:
    settings = manifest.settings
    pairs = {
        "model": (content.tokens.fingerprint, settings.model),
        "vocabulary": (content.tokens.vocab_size, settings.vocab_size),
        "settings": (content.header.fingerprints.get("settings", ""), record.settings),
        "rows": (len(content.tokens), record.rows),
        "tokens": (content.tokens.ids.size, record.tokens),
    }
    wrong = [f"{name} {pair[1]}, got {pair[0]}" for name, pair in pairs.items() if pair[0] != pair[1]]
    return f"expected {', '.join(wrong)}" if wrong else ""


def check_all(folder: RunFolder, manifest: Manifest) -> Report:
    """Check a whole run, the index included, shard by shard."""
    report = Report(shards=len(manifest.chunks), images=manifest.images)
    records: list[Record] = []
    for _, found in check_run(folder, manifest):
        if isinstance(found, Problem):
            report.problems.append(found)
        else:
            records.append(found)
            report.ok, report.failed = report.ok + found.ok, report.failed + found.failed
    if not report.problems and (problem := _check_index(folder, summarize(manifest, records))):
        report.problems.append(problem)
    return report


def _check_index(folder: RunFolder, expected: Index) -> Problem | None:
    try:
        if read_document(Index, folder.path / INDEX) == expected:
            return None
        reason = "expected the index of these shards, got another"
    except (VqtokError, OSError) as error:
        reason = str(error)
    return Problem(-1, "corrupt", f"{reason}: make it anew with vqtok merge")


@dataclass(slots=True)
class Comparison:
    """What tokenizing again gave.

    Attributes:
        images: number of rows compared.
        tokens: number of tokens compared.
        different: tokens that differ.
        lost: rows that could not be made again, or have another size: their keys.
        near: of them, those that the shards name as near ties.
        ledger: whether all shards name their near ties.
        same_machine: whether the execution records are equal.
    """

    images: int = 0
    tokens: int = 0
    different: int = 0
    near: int = 0
    ledger: bool = True
    lost: list[str] = field(default_factory=list)
    same_machine: bool = True

    def add(self, before: Tokens, now: Tokens, ties: Ties | None = None) -> None:
        """Compare the rows of one shard, of which ``ties`` are near ties; ``now`` may hold fewer."""
        self.ledger &= ties is not None
        again = {key: i for i, key in enumerate(now.keys)}
        for i, key in enumerate(before.keys):
            if key not in again:
                continue
            old = before.ids[before.offsets[i] : before.offsets[i + 1]]
            new = now.ids[now.offsets[again[key]] : now.offsets[again[key] + 1]]
            self.images += 1
            if old.shape != new.shape:
                self.lost.append(key)
                continue
            self.tokens += old.size
            places = np.flatnonzero(old != new)
            self.different += places.size
            self.near += len({*places.tolist()} & {*(ties.places.get(key, ()) if ties else ())})
        self.same_machine &= before.record.get("execution") == now.record.get("execution")

    def passed(self) -> bool:
        """Tell whether it is what was promised: equal on an equal machine; elsewhere equal but for a few near ties.

        A few are 20 of a million tokens. Shards without a ledger are given those few anywhere.
        """
        allowed = 0 if self.same_machine else max(1, self.tokens * 20 // 1_000_000)
        explained = self.near == self.different or not self.ledger
        return bool(self.images) and not self.lost and self.different <= allowed and explained
