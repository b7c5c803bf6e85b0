"""Several views of one image, each a box that is recorded: the middle, LlamaGen's ten, or random ones by seed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from vqtok.errors import ConfigError

_RGB = npt.NDArray[np.uint8]
_MARGIN = 1.1  # of LlamaGen's ten crops: the square they are cut from, over the side of a crop
_RANDOM = re.compile(r"random:([1-9][0-9]{0,3})")
_SMALLEST = 0.5  # side of a random crop, of the short side


@dataclass(frozen=True, slots=True)
class Box:
    """A square of an image as it was decoded, EXIF applied: what one row of a shard shows.

    Attributes:
        top: first row.
        left: first column.
        side: height and width.
        mirror: whether left and right were exchanged after the cut.
    """

    top: int
    left: int
    side: int
    mirror: bool = False

    def record(self) -> dict[str, object]:
        """Return the box as JSON."""
        return {"top": self.top, "left": self.left, "side": self.side, "mirror": self.mirror}


def views(crop: str) -> int:
    """Return how many rows a crop makes of an image; ConfigError when there is no such crop.

    >>> views("center"), views("ten"), views("random:3")
    (1, 10, 3)
    """
    if crop in ("none", "center"):
        return 1
    if crop == "ten":
        return 10
    if found := _RANDOM.fullmatch(crop):
        return int(found[1])
    raise ConfigError(f"expected a crop of center, ten or random:N (N in 1..9999), got {crop!r}")


def boxes(crop: str, array: _RGB, seed: int) -> list[Box]:
    """Return the boxes of an image.

    ``center`` is the largest square in the middle. ``ten`` are the four corners and the middle of that square, of a
    side 1.1 times smaller, and their mirror images. ``random:N`` are squares of half to all of the short side, at any
    place, mirrored or not, drawn from the seed and the sha256 of the pixels: equal pixels give equal boxes.

    Args:
        crop: ``center``, ``ten`` or ``random:N``.
        array: uint8 [H, W, 3].
        seed: of random crops.

    >>> boxes("center", np.zeros((4, 9, 3), np.uint8), 0)
    [Box(top=0, left=2, side=4, mirror=False)]
    """
    height, width = array.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    if crop == "center":
        return [Box(top, left, short)]
    if crop == "ten":
        side = max(1, round(short / _MARGIN))
        rest = short - side
        corners = [(0, 0), (0, rest), (rest, 0), (rest, rest), (rest // 2, rest // 2)]
        return [Box(top + y, left + x, side, mirror) for mirror in (False, True) for y, x in corners]
    numbers = _numbers(array, seed)
    return [_random(height, width, short, numbers) for _ in range(views(crop))]


def _random(height: int, width: int, short: int, numbers: Iterator[float]) -> Box:
    side = max(1, round(short * (_SMALLEST + (1 - _SMALLEST) * next(numbers))))
    top = int(next(numbers) * (height - side + 1))
    left = int(next(numbers) * (width - side + 1))
    return Box(top, left, side, next(numbers) < 0.5)


def _numbers(array: _RGB, seed: int) -> Iterator[float]:
    """Yield numbers in [0, 1) of a counter: no library's generator, whose numbers change with its version."""
    pixels = hashlib.sha256(f"{seed}:{array.shape}:".encode() + np.ascontiguousarray(array).tobytes()).digest()
    counter = 0
    while True:
        block = hashlib.sha256(pixels + counter.to_bytes(8, "big")).digest()
        yield from (int.from_bytes(block[i : i + 6], "big") / 2**48 for i in range(0, 30, 6))
        counter += 1


def cut(array: _RGB, box: Box, size: int, filter: str) -> _RGB:
    """Return what a box shows, resized to size x size by one of Pillow's filters."""
    part = Image.fromarray(array).crop((box.left, box.top, box.left + box.side, box.top + box.side))
    resized = np.array(part if box.side == size else part.resize((size, size), Image.Resampling[filter.upper()]))
    return np.ascontiguousarray(resized[:, ::-1]) if box.mirror else resized
