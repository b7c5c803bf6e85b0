"""Pictures for people: side by side, with the numbers under them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from PIL import Image, ImageDraw, ImageFont

from vqtok.images import RGB

_MARGIN, _LINE, _INK, _PAPER = 16, 26, (34, 34, 34), (255, 255, 255)


def side_by_side(panels: Sequence[tuple[str, RGB]], lines: Sequence[str]) -> Image.Image:
    """Return a picture of titled panels in a row, and lines of text under them.

    Args:
        panels: (title, uint8 [H, W, 3]) each; they are drawn at their true size.
        lines: text under the panels.
    """
    font = _font(18)
    widths = [max(panel.shape[1], _width(font, title)) for title, panel in panels]
    width = max([sum(widths) + _MARGIN * (len(panels) + 1), *(_width(font, line) + 2 * _MARGIN for line in lines)])
    top = _MARGIN // 2 + _LINE
    bottom = top + max(panel.shape[0] for _, panel in panels) + _MARGIN // 2
    picture = Image.new("RGB", (width, bottom + _LINE * len(lines) + _MARGIN // 2), _PAPER)
    draw = ImageDraw.Draw(picture)
    left = _MARGIN
    for (title, panel), column in zip(panels, widths, strict=True):
        draw.text((left, _MARGIN // 2), title, _INK, font)
        picture.paste(Image.fromarray(panel), (left, top))
        left += column + _MARGIN
    for i, line in enumerate(lines):
        draw.text((_MARGIN, bottom + i * _LINE), line, _INK, font)
    return picture


def _font(size: int) -> ImageFont.FreeTypeFont:
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))


def _width(font: ImageFont.FreeTypeFont, text: str) -> int:
    return math.ceil(font.getlength(text))
