"""What all formats carry of an image: its name, its ids, and a note from which the token file can be made again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vqtok.dataset.numbering import Numbering
from vqtok.errors import IntegrityError
from vqtok.types import Tokens

_OWN = {"grid", "size", "keep", "source_sha256"}


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One image in an export.

    Attributes:
        key: its name.
        ids: int64 [T'], as numbered.
        note: ``grid`` (Q, h, w) and ``size`` (height, width); where known ``keep``, ``source_sha256`` (hexadecimal),
            ``label``, ``caption``, ``crop``, ...
    """

    key: str
    ids: npt.NDArray[np.int64]
    note: Mapping[str, object]

    def note_json(self) -> str:
        """Return the note as one line."""
        return json.dumps(self.note, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """A shard's tokens with what stands beside them."""

    tokens: Tokens
    source_sha256: npt.NDArray[np.uint8] | None = None
    about: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


def to_rows(content: Content, numbering: Numbering) -> list[Row]:
    """Return the rows of a shard."""
    tokens, rows = content.tokens, []
    places = np.concatenate([[0], np.cumsum(tokens.grids[:, 1] * tokens.grids[:, 2])]).tolist()
    for i, key in enumerate(tokens.keys):
        grid = tokens.grids[i].tolist()
        note: dict[str, object] = {"grid": grid, "size": tokens.sizes[i].tolist()}
        if tokens.keep.size:
            note["keep"] = np.packbits(tokens.keep[places[i] : places[i + 1]]).tobytes().hex()
        if content.source_sha256 is not None:
            note["source_sha256"] = content.source_sha256[i].tobytes().hex()
        note |= {name: value for name, value in content.about.get(key, {}).items() if name not in {*_OWN, "key"}}
        codes = tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]]
        rows.append(Row(key, numbering.sequence(codes, (grid[0], grid[1], grid[2])), note))
    return rows


def from_rows(
    rows: Iterable[Row], numbering: Numbering, vocab_size: int, record: Mapping[str, object], model: str
) -> Content:
    """Return the shard that rows were made of.

    Raises:
        IntegrityError: a row was not made by this numbering, or its note does not fit its ids.
    """
    listed = list(rows)
    codes, grids, sizes, keeps, sources = [], [], [], [], []
    for row in listed:
        try:
            q, h, w = (int(x) for x in _list(row.note["grid"]))
            sizes.append([int(x) for x in _list(row.note["size"])])
            codes.append(numbering.codes(row.ids, (q, h, w), vocab_size))
            if "keep" in row.note:
                bits = np.unpackbits(np.frombuffer(bytes.fromhex(str(row.note["keep"])), np.uint8))
                keeps.append(bits[: h * w].astype(np.bool_))
            if "source_sha256" in row.note:
                sources.append(np.frombuffer(bytes.fromhex(str(row.note["source_sha256"])), np.uint8))
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"{row.key!r}: expected grid and size of the image, got: {error}") from None
        grids.append([q, h, w])
    tokens = Tokens(
        ids=np.concatenate([np.zeros(0, np.int64), *codes]),
        offsets=np.cumsum([0, *map(len, codes)], dtype=np.int64),
        grids=np.array(grids, np.int64).reshape(-1, 3),
        sizes=np.array(sizes, np.int64).reshape(-1, 2),
        vocab_size=vocab_size,
        keys=tuple(row.key for row in listed),
        fingerprint=model,
        record=record,
        keep=np.concatenate(keeps) if keeps else np.zeros(0, np.bool_),
    )
    about = {row.key: {k: v for k, v in row.note.items() if k not in _OWN} for row in listed}
    hashes = np.stack(sources) if sources and len(sources) == len(listed) else None
    return Content(tokens, hashes, {key: note for key, note in about.items() if note})


def _list(value: object) -> Sequence[int]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"no list: {str(value)[:40]}")
    return value
