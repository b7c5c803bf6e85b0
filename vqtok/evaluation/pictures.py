"""Pictures for people: side by side, and tokens as colours."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from vqtok.images import RGB
from vqtok.types import Tokens

_MARGIN, _LINE, _INK, _PAPER = 16, 26, (34, 34, 34), (255, 255, 255)
_GOLDEN = 0.6180339887498949


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


def token_map(tokens: Tokens, pixels: int = 8) -> RGB:
    """Return the grid of one image, each code in a colour of its own.

    Args:
        tokens: of one image; of several codes a position the first is drawn.
        pixels: side of a token in the picture.

    Returns:
        uint8 [h * pixels, w * pixels, 3].
    """
    _, height, width = (int(x) for x in tokens.grids[0])
    ids = tokens.ids.reshape(height, width, -1)[..., 0]
    codes, places = np.unique(ids, return_inverse=True)
    return code_colours(codes)[places.reshape(ids.shape)].repeat(pixels, axis=0).repeat(pixels, axis=1)


def code_colours(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return uint8 [n, 3] for codes [n]: hues a golden angle apart, so that neighbouring ids look different."""
    rows = [
        colorsys.hsv_to_rgb(i * _GOLDEN % 1, 0.45 + 0.5 * (i * 7 % 11) / 10, 0.6 + 0.4 * (i * 5 % 13) / 12)
        for i in codes.tolist()
    ]
    return (np.array(rows) * 255).astype(np.uint8)


def contact_sheet(tokens: Tokens, columns: int = 4, limit: int = 16) -> Image.Image:
    """Return the token maps of the first images as one picture, each under its key."""
    shown = tokens[:limit]
    maps = [(row.keys[0], token_map(row)) for row in shown]
    rows = [side_by_side(maps[i : i + columns], []) for i in range(0, len(maps), columns)]
    picture = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), _PAPER)
    top = 0
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height
    return picture


def _font(size: int) -> ImageFont.FreeTypeFont:
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))


def _width(font: ImageFont.FreeTypeFont, text: str) -> int:
    return math.ceil(font.getlength(text))
