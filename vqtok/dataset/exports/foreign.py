"""Tokens that other programs wrote: trees of ``.npy`` files (LlamaGen, 4M) and TiTok's jsonl; of unknown models."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vqtok.dataset.exports.rows import Content, Row, from_rows
from vqtok.dataset.numbering import Numbering
from vqtok.errors import InputError, IntegrityError
from vqtok.store.token_keys import path_key

_MOST_BYTES = 1 << 30


def read_foreign(path: Path, vocab_size: int, factor: int, shard_size: int) -> Iterator[Content]:
    """Yield tokens of another program, so many images at a time.

    A ``.npy`` holds one image or several: the last axis is its tokens (LlamaGen [1, crops, T], 4M [crops, T] or [T]).
    A ``.jsonl`` has ``tokens`` and ``class_id`` or other fields a line. Grids are squares, or one row where they cannot
    be.

    Args:
        path: a folder of ``.npy`` files, one such file, or a ``.jsonl``.
        vocab_size: number of codes; none of the tokens may be larger.
        factor: pixels a token, each way: it gives images their size, which these formats do not have.
        shard_size: images a shard.

    Raises:
        InputError: nothing that can be read.
        IntegrityError: damaged, or tokens outside the vocabulary.
    """
    rows = _jsonl(path, factor) if path.suffix == ".jsonl" else _npy(path, factor)
    waiting: list[Row] = []
    count = 0
    for row in rows:
        waiting.append(row)
        count += 1
        if len(waiting) == shard_size:
            yield from_rows(waiting, Numbering(), vocab_size, {}, "")
            waiting = []
    if waiting:
        yield from_rows(waiting, Numbering(), vocab_size, {}, "")
    if not count:
        raise InputError(f"{str(path)!r}: expected .npy files or lines with tokens, found none")


def _npy(path: Path, factor: int) -> Iterator[Row]:
    paths = [path] if path.is_file() else sorted(path.rglob("*.npy"), key=os.fsencode)
    for file in paths:
        array = _load(file)
        name = path_key(str(file.relative_to(path) if path.is_dir() else file.name))[: -len(".npy")]
        several = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
        for i, ids in enumerate(several):
            yield _row(f"{name}#{i}" if len(several) > 1 else name, ids.astype(np.int64), factor, {})


def _load(file: Path) -> npt.NDArray[np.integer]:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise IntegrityError(f"{str(file)!r}: expected at most {_MOST_BYTES} bytes")
        array = np.lib.format.open_memmap(file, mode="r")  # never unpickles, and a header that lies of its size raises
        if array.dtype.kind not in "iu" or not array.size:
            raise IntegrityError(f"{str(file)!r}: expected integers, got {array.dtype} {array.shape}")
        return np.array(array)
    except OSError as error:
        raise InputError(f"{str(file)!r}: expected a readable .npy file, got: {error.strerror or error}") from None
    except (ValueError, EOFError, SyntaxError, TypeError) as error:
        raise IntegrityError(f"{str(file)!r}: expected a sound .npy file, got: {str(error)[:200]}") from None


def _jsonl(path: Path, factor: int) -> Iterator[Row]:
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file):
                fields = json.loads(line)
                ids = np.array(fields["tokens"], np.int64).reshape(-1)
                key = str(fields.get("key", f"{number:08d}"))
                label = fields.get("class_id", fields.get("label"))
                yield _row(key, ids, factor, {} if label is None else {"label": label})
    except OSError as error:
        raise InputError(f"{str(path)!r}: expected a readable file, got: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise IntegrityError(f"{str(path)!r}: expected 'tokens' in each line, got: {str(error)[:200]}") from None


def _row(key: str, ids: npt.NDArray[np.int64], factor: int, note: dict[str, object]) -> Row:
    side = math.isqrt(len(ids))
    h, w = (side, side) if side * side == len(ids) else (1, len(ids))
    return Row(key, ids, {"grid": [1, h, w], "size": [h * factor, w * factor], **note})
