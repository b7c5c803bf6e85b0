"""Charts on a page: one box, two axes, few marks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vqtok.evaluation.colours import ACCENT, GRID, SOFT, Colour
from vqtok.evaluation.page import Page

Floats = npt.NDArray[np.float64]
Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values along an edge.

    Attributes:
        low: value at its start.
        high: value at its end, above low.
        log: whether equal steps are equal factors; low is above 0 then.

    >>> Axis(0, 50).ticks(), Axis(0.5, 2000, log=True).ticks()
    ([0, 10, 20, 30, 40, 50], [1.0, 10.0, 100.0, 1000.0])
    """

    low: float
    high: float
    log: bool = False

    def share(self, values: Floats | float) -> Floats:
        """Return how far along the axis values lie: 0 at its start, 1 at its end."""
        low, high, found = (np.log(x) if self.log else np.asarray(x) for x in (self.low, self.high, values))
        return (found - low) / (high - low)

    def ticks(self, most: int = 6) -> list[float]:
        """Return round values on the axis, at most that many."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.floor(math.log10(self.high) + 1e-9)
            step = max(1, math.ceil((last - first) / most))
            leads = (1, 2, 5) if last - first < 2 else (1,)
            powers = (float(f"1e{i}") for i in range(first, last + 1, step))
            return [lead * x for x in powers for lead in leads if self.low <= lead * x <= self.high]
        rough = (self.high - self.low) / most
        unit = 10 ** math.floor(math.log10(rough))
        step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]


@dataclass(frozen=True, slots=True)
class Chart:
    """A box on a page with two axes; marks are in the axes' values.

    Attributes:
        page: where it is drawn.
        box: left, top, right, bottom of the plotted area in pixels of the page; names and numbers lie around it.
        x: axis along the bottom.
        y: axis along the left side.
        title: what the heights are; it stands above them.
        below: what the x axis is.
        numbers: whether the y axis has any; charts in a row with one y axis need them once.
    """

    page: Page
    box: Box
    x: Axis
    y: Axis
    title: str
    below: str
    numbers: bool = True

    def frame(self) -> None:
        """Draw title, axes, round values and lines to read them by."""
        left, top, right, bottom = self.box
        self.page.text((left, top - 30), self.title, 15)
        for value in self.y.ticks(max(2, (bottom - top) // 30)):
            y = self.at_y(value)
            self.page.line([(left, y), (right, y)], GRID)
            if self.numbers:
                self.page.text((left - 8, y), number(value), 12, SOFT, "rm")
        for value in self.x.ticks(max(2, (right - left) // 70)):
            self.page.text((self.at_x(value), bottom + 7), number(value), 12, SOFT, "ma")
        self.page.line([(left, bottom), (right, bottom)], SOFT)
        self.page.text(((left + right) / 2, bottom + 25), self.below, 13, SOFT, "ma")

    def at_x(self, value: float) -> float:
        """Return where a value of the x axis is on the page."""
        return self.box[0] + float(self.x.share(value)) * (self.box[2] - self.box[0])

    def at_y(self, value: float) -> float:
        """Return where a value of the y axis is on the page."""
        return self.box[3] - float(self.y.share(value)) * (self.box[3] - self.box[1])

    def bars(self, edges: Floats, heights: Floats, ink: Colour = ACCENT) -> None:
        """Fill bars between edges [n + 1] of heights [n], with gaps where there is room for them."""
        roomy = (self.box[2] - self.box[0]) / max(1, len(heights)) >= 6
        for start, end, height in zip(edges[:-1].tolist(), edges[1:].tolist(), heights.tolist(), strict=True):
            left, right = self.at_x(start), self.at_x(end)
            if roomy:
                left, right = round(left), round(right) - 1
            if height > self.y.low:
                self.page.rectangle((left, self.at_y(height), right, self.box[3]), ink)

    def curve(self, xs: Floats, ys: Floats, ink: Colour = ACCENT) -> None:
        """Draw a line through points; of more than a pixel can show, one every half pixel."""
        step = max(1, len(xs) // (2 * (self.box[2] - self.box[0])))
        kept = [*range(0, len(xs), step), len(xs) - 1]
        self.page.line([(self.at_x(float(xs[i])), self.at_y(float(ys[i]))) for i in kept], ink, 2)


def number(value: float) -> str:
    """Return a number as people read it.

    >>> [number(x) for x in (0, 8192, 12000000, 0.05, 1.5, 2e-7)]
    ['0', '8,192', '12,000,000', '0.05', '1.5', '2e-07']
    """
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.3g}"


def histogram(values: Floats, bins: int) -> tuple[Floats, Floats]:
    """Return edges [bins + 1] and counts [bins] of values [n], from 0 to the largest."""
    counts, edges = np.histogram(values, bins, (0.0, max(float(values.max(initial=0)), 1e-12)))
    return edges, counts.astype(np.float64)


def widths(total: int, parts: int, gap: int) -> Sequence[int]:
    """Return where each of equal parts of a width starts, with gaps between them, and how wide they are at the end.

    >>> widths(100, 3, 5)
    [0, 35, 70, 30]
    """
    width = (total - gap * (parts - 1)) // parts
    return [*(i * (width + gap) for i in range(parts)), width]
