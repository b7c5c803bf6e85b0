"""Images to tokens and back one by one, in memory that does not grow with their number."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from vqtok import images
from vqtok.errors import NonFiniteLatents, out_of_memory
from vqtok.store.token_keys import path_key
from vqtok.types import Tokens, concatenate

if TYPE_CHECKING:
    from vqtok.image_tokenizer import ImageTokenizer

# Pixels that may wait for a micro-batch to fill: 200 MB. It decides when images go through, never what comes out.
WAITING = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """The tokens of one image before it has a name.

    Attributes:
        ids: int64 [T].
        grid: (Q, h, w).
        keep: bool [h * w], the positions that a dynamic tokenizer kept; [0] for grid tokenizers.
    """

    ids: npt.NDArray[np.int64]
    grid: tuple[int, int, int]
    keep: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))


def grid_row(ids: npt.NDArray[np.int64]) -> Row:
    """Return the row of a grid tokenizer's ids [h, w] or [h, w, Q]."""
    return Row(ids.reshape(-1), (ids.shape[2] if ids.ndim == 3 else 1, ids.shape[0], ids.shape[1]))


def tokenize(
    tokenizer: ImageTokenizer,
    arrays: Iterable[tuple[str, images.RGB]],
    refuse: Callable[[str, Exception], None] | None = None,
) -> Iterator[Tokens]:
    """Tokenize named uint8 arrays [H, W, 3] as they come, one `Tokens` an image.

    Equal sizes share micro-batches, so the order may change; `collect` restores it. At most `WAITING` pixels wait for
    others of their size; then the largest group goes through as it is, filled up.

    Args:
        tokenizer: the model.
        arrays: key and uint8 [H, W, 3] of each image.
        refuse: called with key and error of an image for which memory does not suffice or whose latents are not finite;
            the others go on. Without it the error is raised.
    """
    empty = tokenizer.no_tokens()
    waiting: dict[tuple[int, int], list[tuple[str, images.RGB]]] = defaultdict(list)
    held = 0
    for key, array in arrays:
        shape = images.padded_size((array.shape[0], array.shape[1]), tokenizer.spec)
        waiting[shape].append((key, array))
        held += math.prod(shape)
        full = len(waiting[shape]) == tokenizer.micro_batch(math.prod(shape))
        if full or held > WAITING:
            chosen = shape if full else max(waiting, key=lambda shape: len(waiting[shape]) * math.prod(shape))
            rows = waiting.pop(chosen)
            held -= len(rows) * math.prod(chosen)
            yield from _tokenize_or_refuse(tokenizer, rows, empty, refuse)
    for rows in waiting.values():
        yield from _tokenize_or_refuse(tokenizer, rows, empty, refuse)


def _tokenize_or_refuse(
    tokenizer: ImageTokenizer,
    rows: list[tuple[str, images.RGB]],
    empty: Tokens,
    refuse: Callable[[str, Exception], None] | None,
) -> list[Tokens]:
    try:
        return _tokenize_equal(tokenizer, rows, empty)
    except Exception as error:
        if refuse is None or not blames_image(error):
            raise
        if len(rows) == 1:
            refuse(rows[0][0], error)
            return []
    # One of several is to blame: only that one is refused.
    return [found for row in rows for found in _tokenize_or_refuse(tokenizer, [row], empty, refuse)]


def blames_image(error: Exception) -> bool:
    """Tell whether another image may do where this one raised: its latents or its memory were the reason."""
    return isinstance(error, NonFiniteLatents) or out_of_memory(error)


def _tokenize_equal(tokenizer: ImageTokenizer, rows: list[tuple[str, images.RGB]], empty: Tokens) -> list[Tokens]:
    pixels = torch.from_numpy(np.stack([images.to_pixels(array, tokenizer.spec) for _, array in rows]))
    return [
        replace(
            empty,
            ids=row.ids,
            offsets=np.array([0, row.ids.size]),
            grids=np.array([row.grid]),
            sizes=np.array([array.shape[:2]]),
            keys=(key,),
            keep=row.keep,
        )
        for (key, array), row in zip(rows, tokenizer.tokenize_pixels(pixels), strict=True)
    ]


def collect(tokenizer: ImageTokenizer, rows: Iterable[Tokens], keys: Iterable[str]) -> Tokens:
    """Put streamed rows together, in the order of keys; keys without a row are left out."""
    by_key = {row.keys[0]: row for row in rows}
    return concatenate([tokenizer.no_tokens(), *(by_key[key] for key in keys if key in by_key)])


def detokenize(tokenizer: ImageTokenizer, tokens: Tokens) -> Iterator[images.RGB]:
    """Yield the images of tokens in order as uint8 arrays [H, W, 3]; neighbours of one grid share micro-batches."""
    tokenizer.check_tokens(tokens)
    start = 0
    while start < len(tokens):
        _, h, w = (int(x) for x in tokens.grids[start])
        length = tokenizer.micro_batch(h * w * tokenizer.factor**2)
        equal = (tokens.grids[start : start + length] == tokens.grids[start]).all(axis=1)
        stop = start + (len(equal) if equal.all() else int(equal.argmin()))
        rows = tokens[start:stop]
        pixels = tokenizer.detokenize_rows(rows).cpu().numpy()
        for image, (height, width) in zip(pixels, rows.sizes.tolist(), strict=True):
            yield images.from_pixels(image, tokenizer.spec, (height, width))
        start = stop


def key_of(source: images.Source, index: int) -> str:
    """Return what an image is called in a token file: its path as given, or its number in the call."""
    return path_key(os.fsdecode(source)) if isinstance(source, str | os.PathLike) else str(index)


def unique_keys(keys: Iterable[str]) -> tuple[str, ...]:
    """Return keys, with ``#2``, ``#3``, ... appended where one comes again.

    >>> unique_keys(["a", "b", "a"])
    ('a', 'b', 'a#2')
    """
    taken: dict[str, int] = {}  # in the order of the keys, each with the last number that was tried for it
    for key in keys:
        name = key
        while name in taken:
            taken[key] += 1
            name = f"{key}#{taken[key]}"
        taken[name] = 1
    return tuple(taken)
