"""The plan: a sorted stream of images cut into shards, each written down before the first is made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice

from vqtok.dataset.documents import Manifest, Settings
from vqtok.dataset.folder import MANIFEST, RunFolder
from vqtok.dataset.items import Item
from vqtok.dataset.listing import list_items
from vqtok.dataset.tables import Columns
from vqtok.errors import MismatchError, OutputError


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks for.

    Attributes:
        inputs: what `list_items` takes.
        columns: how lists and tables are read.
        settings: what decides the bytes.
        model: folder of the model, or "".
        execution: what this process runs on.
        created_by: the program.
        items: the images, where the inputs alone do not name them; sorted.
    """

    inputs: tuple[str, ...]
    columns: Columns
    settings: Settings
    model: str
    execution: dict[str, object]
    created_by: str
    items: tuple[Item, ...] = ()


def plan(request: Request, keep: Callable[[int, bytes], None] | None = None) -> Manifest:
    """List the images and return what the run shall be; memory does not grow with their number.

    Args:
        request: what is asked for.
        keep: called with the number and the plan of each shard.
    """
    listed = iter(request.items) if request.items else list_items(request.inputs, request.columns)
    return _manifest(request, listed, keep)


def _manifest(request: Request, listed: Iterator[Item], keep: Callable[[int, bytes], None] | None) -> Manifest:
    listing, chunks, images = hashlib.sha256(), [], 0
    for data, count in cut_plan(listed, request.settings.shard_size, listing):
        if keep:
            keep(len(chunks), data)
        chunks.append(hashlib.sha256(data).hexdigest())
        images += count
    return Manifest(
        settings=request.settings,
        images=images,
        listing=listing.hexdigest(),
        chunks=chunks,
        inputs=[*request.inputs],
        columns=asdict(request.columns),
        model=request.model,
        execution=dict(request.execution),
        created_by=request.created_by,
    )


def cut_plan(items: Iterable[Item], shard_size: int, listing: hashlib._Hash) -> Iterator[tuple[bytes, int]]:
    """Yield the lines of each shard and their number, and feed the listing's digest."""
    source = iter(items)
    while chunk := list(islice(source, shard_size)):
        for item in chunk:
            listing.update(f"{item.identity()}\n".encode())
        yield "".join(f"{item.line()}\n" for item in chunk).encode(), len(chunk)


def prepare(folder: RunFolder, request: Request, *, extend: bool = False, overwrite: bool = False) -> Manifest:
    """Return the manifest of a run to work on: a new one, or that of the same job, found there.

    Args:
        folder: locked by this process.
        request: what is asked for.
        extend: add the images that the run does not list yet, as new shards after the others.
        overwrite: forget the run that is there.

    Raises:
        OutputError: the folder holds something that is no run's.
        MismatchError: it holds another job's run; the message names what differs.
    """
    if foreign := folder.foreign():
        raise OutputError(
            f"{str(folder.path)!r}: expected an empty folder or a run, but it also holds {foreign!r}: choose another"
        )
    there = (folder.path / MANIFEST).exists()
    if there and not overwrite:
        before = folder.manifest()
        manifest = plan(request)
        if not extend:
            check_same(before, manifest)
            return before
        return _extend(folder, before, request)
    if overwrite:
        _forget(folder)
    manifest = plan(request, lambda number, data: folder.put(folder.lines("plan", number), data, replace=True))
    folder.commit_manifest(manifest)
    return manifest


def check_same(before: Manifest, now: Manifest) -> None:
    """Raise MismatchError unless two manifests are of the same job."""
    if rows := before.differences(now):
        raise MismatchError(
            f"expected the job that this folder holds, but it differs in {'; '.join(rows)}: "
            "choose another folder, or use --extend (more images) or --overwrite"
        )
    if before.chunks != now.chunks:
        return  # the same images lie elsewhere now; the plan that was written down stands
    exact = before.settings.repro == "exact"
    if exact and (rows := [k for k in before.execution if before.execution[k] != now.execution.get(k)]):
        raise MismatchError(
            f"expected to go on where the run was begun (--repro exact), but {', '.join(rows)} differ here"
        )


def _extend(folder: RunFolder, before: Manifest, request: Request) -> Manifest:
    """Add what is new in the listing; shards that exist stay as they are."""
    if rows := before.differences(before.model_copy(update={"settings": request.settings})):
        raise MismatchError(f"expected the settings of the run to extend, but they differ in {'; '.join(rows)}")
    known: set[str] = set()
    listing = hashlib.sha256()
    for number in range(len(before.chunks)):
        for item in folder.items(before, number):
            known.add(item.key)
            listing.update(f"{item.identity()}\n".encode())
    fresh = (item for item in list_items(request.inputs, request.columns) if item.key not in known)
    chunks, images = [*before.chunks], before.images
    for data, count in cut_plan(fresh, request.settings.shard_size, listing):
        folder.put(folder.lines("plan", len(chunks)), data, replace=True)
        chunks.append(hashlib.sha256(data).hexdigest())
        images += count
    if images == before.images:
        return before
    update = {"images": images, "chunks": chunks, "listing": listing.hexdigest()}
    manifest = before.model_copy(update={**update, "inputs": [*before.inputs, *request.inputs]})
    folder.commit_manifest(manifest, overwrite=True)
    return manifest


def _forget(folder: RunFolder) -> None:
    """Let a run exist no more; the manifest goes first, then what it named."""
    from vqtok.store.commit import output_errors

    with output_errors(folder.path):
        for path in (folder.path / MANIFEST, folder.path / "index.json"):
            path.unlink(missing_ok=True)
        for name in ("shards", "failures", "rows", "ties", "plan"):
            for path in (folder.path / name).iterdir():
                if path.suffix in (".vqt", ".json", ".jsonl"):
                    path.unlink()
