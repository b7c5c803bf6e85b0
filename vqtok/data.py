"""Runs as training data: a mapped dataset, and a sampler that shuffles by shard and goes on where it stopped."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from vqtok.dataset.mapped import MappedShard, map_shard, shard_files, shuffled
from vqtok.dataset.numbering import Numbering
from vqtok.errors import ConfigError

_OPEN = 4  # shards whose tables stay in memory; their ids are mapped


class TokenDataset(Dataset[dict[str, Any]]):
    """The rows of a run or of a token file, for ``torch.utils.data.DataLoader``.

    A shard is checked when it is first opened, in each process that reads it; its ids stay on disk and are mapped.

    Args:
        path: a complete run folder, or a ``.vqt`` file.
        numbering: how codes become ids; raw codes if left out.

    Attributes:
        vocab_size: number of codes.
        lengths: rows of each shard.

    >>> import tempfile, vqtok
    >>> path = tempfile.mkdtemp() + "/a.vqt"
    >>> vqtok.save_tokens(path, vqtok.load().tokenize(np.zeros((16, 24, 3), np.uint8)))
    >>> TokenDataset(path, Numbering(offset=10, begin=1))[0]["ids"].shape
    torch.Size([7])
    """

    def __init__(self, path: str | os.PathLike[str], numbering: Numbering | None = None) -> None:
        found = shard_files(path)
        self._files = [file for file, _ in found]
        self.lengths = [rows for _, rows in found]
        self._ends = np.cumsum(self.lengths).tolist()
        self._open: OrderedDict[int, MappedShard] = OrderedDict()
        self.numbering = numbering or Numbering()
        self.vocab_size = self._shard(0).vocab_size if found else 1
        self.numbering.check(self.vocab_size)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a row: ``ids`` int64 [T], ``grid`` int64 [3] (Q, h, w), ``key``."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected an index below {len(self)}, got {index}")
        index %= len(self)
        number = bisect_right(self._ends, index)
        row = index - (self._ends[number - 1] if number else 0)
        shard = self._shard(number)
        codes = shard.ids[shard.offsets[row] : shard.offsets[row + 1]].astype(np.int64)
        q, h, w = shard.grids[row].tolist()
        ids = self.numbering.sequence(codes, (q, h, w))
        return {"ids": torch.from_numpy(ids), "grid": torch.tensor([q, h, w]), "key": shard.keys[row]}

    def __getstate__(self) -> dict[str, Any]:
        """Leave mapped files to each process."""
        return {**self.__dict__, "_open": OrderedDict()}

    def _shard(self, number: int) -> MappedShard:
        if number not in self._open:
            self._open[number] = map_shard(self._files[number])
            while len(self._open) > _OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]


class ShardSampler(Sampler[int]):
    """The order of an epoch: shards at random, rows of a shard at random; resumable to the row.

    The order depends on seed, epoch and the run alone. Ranks take turns, and each gets equally many rows: what does not
    divide is left out at the end. The state counts rows that were handed out; with a DataLoader that fetches ahead, set
    it from the number of batches that were trained on.

    Args:
        dataset: what is read.
        seed: of the order.
        shuffle: with False, rows come in their order.
        rank: of this process.
        world_size: number of processes.

    >>> import tempfile, vqtok
    >>> path = tempfile.mkdtemp() + "/a.vqt"
    >>> vqtok.save_tokens(path, vqtok.load().tokenize([np.zeros((8, 8, 3), np.uint8)] * 5))
    >>> sampler = ShardSampler(TokenDataset(path), seed=3)
    >>> sampler.load_state_dict({"epoch": 0, "position": 3})
    >>> len(list(sampler))
    2
    """

    def __init__(
        self, dataset: TokenDataset, seed: int = 0, *, shuffle: bool = True, rank: int = 0, world_size: int = 1
    ) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(f"expected 0 <= rank < world size, got rank {rank} of {world_size}")
        self._lengths, self.seed, self.shuffle = list(dataset.lengths), seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch = self.position = 0

    def __len__(self) -> int:
        """Return the rows of an epoch for this rank."""
        return sum(self._lengths) // self.world_size

    def __iter__(self) -> Iterator[int]:
        """Yield what is left of the epoch; the next one begins when it is through."""
        order = shuffled(self._lengths, self.seed, self.epoch) if self.shuffle else np.arange(sum(self._lengths))
        mine = order[self.rank :: self.world_size][: len(self)]
        while self.position < len(mine):
            self.position += 1
            yield int(mine[self.position - 1])
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Return where the epoch stands."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from there."""
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
