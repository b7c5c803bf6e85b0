"""Regular files into memory; what the operating system says against it becomes an InputError."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO

import numpy as np

from vqtok.errors import InputError, IntegrityError


@contextmanager
def open_regular(path: str | os.PathLike[str], what: str) -> Iterator[FileIO]:
    """Open a regular file unbuffered; raise InputError when it is missing, unreadable, a folder, pipe or device.

    Args:
        path: the file; symbolic links are followed.
        what: what it should be, for messages: "a token file".
    """
    text = os.fspath(path)
    if not text or "\0" in text:
        raise InputError(f"expected the path of {what}, got {text!r}")
    try:
        # Asked before opening, because opening a pipe waits for its writer.
        if not stat.S_ISREG(os.stat(text).st_mode):
            raise InputError(f"expected {what} at {text!r}, but a folder, pipe or device is there: give a regular file")
        with open(text, "rb", buffering=0) as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(f"expected {what} at {text!r}, but nothing is there: check the path") from error
    except OSError as error:
        raise InputError(f"cannot read {what} at {text!r}: {error.strerror or error}: check its permissions") from error


def size_of(file: FileIO) -> int:
    """Return the size of an open file in bytes."""
    return os.fstat(file.fileno()).st_size


def read_exactly(file: FileIO, size: int) -> memoryview:
    """Read the next ``size`` bytes, writable; raise IntegrityError when the file ends before."""
    view, got = np.empty(size, np.uint8).data, 0  # unlike a bytearray, not filled with zeros first
    while got < size:
        count = file.readinto(view[got:])
        if not count:
            raise IntegrityError(f"expected {size} bytes, but the file ended after {got}: it was cut while being read")
        got += count
    return view


def file_sha256(path: str | os.PathLike[str], what: str) -> str:
    """Return the sha256 of a regular file, in hex; raise InputError as `open_regular`.

    >>> file_sha256(os.devnull, "a file")
    Traceback (most recent call last):
    ...
    vqtok.errors.InputError: expected a file at '/dev/null', but a folder, pipe or device is there: give a regular file
    """
    digest = hashlib.sha256()
    with open_regular(path, what) as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
