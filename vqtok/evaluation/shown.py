"""What the page of an evaluation shows: which images, what they lost, their token maps, how codes are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vqtok.evaluation.charts import Axis, Chart, widths
from vqtok.evaluation.page import Page
from vqtok.evaluation.token_maps import cells_for, code_grid, token_map
from vqtok.evaluation.usage import Usage
from vqtok.images import RGB
from vqtok.types import Tokens

_SHOWN = 768  # greatest side of a picture; of larger images the middle is shown, pixel for pixel
_CHART = 4  # codebooks with a chart


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """An image that the page shows.

    Attributes:
        why: why this one: worst, typical, best.
        original: uint8 [H, W, 3].
        back: uint8 [H, W, 3], what its tokens give back.
        tokens: of this one image.
        line: its numbers.
    """

    why: str
    original: RGB
    back: RGB
    tokens: Tokens
    line: str


def chosen(values: Mapping[str, float], better: str, each: int = 3) -> dict[str, str]:
    """Return the images to show and why, by key: the worst, the ones in the middle, and the best.

    >>> chosen({"a": 1.0, "b": 5.0, "c": 3.0, "d": 4.0, "e": 2.0}, "higher", 1)
    {'a': 'worst', 'c': 'median', 'b': 'best'}
    """
    worst_first = sorted(values, key=lambda key: (values[key] if better == "higher" else -values[key], key))
    middle = max(0, (len(worst_first) - each) // 2)
    parts = {"worst": worst_first[:each], "median": worst_first[middle : middle + each], "best": worst_first[-each:]}
    found: dict[str, str] = {}
    for why, keys in parts.items():
        for key in keys:
            found.setdefault(key, why)
    return found


def difference(original: RGB, back: RGB, factor: int) -> RGB:
    """Return the difference of two images as uint8 [H, W, 3]: grey where they are equal, times a factor, clipped.

    >>> difference(np.full((1, 1, 3), 100, np.uint8), np.full((1, 1, 3), 90, np.uint8), 4)[0, 0].tolist()
    [88, 88, 88]
    """
    signed = factor * (back.astype(np.int32) - original.astype(np.int32))
    return (128 + signed).clip(0, 255).astype(np.uint8)


def difference_factor(images: Sequence[Shown]) -> int:
    """Return one factor for all images, so that they compare: a power of two with nearly all differences in range."""
    if not images:
        return 1
    errors = [np.abs(x.back.astype(np.int16) - x.original).reshape(-1) for x in images]
    large = max(1.0, float(np.median([np.quantile(x, 0.99) for x in errors])))
    return int(2 ** max(0, min(5, int(np.log2(127 / large)))))


def usage_picture(usages: Sequence[Usage]) -> RGB:
    """Return a picture of how often codes occur, a chart for each of the first codebooks."""
    shown = usages[:_CHART]
    width, height, left = 1040, 250, 64
    page = Page(width, height)
    *starts, each = widths(width - left - 16, len(shown), 28)
    most = max(int(usage.counts.max(initial=1)) for usage in shown)
    for k, (start, usage) in enumerate(zip(starts, shown, strict=True)):
        x, y = Axis(0, max(1, usage.used)), Axis(0.7, max(2, 1.3 * most), log=True)
        box = (left + start, 40, left + start + each, 200)
        title = "tokens a code" if len(shown) == 1 else f"codebook {k + 1}"
        chart = Chart(page, box, x, y, title, "codes by frequency", k == 0)
        chart.frame()
        chart.bars(np.arange(usage.used + 1.0), usage.counts.astype(np.float64))
    return page.picture()


def middle(image: RGB) -> tuple[slice, slice]:
    """Return the rows and columns of an image that are shown."""
    top, left = (max(0, (n - _SHOWN) // 2) for n in image.shape[:2])
    return slice(top, top + _SHOWN), slice(left, left + _SHOWN)


def codes_picture(image: Shown) -> RGB:
    """Return the map of an image's first codes, as large as the image is shown."""
    room = (min(image.original.shape[0], _SHOWN), min(image.original.shape[1], _SHOWN))
    cell = cells_for((image.original.shape[0], image.original.shape[1]), image.tokens, room)
    codes: npt.NDArray[np.int64] = code_grid(image.tokens)[..., 0]
    return token_map(codes, cell)
