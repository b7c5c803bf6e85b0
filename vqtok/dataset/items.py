"""What a run is made of: one line an image, saying what it is called and where its bytes lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

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

    >>> parse_item(b'{"key":"a","path":"t.tar","offset":512,"size":9}').size
    9
    """
    fields = json.loads(line)
    fields["refused"] = tuple(fields.get("refused", ()))
    return Item(**fields)
