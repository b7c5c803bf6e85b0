"""The names of images in a token file: unique, valid UTF-8, of bounded length, both ways."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vqtok.errors import ConfigError, IntegrityError

MAX_KEY_BYTES = 4096


def path_key(path: str) -> str:
    r"""Return a path as a key: forward slashes, bytes that are no UTF-8 as escapes, too long ones by their end.

    >>> path_key("photos/\udcff.jpg")
    'photos/\\xff.jpg'
    """
    key = os.fsencode(path.replace(os.sep, "/")).decode("utf-8", "backslashreplace")
    if (length := len(key.encode())) <= MAX_KEY_BYTES:
        return key
    tail = key.encode()[length - MAX_KEY_BYTES // 2 :].decode("utf-8", "ignore")
    return f"...{zlib.crc32(key.encode()):08x}...{tail}"


def encode_keys(keys: Sequence[str]) -> list[bytes]:
    """Return the keys as UTF-8; unique and of bounded length."""
    try:
        encoded = [key.encode("utf-8") for key in keys]
    except UnicodeEncodeError as error:
        raise ConfigError(f"expected keys that UTF-8 can carry, got {error.object!r}: rename the image") from None
    if problem := _key_problem(encoded):
        raise ConfigError(problem)
    return encoded


def decode_keys(data: npt.NDArray[np.generic], offsets: npt.NDArray[np.int64]) -> list[bytes]:
    """Return the keys as bytes that are known to be valid UTF-8, unique and of bounded length."""
    raw, ends = data.tobytes(), offsets.tolist()
    keys = [raw[start:stop] for start, stop in pairwise(ends)]
    try:
        for key in keys:
            key.decode("utf-8")
    except UnicodeDecodeError as error:
        raise IntegrityError(f"expected keys in UTF-8, got {error.object[:40]!r}") from error
    if problem := _key_problem(keys):
        raise IntegrityError(problem)
    return keys


def _key_problem(keys: Sequence[bytes]) -> str:
    """Say what is wrong with keys, or ""."""
    longest = max(map(len, keys), default=0)
    if longest > MAX_KEY_BYTES:
        return f"expected keys of at most {MAX_KEY_BYTES} bytes, got one of {longest}"
    if len(set(keys)) != len(keys):
        twice = next(key for key, after in pairwise(sorted(keys)) if key == after)
        return f"expected unique keys, but {twice.decode('utf-8')!r} comes twice: rename or drop one of the images"
    return ""
