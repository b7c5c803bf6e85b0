"""What commands take as input: files, folders, patterns, ``-`` for stdin."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from vqtok.dataset.items import Item
from vqtok.dataset.listing import CONTAINERS, list_items, match_pattern, walk_folder
from vqtok.dataset.remote import is_remote
from vqtok.dataset.tars import IMAGE_SUFFIXES
from vqtok.errors import ConfigError, InputError
from vqtok.store.token_keys import path_key


@dataclass(frozen=True, slots=True)
class Input:
    """One image to read: its key in the token file, and a path, ``-`` for stdin, or an item of an archive or a list."""

    key: str
    path: str
    item: Item | None = None

    def source(self, max_bytes: int) -> str | bytes:
        """Return the path, at most max_bytes + 1 bytes of stdin, or an item's bytes; ImageError for one of those."""
        if self.item is not None:
            from vqtok.dataset.decoding import read_item
            from vqtok.dataset.tables import Columns
            from vqtok.images import Limits

            return read_item(self.item, Limits(max_bytes=max_bytes), Columns())
        return read_stdin(max_bytes + 1) if self.path == "-" else self.path


def expand(arguments: Sequence[str]) -> list[Input]:
    """Return the images that arguments name: files as they are, folders, patterns and archives sorted by bytes.

    A file's key is its path as given. Images of a folder are named relative to it when it is the only argument.

    Raises:
        InputError: a pattern or folder holds no image.
        ConfigError: nothing was given, or ``-`` more than once.
    """
    if not arguments:
        raise ConfigError("expected at least one image, folder or '-' for stdin, got none")
    if arguments.count("-") > 1:
        raise ConfigError("expected '-' once: there is only one stdin")
    found: list[Input] = []
    for argument in arguments:
        if argument != "-" and os.path.isdir(argument):
            root = argument if len(arguments) == 1 else ""
            for path in _folder(argument):
                found.append(Input(path_key(os.path.relpath(path, root) if root else path), path))
        elif holds_several(argument):
            found += [Input(item.key, item.path, item) for item in list_items([argument])]
        elif argument != "-" and glob.has_magic(argument) and not os.path.lexists(argument):
            found += [Input(path_key(path), path) for path in match_pattern(argument)]
        else:
            found.append(Input(path_key(argument), argument))
    return found


def holds_several(argument: str) -> bool:
    """Tell whether an argument is a list, an archive, a table or an address.

    >>> holds_several("a.tar"), holds_several("s3://bucket/photos"), holds_several("a.jpg")
    (True, True, False)
    """
    return is_remote(argument) or os.path.splitext(argument)[1].lower() in CONTAINERS


def read_stdin(size: int = -1) -> bytes:
    """Return at most so many bytes of stdin.

    Raises:
        InputError: it is closed or cannot be read.
    """
    try:
        return sys.stdin.buffer.read(size)
    except OSError as error:
        raise InputError(f"expected data on stdin, got: {error.strerror}: pipe a file into it") from None


def _folder(folder: str) -> list[str]:
    paths = [*walk_folder(folder)]
    if not paths:
        raise InputError(f"{folder}: expected images ({' '.join(sorted(IMAGE_SUFFIXES))}), found none in this folder")
    return paths
