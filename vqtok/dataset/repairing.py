"""Doing again what failed, is missing or is damaged; and putting runs together."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vqtok.dataset.checking import Problem, check_run
from vqtok.dataset.documents import Manifest, Record, read_file
from vqtok.dataset.engine import Encode
from vqtok.dataset.folder import MANIFEST, RunFolder, Shard
from vqtok.dataset.items import Item
from vqtok.dataset.ledger import joined
from vqtok.dataset.pool import Outcome
from vqtok.errors import ConfigError, IntegrityError, MismatchError
from vqtok.store import read_token_file
from vqtok.types import Tokens, concatenate

Decode = Callable[[Iterable[Item]], Iterator[tuple[Item, Outcome]]]


def to_retry(folder: RunFolder, manifest: Manifest, only: str) -> list[int]:
    """Return the shards that are to be done again.

    Args:
        folder: the run.
        manifest: of the run.
        only: ``missing``, ``corrupt`` (all checksums are compared), or ``failed`` (some of their images are in none).
    """
    if only == "missing":
        return [number for number in range(len(manifest.chunks)) if not os.path.lexists(folder.record_path(number))]
    found = check_run(folder, manifest)
    if only == "corrupt":
        return [number for number, what in found if isinstance(what, Problem) and what.kind == "corrupt"]
    return [number for number, what in found if isinstance(what, Record) and what.failed]


def retry_failed(folder: RunFolder, manifest: Manifest, number: int, decode: Decode, encode: Encode) -> Record:
    """Try the failed images of a shard again; the others are kept as they are.

    The shard is what a run would make of the images as they are now.
    """
    items = folder.items(manifest, number)
    before = {str(row["key"]) for row in folder.read("failures", number)}
    again = encode(decode([item for item in items if item.key in before]))
    content = read_token_file(folder.shard(number))
    kept = Shard(content.tokens, content.source_sha256, [], folder.read("rows", number), folder.ties(number))
    shard = join_shards([kept, again], items)
    if len(again.failures) == len(before):
        return _recorded(folder, manifest, number)
    folder.discard(number)
    return folder.commit_shard(manifest, number, shard, items)


def _recorded(folder: RunFolder, manifest: Manifest, number: int) -> Record:
    record = folder.record(manifest, number)
    if record is None:
        raise IntegrityError(f"expected the record of shard {number}, found none: run vqtok retry --only missing")
    return record


def join_shards(parts: Sequence[Shard], items: Sequence[Item]) -> Shard:
    """Return one shard of several, in the order of the items."""
    failures = {failure.key: failure for part in parts for failure in part.failures}
    tokens = concatenate([part.tokens for part in parts])
    places = _in_order(tokens, items)
    sources = [part.source_sha256 for part in parts if part.source_sha256 is not None]
    about: dict[str, dict[str, object]] = {str(row["key"]): row for part in parts for row in part.rows}
    ordered = concatenate([replace(tokens[:0], record=parts[0].tokens.record), *(tokens[i] for i in places)])
    rows = [about.get(key, {"key": key}) for key in ordered.keys]
    return Shard(
        tokens=ordered,
        source_sha256=np.concatenate(sources)[places] if sources else None,
        failures=[failures[item.key] for item in items if item.key in failures],
        rows=rows if any(len(row) > 1 for row in rows) else [],
        ties=joined([part.ties for part in parts]),
    )


def _in_order(tokens: Tokens, items: Sequence[Item]) -> list[int]:
    """Return the places of the rows in the order of the items; rows of one image keep theirs."""
    rank = {item.key: i for i, item in enumerate(items)}
    return sorted(
        range(len(tokens)),
        key=lambda i: (rank.get(tokens.keys[i], rank.get(tokens.keys[i].rpartition("#")[0], -1)), i),
    )


def merge_runs(runs: Sequence[RunFolder], target: RunFolder) -> Manifest:
    """Put runs of equal settings together: ranks that wrote to folders of their own, or runs over different images.

    Shards are copied, never computed. Runs of one job give its shards; others come one after the other.

    Args:
        runs: sound ones; `check_run` is done while they are copied.
        target: an empty folder, locked by this process.

    Raises:
        MismatchError: their settings differ.
        ConfigError: two runs hold images of one name, or the target holds a run.
    """
    manifests = [run.manifest() for run in runs]
    first = manifests[0]
    for manifest in manifests[1:]:
        if manifest.settings != first.settings:
            rows = first.differences(manifest.model_copy(update={"listing": first.listing}))
            raise MismatchError(f"expected runs of equal settings, but they differ in {'; '.join(rows)}")
    if (target.path / MANIFEST).exists():
        raise ConfigError(f"expected an empty folder for the merged run, but {str(target.path)!r} holds one")
    if all(manifest.chunks == first.chunks for manifest in manifests):
        manifest, sources = first, _ranks(runs, first)
    else:
        manifest, sources = _one_after_the_other(runs, manifests)
    for number, (run, theirs, old) in enumerate(sources):
        target.put(target.lines("plan", number), read_file(run.lines("plan", old), "a plan"), replace=True)
        _copy_shard(run, theirs, old, target, manifest, number)
    target.commit_manifest(manifest)
    target.commit_index(manifest)
    return manifest


_Source = tuple[RunFolder, Manifest, int]


def _ranks(runs: Sequence[RunFolder], manifest: Manifest) -> list[_Source]:
    return [
        (next((run for run in runs if run.exists(manifest, number)), runs[0]), manifest, number)
        for number in range(len(manifest.chunks))
    ]


def _one_after_the_other(runs: Sequence[RunFolder], manifests: Sequence[Manifest]) -> tuple[Manifest, list[_Source]]:
    listing, hashes = hashlib.sha256(), []
    sources: list[_Source] = []
    for run, manifest in zip(runs, manifests, strict=True):
        for number in range(len(manifest.chunks)):
            for item in run.items(manifest, number):
                listing.update(f"{item.identity()}\n".encode())
                hashes.append(hashlib.blake2b(item.key.encode(), digest_size=8).digest())
            sources.append((run, manifest, number))
    # Eight bytes a name, whatever its length; a chance meeting of ten million names has a probability of 3e-6.
    if len(np.unique(np.frombuffer(b"".join(hashes), np.uint64))) != len(hashes):
        raise ConfigError("expected runs over different images, but some names are in several: list them in one run")
    update = {
        "images": sum(manifest.images for manifest in manifests),
        "chunks": [chunk for manifest in manifests for chunk in manifest.chunks],
        "listing": listing.hexdigest(),
        "inputs": [text for manifest in manifests for text in manifest.inputs],
    }
    return manifests[0].model_copy(update=update), sources


def _copy_shard(run: RunFolder, theirs: Manifest, old: int, target: RunFolder, manifest: Manifest, number: int) -> None:
    record = run.record(theirs, old)
    if record is None:
        return  # missing there, and so here: `vqtok retry --only missing` makes it
    for kind, part in record.files.items():
        source, path = run.part(kind, old), target.part(kind, number)
        data = read_file(source, "a file of a shard")
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise IntegrityError(f"{str(source)!r}: expected the bytes that its record names: run vqtok verify there")
        target.put(Path(path), data, replace=True)
    target.put(target.record_path(number), record.model_copy(update={"shard": number}).pack())
