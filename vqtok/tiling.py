"""Large images in tiles: each with a halo around it, so that what is kept of a tile has seen what it depends on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vqtok.errors import ConfigError

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Tiles:
    """How positions along two axes are cut.

    Attributes:
        side: positions that are kept of a tile, each way; the last ones may be smaller.
        halo: positions around them that a tile sees besides, where the image has them.

    >>> Tiles(side=4, halo=1).windows(10)
    [(0, 4, 0, 5), (4, 8, 3, 9), (8, 10, 7, 10)]
    """

    side: int
    halo: int

    def __post_init__(self) -> None:
        """Refuse tiles that are none."""
        if self.side < 1 or self.halo < 0:
            raise ConfigError(f"expected tiles of a side of at least 1 and a halo of at least 0, got {self}")

    def windows(self, size: int) -> list[tuple[int, int, int, int]]:
        """Return (start, stop, first, last) of each tile along an axis: start..stop is kept, first..last is seen.

        A window never reaches beyond the image, so a network's own padding meets the image's true border alone.
        """
        return [
            (start, min(start + self.side, size), max(0, start - self.halo), min(start + self.side + self.halo, size))
            for start in range(0, size, self.side)
        ]


def apply_in_tiles(
    function: Callable[[Tensor], Tensor], x: Tensor, tiles: Tiles, *, cell: Pair, axes: Pair, into: Pair
) -> Tensor:
    """Return what function gives of x, computed tile by tile.

    Args:
        function: maps windows of x to results of as many positions.
        x: any tensor with two axes of positions.
        tiles: in positions.
        cell: elements that a position has along each of the two axes: in x, and in the result.
        axes: the two axes of x.
        into: the two axes of the result.

    >>> double = lambda x: 2 * x
    >>> x = torch.arange(35.0).reshape(1, 5, 7)
    >>> bool((apply_in_tiles(double, x, Tiles(3, 1), cell=(1, 1), axes=(1, 2), into=(1, 2)) == 2 * x).all())
    True
    """
    height, width = (x.shape[axis] // cell[0] for axis in axes)
    rows = []
    for row in tiles.windows(height):
        band = _cut(x, axes[0], row[2], row[3], cell[0])
        parts = [
            _kept(_kept(function(_cut(band, axes[1], column[2], column[3], cell[0])), into[0], row, cell[1]),
                  into[1], column, cell[1])
            for column in tiles.windows(width)
        ]  # fmt: skip
        rows.append(torch.cat(parts, dim=into[1]))
    return torch.cat(rows, dim=into[0])


def _cut(x: Tensor, axis: int, first: int, last: int, cell: int) -> Tensor:
    return x.narrow(axis, first * cell, (last - first) * cell)


def _kept(result: Tensor, axis: int, window: tuple[int, int, int, int], cell: int) -> Tensor:
    start, stop, first, _ = window
    return result.narrow(axis, (start - first) * cell, (stop - start) * cell)
