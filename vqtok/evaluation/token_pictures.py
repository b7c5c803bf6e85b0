"""The picture of a token file: its grids coloured by code, and under them how the codes are used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from vqtok.errors import ConfigError
from vqtok.evaluation.charts import Axis, Chart, widths
from vqtok.evaluation.colours import ACCENT, GRID, SOFT
from vqtok.evaluation.metrics import bits_per_pixel
from vqtok.evaluation.page import Page, shortened, text_width
from vqtok.evaluation.token_maps import cells_for, code_grid, fitted, kept_positions, overlay, token_map
from vqtok.evaluation.usage import Usage, usage_of
from vqtok.images import RGB
from vqtok.types import Tokens

# Pixels: around the page, between panels, the room for maps, the least width of a page without its margins.
_MARGIN, _GAP, _WIDTH, _HEIGHT, _LEAST = 40, 24, 1120, 760, 720
_HEAD, _ABOVE, _CHART, _UNDER = 112, 40, 200, 156  # heights: title, and above, of and under a chart
_BETWEEN, _NUMBERS = 28, 52  # between charts, and left of one for its axis
_IMAGES, _COLUMNS, _CODEBOOKS, _ROWS = 16, 4, 5, 3


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """A picture with a line above it."""

    title: str
    pixels: RGB


def token_picture(tokens: Tokens, photo: RGB | None = None) -> RGB:
    """Return a picture of tokens: maps of the first images, and a histogram for each codebook.

    Args:
        tokens: of at least one image; of images with several codes a position each codebook has a panel, at most five.
        photo: uint8 [H, W, 3], the one image's source: it is shown beside the map, dimmed where tokens were dropped.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ConfigError: no image; a photo for several; tokens of a dynamic tokenizer without the positions that were kept.
    """
    if not len(tokens):
        raise ConfigError("expected at least one image to draw, got none")
    if photo is not None and len(tokens) != 1:
        raise ConfigError(f"expected tokens of one image for a photo, got {len(tokens)} images")
    rows = [_photo_panels(tokens, photo)] if photo is not None else _map_panels(tokens)
    column = max(panel.pixels.shape[1] for row in rows for panel in row)
    usages = usage_of(tokens)[:_CODEBOOKS]
    least = _LEAST if len(usages) == 1 else _WIDTH
    inner = max(least, max(map(len, rows)) * (column + _GAP) - _GAP)
    heights = [max(panel.pixels.shape[0] for panel in row) + _title_height(row) + _GAP for row in rows]
    page = Page(inner + 2 * _MARGIN, _HEAD + sum(heights) + _ABOVE + _CHART + _UNDER)
    _draw_head(page, tokens, inner)
    top = _HEAD
    for row, height in zip(rows, heights, strict=True):
        _draw_row(page, row, top, column)
        top += height
    _draw_usage(page, usages, top + _ABOVE, inner)
    return page.picture()


def _draw_head(page: Page, tokens: Tokens, width: int) -> None:
    single = len(tokens) == 1
    title = PurePosixPath(tokens.keys[0]).name or tokens.keys[0] if single else f"{len(tokens):,} images"
    page.text((_MARGIN, 34), shortened(title, width, 26), 26)
    facts = [f"{tokens.ids.size:,} tokens", f"{bits_per_pixel(tokens):.3g} bits a pixel"]
    if single:
        codebooks, rows, columns = tokens.grids[0].tolist()
        facts.insert(0, f"{tokens.sizes[0, 1]} x {tokens.sizes[0, 0]} pixels")
        facts.insert(1, f"{columns} x {rows} positions" + (f" of {codebooks} codes" if codebooks > 1 else ""))
        if tokens.keep.size:
            facts.insert(2, f"{100 * kept_positions(tokens).mean():.0f} % kept")
    elif len(tokens) > (shown := _shown(tokens)):
        facts.append(f"the first {shown} are drawn, all are counted")
    page.text((_MARGIN, 72), "   ·   ".join(facts), 15, SOFT)


def _shown(tokens: Tokens) -> int:
    """Return of how many images there are maps."""
    return min(len(tokens), _IMAGES if tokens.grids[:, 0].max() == 1 else _ROWS)


def _map_panels(tokens: Tokens) -> list[list[Panel]]:
    """Return rows of maps: one image large, several small; of several codes a position a row an image."""
    shown = tokens[: _shown(tokens)]
    codebooks = min(int(shown.grids[:, 0].max()), _CODEBOOKS)
    columns = min(len(shown), _COLUMNS) if codebooks == 1 else codebooks if len(shown) > 1 else min(codebooks, 3)
    width = (_WIDTH - _GAP * (columns - 1)) // columns
    height = _HEIGHT if columns == 1 else width
    panels = []
    for row in shown:
        grid = code_grid(row)
        for k in range(min(grid.shape[2], codebooks)):
            titles = [row.keys[0]] * (len(tokens) > 1 and k == 0) + [f"codebook {k + 1}"] * (codebooks > 1)
            panels.append(Panel(shortened(", ".join(titles), width, 13), _fitting_map(grid[..., k], width, height)))
    return [panels[i : i + columns] for i in range(0, len(panels), columns)]


def _fitting_map(codes: npt.NDArray[np.int64], width: int, height: int) -> RGB:
    """Return a map that fits; of a grid with more positions than pixels some are left out."""
    step = max(1, -(-codes.shape[0] // height), -(-codes.shape[1] // width))
    codes = codes[::step, ::step]
    side = max(1, min(width // codes.shape[1], height // codes.shape[0]))
    return token_map(codes, (side, side))


def _photo_panels(tokens: Tokens, photo: RGB) -> list[Panel]:
    grid, room = code_grid(tokens), (_HEIGHT, (_WIDTH - _GAP) // 2)
    if grid.shape[0] > room[0] or grid.shape[1] > room[1]:
        raise ConfigError(f"expected a grid of at most {room[0]} x {room[1]} for a photo, got {grid.shape[:2]}")
    cell = cells_for((photo.shape[0], photo.shape[1]), tokens, room)
    kept = overlay(fitted(photo, tokens, cell), kept_positions(tokens), cell)
    return [Panel("kept" if tokens.keep.size else "photo", kept), Panel("codes", token_map(grid[..., 0], cell))]


def _draw_row(page: Page, row: list[Panel], top: int, column: int) -> None:
    for i, panel in enumerate(row):
        left = _MARGIN + i * (column + _GAP)
        if panel.title:
            page.text((left, top), panel.title, 13, SOFT)
        page.panel(left, top + _title_height(row), panel.pixels)


def _title_height(row: list[Panel]) -> int:
    return 24 if row[0].title else 0


def _draw_usage(page: Page, usages: list[Usage], top: int, inner: int) -> None:
    """Draw a histogram for each codebook beside each other, and what it says in words."""
    *starts, width = widths(inner - _NUMBERS, len(usages), _BETWEEN)
    most = max(int(usage.counts.max(initial=1)) for usage in usages)
    for k, (start, usage) in enumerate(zip(starts, usages, strict=True)):
        left, right = _MARGIN + _NUMBERS + start, _MARGIN + _NUMBERS + start + width
        names = [f"codebook {k + 1}"] * (len(usages) > 1) + ["tokens a code"] * (k == 0)
        x, y = Axis(0, max(1, usage.used)), Axis(0.7, max(2, 1.3 * most), log=True)
        chart = Chart(page, (left, top, right, top + _CHART), x, y, ": ".join(names), "codes by frequency", k == 0)
        chart.frame()
        chart.bars(np.arange(usage.used + 1.0), usage.counts.astype(np.float64))
        _draw_share(page, usage, (left, top + _CHART + 58), right - left)


def _draw_share(page: Page, usage: Usage, at: tuple[int, int], width: int) -> None:
    """Draw a bar of which the used codes' share is filled, and the numbers under it."""
    left, top = at
    page.rectangle((left, top, left + width, top + 8), GRID)
    page.rectangle((left, top, left + max(1, width * usage.share), top + 8), ACCENT)
    facts = [
        f"{100 * usage.share:.3g} % of {usage.vocab_size:,} codes used",
        f"{usage.used:,} used, {usage.dead:,} dead",
        f"perplexity {usage.perplexity:,.1f}",
    ]
    lines = ["   ·   ".join(facts)] if text_width("   ·   ".join(facts), 14) <= width else facts
    for i, line in enumerate(lines):
        page.text((left, top + 18 + 20 * i), line, 14)
