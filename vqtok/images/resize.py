"""The ways to a square of a given side, on Pillow's resampling; their roundings are part of what they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image


def center(array: npt.NDArray[np.uint8], size: int, filter: str) -> npt.NDArray[np.uint8]:
    """Resize the short side to size and cut a square from the centre, rounding as torchvision does.

    With short and long side s and l, the long one becomes floor(size * l / s), and the cut begins at
    round((side - size) / 2), half to even.

    Args:
        array: uint8 [H, W, 3].
        size: side of the square.
        filter: name of a Pillow filter.

    Returns:
        uint8 [size, size, 3].

    >>> center(np.zeros((4, 9, 3), np.uint8), 2, "box").shape
    (2, 2, 3)
    """
    image = Image.fromarray(array)
    short = min(image.size)
    image = image.resize((size * image.width // short, size * image.height // short), _named(filter))
    return _cut(image, round((image.width - size) / 2), round((image.height - size) / 2), size)


def adm(array: npt.NDArray[np.uint8], size: int, filter: str) -> npt.NDArray[np.uint8]:
    """Halve with a box filter while the short side is at least twice size, resize the rest, cut from the centre.

    Halves round down; the last resize goes to round(side * (size / short)) in float64, half to even; the cut begins at
    floor((side - size) / 2).

    Args:
        array: uint8 [H, W, 3].
        size: side of the square.
        filter: name of a Pillow filter, for the last resize.

    Returns:
        uint8 [size, size, 3].

    >>> adm(np.zeros((9, 20, 3), np.uint8), 2, "bicubic").shape
    (2, 2, 3)
    """
    image = Image.fromarray(array)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), _named(filter))
    return _cut(image, (image.width - size) // 2, (image.height - size) // 2, size)


def stretch(array: npt.NDArray[np.uint8], size: int, filter: str) -> npt.NDArray[np.uint8]:
    """Resize to a square without keeping proportions.

    Args:
        array: uint8 [H, W, 3].
        size: side of the square.
        filter: name of a Pillow filter.

    Returns:
        uint8 [size, size, 3].

    >>> stretch(np.zeros((4, 9, 3), np.uint8), 2, "lanczos").shape
    (2, 2, 3)
    """
    return np.array(Image.fromarray(array).resize((size, size), _named(filter)))


RESIZES: dict[str, Callable[[npt.NDArray[np.uint8], int, str], npt.NDArray[np.uint8]]] = {
    "center": center,
    "adm": adm,
    "stretch": stretch,
}


def _named(filter: str) -> Image.Resampling:
    return Image.Resampling[filter.upper()]


def _cut(image: Image.Image, left: int, top: int, size: int) -> npt.NDArray[np.uint8]:
    return np.array(image.crop((left, top, left + size, top + size)))
