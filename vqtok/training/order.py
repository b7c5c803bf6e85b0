"""Which image is drawn when: a function of the position alone, so that a resumed training needs only its step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

_ONE = 1 << 40
_WINDOW = 4  # blocks that are drawn from at a time

Blocks = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Draw:
    """One image of a group.

    Attributes:
        group: its number.
        index: of the image in the group.
    """

    group: int
    index: int


class Order:
    """Epochs over groups of images, each epoch in an order of its own.

    Without weights all groups are one pool: of the positions e * n .. (e + 1) * n - 1 every image has exactly one.
    With weights each group has epochs of its own, and the groups take turns so evenly (see `turn`) that after any
    number of draws each of G groups is within ceil(log2 G) of its share, and at random it would be off by the root.

    Args:
        sizes: images of each group.
        weights: of the groups; empty for one pool.
        seed: of the orders.
        stream: another stream is another order.
        blocks: of each group, the block that each image lies in, int64 [images]; [0] where an image can be reached by
            itself; left out if all can. Blocks are shuffled, and images among those of four blocks at a time.

    >>> sorted(draw.index for draw in Order([3], [], seed=7).draws(0, 3))
    [0, 1, 2]
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        seed: int,
        stream: int = 0,
        blocks: Sequence[Blocks] = (),
    ) -> None:
        self._sizes, self._pooled = tuple(sizes), not weights
        self._starts = tuple(accumulate(self._sizes[:-1], initial=0))
        self._weights = tuple(weights)
        self._seed, self._stream = seed, stream
        self._blocks = tuple(blocks) or tuple(np.zeros(0, np.int64) for _ in sizes)
        self._epochs: dict[int, tuple[int, npt.NDArray[np.uint32]]] = {}

    def draws(self, first: int, count: int) -> Iterator[Draw]:
        """Yield the images at positions first .. first + count - 1."""
        for position in range(first, first + count):
            if self._pooled:
                image = self._shuffled(0, sum(self._sizes), position)
                group = bisect_right(self._starts, image) - 1
                yield Draw(group, image - self._starts[group])
            else:
                group, before = turn(position, self._weights)
                yield Draw(group, self._shuffled(group, self._sizes[group], before))

    def substitute(self, group: int, position: int, attempt: int) -> Draw:
        """Return the image that stands in for one that cannot be read: of the same group, by position and attempt."""
        random = np.random.default_rng((self._seed, self._stream, 1, position, attempt))
        return Draw(group, int(random.integers(self._sizes[group])))

    def _shuffled(self, pool: int, size: int, position: int) -> int:
        epoch, index = divmod(position, size)
        known = self._epochs.get(pool)
        if known is None or known[0] != epoch:
            random = np.random.default_rng((self._seed, self._stream, 0, pool, epoch))
            order = np.arange(size, dtype=np.uint32)
            random.shuffle(order)
            groups = range(len(self._sizes)) if self._pooled else [pool]
            windows = shuffled_windows([self._blocks[i] for i in groups], [self._sizes[i] for i in groups], random)
            if len(windows):
                order = order[np.argsort(windows[order], kind="stable")]
            known = self._epochs[pool] = (epoch, order)
        return int(known[1][index])


def shuffled_windows(blocks: Sequence[Blocks], sizes: Sequence[int], random: np.random.Generator) -> Blocks:
    """Return the window that each image of several groups is drawn in, int64; [0] where one window holds all blocks.

    Args:
        blocks: of each group, that of each image; [0] for images that lie alone, which go into any window.
        sizes: images of each group.
        random: says which blocks share a window.

    >>> len(set(shuffled_windows([np.arange(8)], [8], np.random.default_rng(0)).tolist()))
    2
    """
    counts = [int(block.max()) + 1 if len(block) else 0 for block in blocks]
    total = sum(counts)
    if total <= _WINDOW:
        return np.zeros(0, np.int64)
    window_of = random.permutation(total) // _WINDOW
    starts = accumulate(counts[:-1], initial=0)
    parts = [
        window_of[block + start] if len(block) else random.integers(window_of.max() + 1, size=size)
        for block, start, size in zip(blocks, starts, sizes, strict=True)
    ]
    return np.concatenate(parts)


def turn(position: int, weights: Sequence[float]) -> tuple[int, int]:
    """Return which group's turn it is at a position, and how many turns it had before.

    The groups are halved again and again: of the first n turns, the left half has floor(n * its share) and the right
    half the rest. Exact in integers, and no position is counted from another one.

    >>> [turn(position, [1, 2])[0] for position in range(6)]
    [1, 1, 0, 1, 1, 0]
    """
    low, high = 0, len(weights)
    while high - low > 1:
        middle = (low + high) // 2
        share = math.ceil(sum(weights[low:middle]) / sum(weights[low:high]) * _ONE)
        before, after = position * share // _ONE, (position + 1) * share // _ONE
        if after > before:
            high, position = middle, before
        else:
            low, position = middle, position - before
    return low, position
