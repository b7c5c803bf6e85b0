"""Pictures of a training: validation images above what their tokens give back, and how the first of them came to be."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vqtok.errors import ConfigError
from vqtok.evaluation.colours import PAPER, SOFT
from vqtok.evaluation.metrics import psnr
from vqtok.evaluation.page import Page
from vqtok.evaluation.token_maps import code_grid, patch_size, token_map
from vqtok.images import RGB
from vqtok.store.commit import commit, output_errors
from vqtok.types import Tokens

# Pixels: a panel's side, around the page, between panels, the title, and the line above a row of panels. Pictures of
# earlier validations are cut at these places: of a run begun with others, `growth_picture` would cut beside them.
_SIDE, _MARGIN, _GAP, _HEAD, _LINE = 256, 24, 12, 52, 26
_IMAGES, _GROWTH, _COLUMNS = 8, 23, 6


def picture_path(run: Path, step: int) -> Path:
    """Return where the picture of a validation lies.

    >>> picture_path(Path("run"), 1000).as_posix()
    'run/pictures/00001000.png'
    """
    return run / "pictures" / f"{step:08d}.png"


def validation_picture(
    originals: Sequence[RGB], reconstructions: Sequence[RGB], tokens: Sequence[Tokens], path: Path
) -> RGB:
    """Write and return the picture of a validation: `validation_grid` with the step that the path names.

    Raises:
        OutputError: the picture cannot be written.
    """
    picture = validation_grid(originals, reconstructions, tokens, f"step {int(path.stem):,}")
    write_picture(picture, path)
    return picture


def validation_grid(
    originals: Sequence[RGB], reconstructions: Sequence[RGB], tokens: Sequence[Tokens], title: str
) -> RGB:
    """Return up to eight images, below each what its tokens give back, below that the tokens as colours.

    Of a large image the middle 256 x 256 pixels are shown as they are, small ones are enlarged by a whole factor: what
    a tokenizer does to edges and texture would vanish in a smaller copy. PSNR is that of the whole image.

    Args:
        originals: uint8 [H, W, 3] each, at least one.
        reconstructions: of the same sizes.
        tokens: of one image each, as ``tokenizer.tokenize(originals)`` gives them; empty for no maps.
        title: above all.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ConfigError: no image, or other numbers of reconstructions or tokens.
    """
    counts = (len(originals), len(reconstructions), len(tokens) or len(originals))
    if len(set(counts)) != 1 or not counts[0]:
        raise ConfigError(f"expected as many originals, reconstructions and tokens, got {counts}")
    shown = min(len(originals), _IMAGES)
    found = [psnr(originals[i], reconstructions[i]) for i in range(shown)]
    maps = [_token_panel(row) for row, _ in zip(tokens, range(shown), strict=False)]
    page = Page(_left(shown) - _GAP + _MARGIN, _top(3 if any(x is not None for x in maps) else 2) - _LINE + _MARGIN)
    page.text((_MARGIN, 14), f"{title}   ·   {_decibels(float(np.mean(found)))} over these {shown}", 20)
    for i in range(shown):
        _draw(page, i, 0, "original" if i == 0 else "", originals[i])
        _draw(page, i, 1, f"{'from tokens, ' if i == 0 else ''}{_decibels(found[i])}", reconstructions[i])
    for i, drawn in enumerate(maps):
        if drawn is not None:
            _draw(page, i, 2, "tokens" if i == 0 else "", drawn[: originals[i].shape[0], : originals[i].shape[1]])
    return page.picture()


def growth_picture(run: Path) -> RGB | None:
    """Return the first validation image at each validation so far, from the pictures in the run; None without any.

    Of more than 23 validations some are left out, evenly; the first and the last are always there, and the original.
    """
    paths = sorted((run / "pictures").glob("[0-9]*.png"))
    kept = sorted({round(i) for i in np.linspace(0, len(paths) - 1, min(len(paths), _GROWTH)).tolist()})
    cells = [(f"step {int(paths[i].stem):,}", cell) for i in kept if (cell := _cut(paths[i], 1)) is not None]
    if not cells:
        return None
    original = _cut(paths[kept[-1]], 0)
    cells += [("original", original)] if original is not None else []
    columns = min(len(cells), _COLUMNS)
    page = Page(_left(columns) - _GAP + _MARGIN, _top(math.ceil(len(cells) / columns)) - _LINE + _MARGIN)
    page.text((_MARGIN, 14), "the first validation image, from its tokens", 20)
    for i, (name, cell) in enumerate(cells):
        _draw(page, i % columns, i // columns, name, cell)
    return page.picture()


def draw_growth(run: Path) -> None:
    """Write ``pictures/growth.png`` of a run anew, once there are pictures of validations.

    Raises:
        OutputError: the picture cannot be written.
    """
    picture = growth_picture(run)
    if picture is not None:
        write_picture(picture, run / "pictures" / "growth.png")


def write_picture(pixels: RGB, path: Path) -> None:
    """Write uint8 [H, W, 3] as PNG, in one move; its folder is made when it is not there.

    Raises:
        OutputError: the picture cannot be written.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    commit(path, buffer.getvalue(), overwrite=True)


def _left(column: int) -> int:
    return _MARGIN + column * (_SIDE + _GAP)


def _top(row: int) -> int:
    """Return where a row of panels begins, below its line of text."""
    return _HEAD + _LINE + row * (_SIDE + _LINE)


def _draw(page: Page, column: int, row: int, text: str, pixels: RGB) -> None:
    page.text((_left(column), _top(row) - _LINE + 6), text, 13, SOFT)
    page.panel(_left(column), _top(row), _window(pixels))


def _window(pixels: RGB) -> RGB:
    """Return the middle of an image, enlarged by a whole factor if it is small."""
    height, width = pixels.shape[:2]
    top, left = max(0, (height - _SIDE) // 2), max(0, (width - _SIDE) // 2)
    factor = max(1, _SIDE // max(height, width))
    return pixels[top : top + _SIDE, left : left + _SIDE].repeat(factor, axis=0).repeat(factor, axis=1)


def _token_panel(tokens: Tokens) -> RGB | None:
    """Return the map of one image's tokens, of at least its size; None where they lie in no one grid."""
    try:
        grid = code_grid(tokens)
    except ConfigError:
        return None
    size = (int(tokens.sizes[0, 0]), int(tokens.sizes[0, 1]))
    return token_map(grid[..., 0], patch_size(size, (grid.shape[0], grid.shape[1])))


def _decibels(value: float) -> str:
    return f"{value:.2f} dB" if math.isfinite(value) else "nothing lost"


def _cut(path: Path, row: int) -> RGB | None:
    """Return the first panel of a row of a validation's picture, without paper around it; None if it is not one."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    cell = pixels[_top(row) : _top(row) + _SIDE, _MARGIN : _MARGIN + _SIDE]
    drawn = (cell != PAPER).any(axis=2)
    if cell.shape != (_SIDE, _SIDE, 3) or not drawn.any():
        return None
    return cell[: 1 + int(np.flatnonzero(drawn.any(axis=1))[-1]), : 1 + int(np.flatnonzero(drawn.any(axis=0))[-1])]
