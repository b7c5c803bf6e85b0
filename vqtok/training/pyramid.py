"""A photograph at several sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import numpy as np
from PIL import Image

from vqtok import images


class Extent(NamedTuple):
    """Height and width."""

    height: int
    width: int


@final
class Pyramid:
    """A photograph scaled to several short sides, each made when it is asked for.

    Args:
        extents: of the levels.
        level: makes one, by its number: uint8 [H, W, 3].
    """

    def __init__(self, extents: Sequence[Extent], level: Callable[[int], images.RGB]) -> None:
        self.extents, self.level = tuple(extents), level


def pyramid(photo: images.RGB, sides: Sequence[int]) -> Pyramid:
    """Return the levels of a photograph uint8 [H, W, 3]: the sides that it has, or itself if it has none of them.

    >>> [level.width for level in pyramid(np.zeros((40, 60, 3), np.uint8), (64, 40, 20)).extents]
    [60, 30]
    """
    short = min(photo.shape[:2])
    found = [side for side in sides if side <= short] or [short]
    extents = [scaled_extent(Extent(*photo.shape[:2]), side) for side in found]
    return Pyramid(extents, lambda number: short_side(photo, found[number]))


def scaled_extent(extent: Extent, side: int) -> Extent:
    """Return height and width after scaling down to a short side.

    >>> scaled_extent(Extent(40, 60), 20)
    Extent(height=20, width=30)
    """
    scale = min(1.0, side / min(extent))
    return Extent(round(extent.height * scale), round(extent.width * scale))


def short_side(photo: images.RGB, side: int) -> images.RGB:
    """Return a photograph uint8 [H, W, 3] scaled down (bicubic) to a short side; a smaller one as it is.

    >>> short_side(np.zeros((40, 60, 3), np.uint8), 20).shape
    (20, 30, 3)
    """
    extent = Extent(*photo.shape[:2])
    wanted = scaled_extent(extent, side)
    if wanted == extent:
        return photo
    return np.array(Image.fromarray(photo).resize((wanted.width, wanted.height), Image.Resampling.BICUBIC))
