"""Tokens as colours: the map of a grid, and what a dynamic tokenizer kept, laid over the photograph."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from vqtok.errors import ConfigError
from vqtok.evaluation.colours import EMPTY, INK, PAPER, code_colours
from vqtok.images import RGB
from vqtok.types import Tokens

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Cell = tuple[int, int]
T = TypeVar("T", bound=np.generic)

# Side of a token from which neighbours stand a pixel apart, and from which what was kept has an outline, 2 pixels wide.
_GAP_FROM, _OUTLINE_FROM = 10, 6


def code_grid(tokens: Tokens) -> Ints:
    """Return the ids of one image where they lie: int64 [h, w, Q], -1 where a dynamic tokenizer kept nothing.

    Raises:
        ConfigError: fewer tokens than positions, and no selection that says which.

    >>> ids, keep = np.array([5, 6]), np.array([True, False, True])
    >>> tokens = Tokens(ids, np.array([0, 2]), np.array([[1, 1, 3]]), np.array([[14, 42]]), 8, ("a",), "", keep=keep)
    >>> code_grid(tokens)[..., 0].tolist()
    [[5, -1, 6]]
    """
    codebooks, height, width = (int(x) for x in tokens.grids[0])
    grid = np.full((height, width, codebooks), -1, np.int64)
    kept = kept_positions(tokens)
    if kept.sum() * codebooks != tokens.ids.size:
        raise ConfigError(
            f"expected tokens in grids to draw, or with the positions that were kept, got {tokens.ids.size} tokens "
            f"for {height} x {width} positions of {tokens.keys[0]!r}"
        )
    grid[kept] = tokens.ids.reshape(-1, codebooks)
    return grid


def kept_positions(tokens: Tokens) -> Mask:
    """Return bool [h, w] of one image: the positions that a dynamic tokenizer kept, all for grid tokenizers."""
    shape = tuple(int(x) for x in tokens.grids[0, 1:])
    return tokens.keep.reshape(shape) if tokens.keep.size else np.ones(shape, np.bool_)


def token_map(codes: Ints, cell: Cell) -> RGB:
    """Return a picture of codes [h, w], each in its colour, -1 empty.

    Args:
        codes: of one codebook.
        cell: height and width of a token in the picture; large ones stand a pixel apart.

    Returns:
        uint8 [h * cell height, w * cell width, 3].
    """
    found, places = np.unique(codes, return_inverse=True)
    colours = np.where((found >= 0)[:, None], code_colours(found), np.array(EMPTY, np.uint8))
    picture = _enlarged(colours[places.reshape(codes.shape)], cell)
    if min(cell) >= _GAP_FROM:
        picture[cell[0] - 1 :: cell[0]] = PAPER
        picture[:, cell[1] - 1 :: cell[1]] = PAPER
    return picture


def overlay(photo: RGB, kept: Mask, cell: Cell) -> RGB:
    """Return a photograph with what was kept as it is and outlined, and what was dropped pale and grey.

    A grey of 0.299 R + 0.587 G + 0.114 B keeps 35 % of its distance to white. Nothing is outlined where all was kept.

    Args:
        photo: uint8 [h * cell height, w * cell width, 3], as `fitted` gives it.
        kept: bool [h, w].
        cell: height and width of a patch in the picture.
    """
    if kept.all():
        return photo.copy()
    inside = _enlarged(kept, cell)
    grey = photo @ np.array([0.299, 0.587, 0.114])
    pale = np.rint(255 - 0.35 * (255 - grey)).astype(np.uint8)
    picture = np.where(inside[..., None], photo, pale[..., None])
    if min(cell) >= _OUTLINE_FROM:
        height, width = inside.shape
        around = np.pad(inside, 2)
        core = np.all([around[i : i + height, j : j + width] for i in (0, 2, 4) for j in (0, 2, 4)], axis=0)
        picture[inside & ~core] = INK
    return picture


def cells_for(photo: Cell, tokens: Tokens, room: Cell) -> Cell:
    """Return the height and width of a token for a photograph in its own shape to fill a room with its grid.

    Args:
        photo: height and width of the photograph.
        tokens: of one image.
        room: greatest height and width of the whole grid.
    """
    rows, columns, size, patch = _geometry(tokens)
    shape = photo[0] / size[0] * patch[0] / (photo[1] / size[1] * patch[1])
    width = min(room[1] / columns, room[0] / rows / shape)
    return max(1, int(width * shape)), max(1, int(width))


def fitted(photo: RGB, tokens: Tokens, cell: Cell) -> RGB:
    """Return a photograph as the grid of one image lies on it: uint8 [h * cell height, w * cell width, 3].

    The photograph is taken as the whole of what was tokenized: stretched when its shape is another, and continued at
    the bottom and right where the grid reaches beyond it.
    """
    rows, columns, size, patch = _geometry(tokens)
    height, width = (max(1, round(n * c / p)) for n, c, p in zip(size, cell, patch, strict=True))
    scaled = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.LANCZOS))
    missing = (rows * cell[0] - height, columns * cell[1] - width)
    return np.pad(scaled, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")


def _geometry(tokens: Tokens) -> tuple[int, int, Cell, Cell]:
    """Return rows and columns of one image's grid, the image's size and its patches' size."""
    rows, columns = (int(x) for x in tokens.grids[0, 1:])
    size = (int(tokens.sizes[0, 0]), int(tokens.sizes[0, 1]))
    return rows, columns, size, patch_size(size, (rows, columns))


def patch_size(size: Cell, grid: Cell) -> Cell:
    """Return how many pixels a token stands for, each way, which a token file does not say.

    Where the grid divides the size it is the quotient. Elsewhere the image was padded, and several factors would give
    this grid: the power of two among them, or the smallest.

    >>> patch_size((224, 224), (16, 16)), patch_size((37, 50), (5, 7)), patch_size((33, 33), (5, 5))
    ((14, 14), (8, 8), (8, 8))
    """
    if size[0] % grid[0] == 0 and size[1] % grid[1] == 0:
        return size[0] // grid[0], size[1] // grid[1]
    low = max(math.ceil(n / g) for n, g in zip(size, grid, strict=True))
    high = min(math.ceil(n / (g - 1)) - 1 if g > 1 else 2 * n for n, g in zip(size, grid, strict=True))
    found = next((1 << i for i in range(17) if low <= 1 << i <= high), low)
    return found, found


def _enlarged(x: npt.NDArray[T], cell: Cell) -> npt.NDArray[T]:
    return x.repeat(cell[0], axis=0).repeat(cell[1], axis=1)
