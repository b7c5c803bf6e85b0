"""Token files (``.vqt``): save, load, pipe. There is no unchecked way to read one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vqtok.errors import IntegrityError, MismatchError
from vqtok.store import token_codec
from vqtok.store.commit import commit
from vqtok.store.reading import open_regular, read_exactly, size_of
from vqtok.store.token_codec import TokenFile
from vqtok.store.token_header import TokenHeader
from vqtok.types import Tokens

_PathLike = str | os.PathLike[str]


def save_tokens(
    path: _PathLike,
    tokens: Tokens,
    *,
    source_sha256: npt.NDArray[np.uint8] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a token file; afterwards it is whole, durable and proven readable. Equal content gives equal bytes.

    Args:
        path: the file to write, by custom ``*.vqt``.
        tokens: tokens of n images; keys must be unique, and no image may have more than Q * h * w tokens. Their
            ``record`` may hold ``fingerprints`` (sha256 by name), ``execution`` (any JSON) and ``created_by`` (text).
        source_sha256: uint8 [n, 32], hash of each image's file.
        overwrite: replace a file that exists.

    Raises:
        ConfigError: the tokens or the record break a promise of the format.
        OutputError: the file exists already or cannot be written.

    >>> import tempfile
    >>> tokens = Tokens(np.arange(4), np.array([0, 4]), np.array([[1, 2, 2]]), np.array([[16, 16]]), 8, ("a",), "")
    >>> path = Path(tempfile.mkdtemp(), "a.vqt")
    >>> save_tokens(path, tokens)
    >>> load_tokens(path).ids.tolist(), read_header(path).layout
    ([0, 1, 2, 3], 'grid')
    """
    pieces = token_codec.pack(tokens, source_sha256)
    expected = token_codec.checksum_of(pieces)

    def verify(written: Path) -> None:
        came = read_token_file(written).header.sha256
        if came != expected:
            raise IntegrityError(f"expected tokens of sha256 {expected}, got {came}")

    commit(path, pieces, verify=verify, overwrite=overwrite)


def load_tokens(path: _PathLike) -> Tokens:
    """Read the tokens of a token file.

    Args:
        path: the file.

    Returns:
        The tokens, after every checksum, bound and name was checked.

    Raises:
        InputError: there is no such file, or it cannot be read.
        IntegrityError: the file is damaged, truncated or no token file.
        MismatchError: the file has another format version.

    >>> load_tokens("/nowhere.vqt")
    Traceback (most recent call last):
    vqtok.errors.InputError: expected a token file at '/nowhere.vqt', but nothing is there: check the path
    """
    return read_token_file(path).tokens


def read_header(path: _PathLike) -> TokenHeader:
    """Read what a token file says of itself, with the same checks and errors as `load_tokens`."""
    return read_token_file(path).header


def read_token_file(path: _PathLike) -> TokenFile:
    """Read all that a token file holds, with the same checks and errors as `load_tokens`."""
    with open_regular(path, "a token file") as file:
        try:
            return token_codec.unpack(read_exactly(file, size_of(file)))
        except MismatchError as error:
            raise MismatchError(f"{os.fspath(path)!r}: {error}") from error
        except IntegrityError as error:
            raise IntegrityError(f"{os.fspath(path)!r}: {error}; copy the file again, or make it again") from error


def tokens_to_bytes(tokens: Tokens, *, source_sha256: npt.NDArray[np.uint8] | None = None) -> bytes:
    """Return the bytes that `save_tokens` writes, for pipes; same arguments, same ConfigError."""
    return b"".join(token_codec.pack(tokens, source_sha256))


def tokens_from_bytes(data: bytes | bytearray | memoryview) -> Tokens:
    """Read tokens from the bytes of a token file, with the same checks and errors as `load_tokens`.

    >>> tokens = Tokens(np.arange(2), np.array([0, 2]), np.array([[1, 1, 2]]), np.array([[8, 16]]), 8, ("a",), "")
    >>> tokens_from_bytes(tokens_to_bytes(tokens)).keys
    ('a',)
    """
    return token_codec.unpack(memoryview(data).cast("B")).tokens
