"""What a run is made of: one line an image, saying what it is called and where its bytes lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from vqtok.errors import IntegrityError, escape

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a run.

    Attributes:
        key: its name in the shards, unique in the run.
        path: the file it is in.
        offset: its first byte in a tar, or -1.
        size: its bytes in a tar, or -1.
        row: its row in a table (parquet, arrow), or -1.
        about: what travels with it into the shard's rows: ``label``, ``caption``, ...
        refused: kind and message when listing already found that it cannot be read; else empty.

    >>> Item("a.jpg", "photos/a.jpg").line()
    '{"key":"a.jpg","path":"photos/a.jpg"}'
    """

    key: str
    path: str
    offset: int = -1
    size: int = -1
    row: int = -1
    about: Mapping[str, object] = field(default_factory=dict)
    refused: tuple[str, str] | tuple[()] = ()

    def line(self) -> str:
        """Return the item as one line of JSON in ASCII; fields at their defaults are left out."""
        fields: dict[str, object] = {"key": self.key, "path": self.path}
        if self.offset >= 0:
            fields |= {"offset": self.offset, "size": self.size}
        if self.row >= 0:
            fields["row"] = self.row
        if self.about:
            fields["about"] = self.about
        if self.refused:
            fields["refused"] = self.refused
        return _encode(fields)

    def identity(self) -> str:
        """Return what of the item the shards depend on: its name and what travels with it, not where it lies."""
        return _encode([self.key, self.about]) if self.about else _encode(self.key)

    def place(self) -> tuple[str, int, int]:
        """Return what tells two images of one name apart."""
        return self.path, self.offset, self.row


def parse_item(line: bytes) -> Item:
    """Read an item from a line that `Item.line` wrote.

    Raises:
        IntegrityError: it is no such line.

    >>> parse_item(b'{"key":"a","path":"t.tar","offset":512,"size":9}').size
    9
    """
    try:
        fields = json.loads(line)
        refused = tuple(fields.get("refused", ()))
        item = Item(**{**fields, "refused": refused})
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"expected an item of a plan, got {escape(str(error), 100)}") from None
    texts, numbers = (item.key, item.path, *item.refused), (item.offset, item.size, item.row)
    sound = all(isinstance(x, str) for x in texts) and all(type(x) is int and x >= -1 for x in numbers)
    if not sound or len(refused) not in (0, 2) or not isinstance(item.about, dict):
        raise IntegrityError(f"expected an item of a plan, got {escape(str(fields), 100)}")
    return item
