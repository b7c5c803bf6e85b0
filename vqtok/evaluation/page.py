"""A page to draw on: lines, shapes and text at twice the size, so that edges are smooth; panels pixel for pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vqtok.errors import escape
from vqtok.evaluation.colours import INK, PAPER, Colour
from vqtok.images import RGB

Point = tuple[float, float]
_SCALE = 2


class Page:
    """A white page of width x height pixels; what is drawn later lies above, panels above everything.

    >>> page = Page(20, 10)
    >>> page.rectangle((2, 2, 4, 5), (255, 0, 0))
    >>> page.picture()[2:6, 3].tolist()
    [[255, 0, 0], [255, 0, 0], [255, 0, 0], [255, 255, 255]]
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._canvas = Image.new("RGB", (width * _SCALE, height * _SCALE), PAPER)
        self._draw = ImageDraw.Draw(self._canvas)
        self._panels: list[tuple[int, int, RGB]] = []

    def text(self, at: Point, text: str, size: int = 14, ink: Colour = INK, anchor: str = "la") -> None:
        """Write one line of text; the anchor is Pillow's, ``la`` = left end of the top."""
        self._draw.text((at[0] * _SCALE, at[1] * _SCALE), escape(text), ink, font(size * _SCALE), anchor)

    def rectangle(self, box: tuple[float, float, float, float], ink: Colour) -> None:
        """Fill left, top, right, bottom; right and bottom are the first that are not filled."""
        left, top, right, bottom = (round(x * _SCALE) for x in box)
        if right > left and bottom > top:
            self._draw.rectangle((left, top, right - 1, bottom - 1), ink)

    def line(self, points: Sequence[Point], ink: Colour, width: float = 1.0) -> None:
        """Draw through the points."""
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self._draw.line(scaled, ink, max(1, round(width * _SCALE)), joint="curve")

    def dot(self, at: Point, radius: float, ink: Colour) -> None:
        """Fill a circle."""
        x, y, r = (v * _SCALE for v in (*at, radius))
        self._draw.ellipse((x - r, y - r, x + r, y + r), ink)

    def ring(self, at: Point, radius: float, ink: Colour, width: float = 1.0) -> None:
        """Draw a circle."""
        x, y, r = (v * _SCALE for v in (*at, radius))
        self._draw.ellipse((x - r, y - r, x + r, y + r), outline=ink, width=round(width * _SCALE))

    def panel(self, left: int, top: int, pixels: RGB) -> None:
        """Put uint8 [H, W, 3] on the page as it is."""
        self._panels.append((left, top, pixels))

    def picture(self) -> RGB:
        """Return the page as uint8 [height, width, 3]."""
        picture = self._canvas.reduce(_SCALE)
        for left, top, pixels in self._panels:
            picture.paste(Image.fromarray(pixels), (left, top))
        return np.asarray(picture)


def font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font, which is everywhere the same."""
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))


def text_width(text: str, size: int) -> int:
    """Return how wide one line of text is."""
    return math.ceil(font(size * _SCALE).getlength(escape(text)) / _SCALE)


def shortened(text: str, width: int, size: int) -> str:
    """Return text that fits a width: of a longer one the middle is left out.

    >>> shortened("a/very/long/name.jpg", 100, 14), shortened("name.jpg", 100, 14)
    ('a/very ... me.jpg', 'name.jpg')
    """
    if text_width(text, size) <= width:
        return text
    keep = len(text)
    while keep > 2 and text_width(_without_middle(text, keep), size) > width:
        keep -= 1
    return _without_middle(text, keep)


def _without_middle(text: str, keep: int) -> str:
    return f"{text[: keep - keep // 2]} ... {text[len(text) - keep // 2 :]}"
