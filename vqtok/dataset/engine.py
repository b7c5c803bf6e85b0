"""The engine ``local``: worker processes decode ahead, the model runs here, shards are committed one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from vqtok.dataset.decoding import Recipe
from vqtok.dataset.documents import Index, Manifest, Record
from vqtok.dataset.folder import RunFolder, Shard
from vqtok.dataset.items import Item
from vqtok.dataset.pool import Outcome, Pool
from vqtok.errors import ConfigError

if TYPE_CHECKING:
    from vqtok.image_tokenizer import ImageTokenizer

Encode = Callable[[Iterable[tuple[Item, Outcome]]], Shard]


@dataclass(frozen=True, slots=True)
class Share:
    """Which shards are this process's: every ``world_size``-th, from ``rank`` on."""

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"expected 0 <= rank < world size, got rank {self.rank} of {self.world_size}: ranks count from 0"
            )

    def shards(self, count: int) -> range:
        """Return this process's shards of so many."""
        return range(self.rank, count, self.world_size)


@dataclass(slots=True)
class Progress:
    """What was done so far, by this process.

    Attributes:
        images: number of images of its shards.
        ok: images that are in shards.
        failed: images that are not.
        resumed: images whose shards were there before.
        failures: number by kind.
        seconds: since the start.
        shards: number of shards committed now.
    """

    images: int = 0
    ok: int = 0
    failed: int = 0
    resumed: int = 0
    shards: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, record: Record) -> None:
        """Count a shard."""
        self.ok, self.failed = self.ok + record.ok, self.failed + record.failed
        self.shards += 1
        for kind, count in record.failures.items():
            self.failures[kind] = self.failures.get(kind, 0) + count

    def rate(self) -> float:
        """Return images a second."""
        return (self.ok + self.failed) / max(self.seconds, 1e-9)


Watch = Callable[[str, Progress, dict[str, object]], None]


def run_shards(
    folder: RunFolder,
    manifest: Manifest,
    numbers: Sequence[int],
    decode: Callable[[Iterable[Item]], Iterator[tuple[Item, Outcome]]],
    encode: Encode,
    watch: Watch | None = None,
) -> Progress:
    """Make shards and commit them, one after the other.

    Args:
        folder: locked by this process.
        manifest: of the run.
        numbers: the shards to make, in this order.
        decode: items to pixels or failures, in order.
        encode: pixels of a shard to its content.
        watch: called with ``image`` after each image and ``shard`` after each commit.
    """
    progress, start = Progress(), time.monotonic()
    sizes = _sizes(manifest, folder, numbers)
    progress.images = sum(sizes)
    outcomes = decode(item for number in numbers for item in folder.items(manifest, number))
    for number, size in zip(numbers, sizes, strict=True):
        items: list[Item] = []

        def watched(size: int = size, items: list[Item] = items) -> Iterator[tuple[Item, Outcome]]:
            for item, outcome in islice(outcomes, size):
                items.append(item)
                progress.seconds = time.monotonic() - start
                if watch:
                    watch("image", progress, {"key": item.key})
                yield item, outcome

        shard = encode(watched())
        record = folder.commit_shard(manifest, number, shard, items)
        progress.add(record)
        progress.seconds = time.monotonic() - start
        if watch:
            for failure in shard.failures:
                watch("failure", progress, {"shard": number, **failure.record()})
            watch("shard", progress, {"shard": number, "ok": record.ok, "failed": record.failed})
    return progress


def _sizes(manifest: Manifest, folder: RunFolder, numbers: Sequence[int]) -> list[int]:
    """Return the number of images of each shard: only the last of a listing may be short, and of each extension."""
    full = manifest.settings.shard_size
    if manifest.images == full * len(manifest.chunks):
        return [full] * len(numbers)
    return [folder.count(manifest, number) for number in numbers]


def missing_shards(folder: RunFolder, manifest: Manifest, share: Share) -> list[int]:
    """Return the shards of a share that do not exist yet."""
    return [number for number in share.shards(len(manifest.chunks)) if not folder.exists(manifest, number)]


def run(
    folder: RunFolder,
    manifest: Manifest,
    tokenizer: ImageTokenizer,
    recipe: Recipe,
    numbers: Sequence[int],
    *,
    workers: int = 1,
    timeout: float = 30.0,
    memory: int = 0,
    watch: Watch | None = None,
) -> Progress:
    """Make the shards of these numbers; see `run_shards`. The index is written when the run is complete."""
    from vqtok.dataset.encoding import encode_shard, level

    settings = manifest.settings
    with Pool(recipe, workers if numbers else 0, timeout, memory) as pool, level(settings.repro):
        progress = run_shards(
            folder,
            manifest,
            numbers,
            pool.decode,
            lambda outcomes: encode_shard(tokenizer, outcomes, settings),
            watch,
        )
    finish(folder, manifest)
    return progress


def finish(folder: RunFolder, manifest: Manifest) -> Index | None:
    """Write the index if every shard exists; another rank may have shards to make."""
    return folder.commit_index(manifest)
