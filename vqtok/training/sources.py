"""Groups of a recipe to lists of images, by what ``vqtok tokenize`` takes: folders, patterns, lists, tars, tables."""

from __future__ import annotations

import glob
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vqtok.dataset.items import Item
from vqtok.dataset.listing import expand_braces, list_items
from vqtok.dataset.tables import Columns, pyarrow
from vqtok.errors import InputError, escape
from vqtok.training.data_section import Group


@dataclass(frozen=True, slots=True)
class Source:
    """The images of a group, sorted by name.

    Attributes:
        columns: how its tables are read.
        items: what it is called and where its bytes lie.
        blocks: number of the row group that each lies in, int64 [images], if they lie in tables that are read by row
            groups; else [0].
    """

    columns: Columns
    items: tuple[Item, ...]
    blocks: npt.NDArray[np.int64]


def list_source(group: Group, base: Path) -> Source:
    """Find the images of a group; nothing is decoded.

    Args:
        group: of the recipe.
        base: where relative paths start, those in lists too.

    Raises:
        InputError: there is nothing of that name, or no image in it.

    >>> list_source(Group(path="no-photos"), Path("/tmp"))
    Traceback (most recent call last):
    vqtok.errors.InputError: /tmp/no-photos: expected training images, found nothing of that name: check the path
    """
    path = os.path.join(base, group.path)
    names = [path] if os.path.lexists(path) else expand_braces(path)
    for name in names:
        if not os.path.lexists(name) and not glob.has_magic(name):
            raise InputError(f"{escape(name)}: expected training images, found nothing of that name: check the path")
    columns = Columns(image=group.column, root=str(base))
    # What travels with an image into token shards is of no use here, and there may be millions of them.
    items = tuple(replace(item, about={}) if item.about else item for item in list_items([path], columns))
    if not items:
        raise InputError(f"{escape(path)}: expected training images there, found none: is it the right file?")
    return Source(columns, items, row_groups(items))


def row_groups(items: Sequence[Item]) -> npt.NDArray[np.int64]:
    """Return the number of the row group that each image lies in, counted over all tables; [0] if one is in none."""
    paths = sorted({item.path for item in items if item.row >= 0 and item.path.lower().endswith(".parquet")})
    ends: dict[str, list[int]] = {}
    firsts: dict[str, int] = {}
    for path in paths:
        table = pyarrow("pyarrow.parquet").ParquetFile(path).metadata
        firsts[path] = sum(map(len, ends.values()))
        ends[path] = list(accumulate(table.row_group(i).num_rows for i in range(table.num_row_groups)))
    if not all(item.row >= 0 and item.path in ends for item in items if not item.refused):
        return np.zeros(0, np.int64)
    numbers = (firsts[x.path] + bisect_right(ends[x.path], x.row) if x.row >= 0 else 0 for x in items)
    return np.fromiter(numbers, np.int64, len(items))
