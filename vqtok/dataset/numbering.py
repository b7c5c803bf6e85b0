"""From raw codes to the ids of a language model's vocabulary, and exactly back.

An image becomes ``begin, ids of a row, row end, ..., end``: LaVIT puts codes behind 32,000 words, Chameleon names them
``IMGIMG...`` in its vocabulary, Fuyu ends each row of an image. All of it is recorded beside the export.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from vqtok.errors import ConfigError, IntegrityError

Ids = npt.NDArray[np.int64]
_Id = Annotated[int, Field(ge=0, lt=1 << 32)]
_NAME, _LETTERS = "IMGIMG", "ABCDEFGHIJ"


class Numbering(BaseModel):
    """How codes are numbered in an export.

    Attributes:
        offset: added to each code.
        begin: id before each image, or None.
        end: id after each image, or None.
        row_end: id after each row of an image's grid, or None.
        table: id of each code, instead of an offset; empty for none.

    >>> Numbering(offset=100, begin=1, end=2, row_end=3).sequence(np.array([5, 6, 7, 8]), (1, 2, 2)).tolist()
    [1, 105, 106, 3, 107, 108, 3, 2]
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    offset: _Id = 0
    begin: _Id | None = None
    end: _Id | None = None
    row_end: _Id | None = None
    table: list[_Id] = []

    def check(self, vocab_size: int) -> None:
        """Raise ConfigError when an id could mean two things, or a code has none."""
        if self.table and (len(set(self.table)) != len(self.table) or len(self.table) != vocab_size or self.offset):
            raise ConfigError(
                f"expected a table of {vocab_size} different ids and no offset, got {len(self.table)} ids"
            )
        special = [x for x in (self.begin, self.end, self.row_end) if x is not None]
        codes = set(self.table) or range(self.offset, self.offset + vocab_size)
        if len(set(special)) != len(special) or any(x in codes for x in special):
            raise ConfigError(
                f"expected begin, end and row end to be different and no code's id, got {special} beside codes from "
                f"{self.offset}: choose other ids or another offset"
            )

    def largest(self, vocab_size: int) -> int:
        """Return the largest id there can be."""
        special = [x for x in (self.begin, self.end, self.row_end) if x is not None]
        return max([*special, max(self.table) if self.table else self.offset + vocab_size - 1])

    def sequence(self, codes: Ids, grid: tuple[int, int, int]) -> Ids:
        """Return the ids of one image.

        Args:
            codes: int64 [T], raw codes, rows from the top.
            grid: (Q, h, w).
        """
        ids = np.array(self.table, np.int64)[codes] if self.table else codes + self.offset
        if self.row_end is not None:
            if codes.size != np.prod(grid):
                raise ConfigError(
                    "expected images whose tokens fill their grids for row ends, got a dynamic tokenizer's"
                )
            rows = ids.reshape(grid[1], -1)
            ids = np.concatenate([rows, np.full((len(rows), 1), self.row_end)], axis=1).reshape(-1)
        head = [] if self.begin is None else [self.begin]
        tail = [] if self.end is None else [self.end]
        return np.concatenate([head, ids, tail]).astype(np.int64)

    def codes(self, ids: Ids, grid: tuple[int, int, int], vocab_size: int) -> Ids:
        """Return the raw codes of a sequence: the exact inverse of `sequence`.

        Raises:
            IntegrityError: the sequence was not made by this numbering.
        """
        inner = ids[self.begin is not None : len(ids) - (self.end is not None)]
        if (self.begin is not None and ids[:1].tolist() != [self.begin]) or (
            self.end is not None and ids[-1:].tolist() != [self.end]
        ):
            raise IntegrityError(f"expected images between {self.begin} and {self.end}, got {ids[:2]}..{ids[-2:]}")
        if self.row_end is not None:
            rows = inner.reshape(grid[1], -1) if inner.size and inner.size % grid[1] == 0 else inner.reshape(1, -1)
            if (rows[:, -1:] != self.row_end).any():
                raise IntegrityError(f"expected rows that end with {self.row_end}, got others")
            inner = rows[:, :-1].reshape(-1)
        found = self._from_table(inner) if self.table else inner - self.offset
        if found.size and not 0 <= int(found.min()) <= int(found.max()) < vocab_size:
            raise IntegrityError(
                f"expected ids of codes 0..{vocab_size - 1}, got {int(found.min())}..{int(found.max())}"
            )
        return found

    def _from_table(self, ids: Ids) -> Ids:
        table = np.array(self.table, np.int64)
        order = np.argsort(table)
        places = np.searchsorted(table[order], ids).clip(0, len(table) - 1)
        return np.where(table[order][places] == ids, order[places], -1)


LAVIT = Numbering(offset=32002, begin=32000, end=32001)
"""LaVIT: codes behind the words of LLaMA and two ids of its own (Jin et al. 2024)."""


def chameleon(vocabulary: Mapping[str, int], vocab_size: int) -> Numbering:
    """Return the numbering of Chameleon from its vocabulary (Chameleon Team 2024).

    Code 5557 is the word ``IMGIMGFFFHZ``: digits as letters from A. ``<racm3:break>`` begins an image, ``<eoss>`` ends
    it.

    Args:
        vocabulary: id by word.
        vocab_size: number of codes.

    Raises:
        ConfigError: the vocabulary lacks a word.

    >>> words = {"IMGIMGAZ": 7, "IMGIMGBZ": 4, "<racm3:break>": 1, "<eoss>": 2}
    >>> chameleon(words, 2).table
    [7, 4]
    """
    names = [_NAME + "".join(_LETTERS[int(x)] for x in str(code)) + "Z" for code in range(vocab_size)]
    missing = next((name for name in [*names, "<racm3:break>", "<eoss>"] if name not in vocabulary), None)
    if missing:
        raise ConfigError(f"expected a vocabulary with the word {missing!r}, got one without: is it Chameleon's?")
    table = [vocabulary[name] for name in names]
    return Numbering(table=table, begin=vocabulary["<racm3:break>"], end=vocabulary["<eoss>"])
