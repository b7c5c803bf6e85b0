"""Token files as they lie on disk: checked once when they are opened, mapped afterwards."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vqtok.dataset.folder import RunFolder
from vqtok.errors import InputError, IntegrityError
from vqtok.store import safetensors, token_codec
from vqtok.store.reading import open_regular


@dataclass(frozen=True, slots=True, eq=False)
class MappedShard:
    """A token file in the page cache.

    Attributes:
        ids: uint16 or uint32 [T], a view of the file.
        offsets: int64 [n + 1].
        grids: int64 [n, 3].
        keys: n names.
        vocab_size: number of codes.
    """

    ids: npt.NDArray[np.generic]
    offsets: npt.NDArray[np.int64]
    grids: npt.NDArray[np.int64]
    keys: tuple[str, ...]
    vocab_size: int


def map_shard(path: Path) -> MappedShard:
    """Open a token file; every checksum is compared, then only what is read stays in memory.

    Raises:
        InputError: there is none.
        IntegrityError: it is damaged.
    """
    with open_regular(path, "a token file") as file:
        if not os.fstat(file.fileno()).st_size:
            raise IntegrityError(f"{str(path)!r}: expected a token file, got an empty one")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        tokens = token_codec.unpack(data).tokens
    except IntegrityError as error:
        raise IntegrityError(f"{str(path)!r}: {error}") from error
    length = safetensors.header_length(data[:8], len(data), token_codec.MAX_HEADER_BYTES)
    header = safetensors.parse_header(bytes(data[8 : 8 + length]), len(data) - 8 - length)
    ids = safetensors.view(header, "tokens", data[8 + length :])
    return MappedShard(ids, tokens.offsets, tokens.grids, tokens.keys, tokens.vocab_size)


def shard_files(path: str | os.PathLike[str]) -> list[tuple[Path, int]]:
    """Return the token files of a complete run, or one token file, with the number of rows of each.

    Raises:
        InputError: nothing is there, or a run that is not complete.
    """
    if not os.path.isdir(path):
        return [(Path(path), len(map_shard(Path(path)).keys))]
    folder = RunFolder(path)
    manifest = folder.manifest()
    found = []
    for number in range(len(manifest.chunks)):
        record = folder.record(manifest, number)
        if record is None:
            raise InputError(f"{os.fspath(path)!r}: expected a complete run, but shard {number} is missing")
        found.append((folder.shard(number), record.rows))
    return found


def shuffled(lengths: Sequence[int], seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the order of an epoch: the shards in random order, and the rows of each; one shard is read at a time.

    >>> sorted(shuffled([2, 3], 0, 0).tolist())
    [0, 1, 2, 3, 4]
    """
    rng = np.random.Generator(np.random.Philox(key=[seed & 0xFFFFFFFFFFFFFFFF, epoch]))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    parts = [starts[i] + rng.permutation(lengths[i]) for i in rng.permutation(len(lengths))]
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)
