"""``ties/00000.jsonl``: which tokens of a shard are near ties, where another machine may differ."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vqtok.dataset.documents import read_file
from vqtok.errors import IntegrityError, escape


@dataclass(frozen=True, slots=True, eq=False)
class Ties:
    """The near ties of a shard; see `vqtok.dataset.ties`.

    Attributes:
        share: what counts as one.
        places: by key, the places among the tokens of that image, rising; images without any are left out.

    >>> Ties(1e-4, {"a.jpg": [7, 9]}).rows(["a.jpg", "b.jpg"])
    [{'share': 0.0001}, {'key': 'a.jpg', 'near': [7, 9]}]
    """

    share: float
    places: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def rows(self, keys: Sequence[str]) -> list[dict[str, object]]:
        """Return the lines of the file, in the order of the keys."""
        found = [{"key": key, "near": [*self.places[key]]} for key in keys if self.places.get(key)]
        return [{"share": self.share}, *found]


def read_ties(path: Path) -> Ties | None:
    """Read a ledger; None when there is none.

    Raises:
        IntegrityError: it is no such file.
    """
    if not os.path.lexists(path):
        return None
    try:
        head, *rows = [json.loads(line) for line in read_file(path, "ties of a shard").split(b"\n") if line]
        ties = Ties(head["share"], {row["key"]: row["near"] for row in rows})
        if type(ties.share) is float and all(_is_row(*row) for row in ties.places.items()):
            return ties
        reason = "other fields"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = escape(str(error), 100)
    raise IntegrityError(f"{str(path)!r}: expected near ties of a shard, got {reason}: run vqtok verify")


def _is_row(key: object, near: object) -> bool:
    return isinstance(key, str) and isinstance(near, list) and all(type(place) is int and place >= 0 for place in near)


def joined(parts: Sequence[Ties | None]) -> Ties | None:
    """Return the ledger of several shards' images; None when one has none, or counts otherwise."""
    known = [part for part in parts if part is not None]
    if len(known) != len(parts) or len({part.share for part in known}) != 1:
        return None
    return Ties(known[0].share, {key: near for part in known for key, near in part.places.items()})
