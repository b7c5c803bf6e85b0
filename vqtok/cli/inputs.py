"""What commands take as input: files, folders, patterns, ``-`` for stdin."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vqtok.errors import ConfigError, InputError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}


@dataclass(frozen=True, slots=True)
class Input:
    """One image to read: its key in the token file, and a path, or ``-`` for stdin."""

    key: str
    path: str

    def source(self, max_bytes: int) -> str | bytes:
        """Return the path, or at most max_bytes + 1 bytes of stdin."""
        return sys.stdin.buffer.read(max_bytes + 1) if self.path == "-" else self.path


def expand(arguments: Sequence[str]) -> list[Input]:
    """Return the images that arguments name: files as they are, folders and patterns sorted by bytes.

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
            found += [Input(key_of(os.path.relpath(path, root) if root else path), path) for path in _folder(argument)]
        elif argument != "-" and glob.has_magic(argument) and not os.path.lexists(argument):
            found += [Input(key_of(path), path) for path in _pattern(argument)]
        else:
            found.append(Input(key_of(argument), argument))
    return found


def key_of(path: str) -> str:
    """Return a path as valid UTF-8 with forward slashes; other bytes are written as escapes."""
    return os.fsencode(path.replace(os.sep, "/")).decode("utf-8", "backslashreplace")


def _folder(folder: str) -> list[str]:
    real = os.path.realpath(folder)
    paths = sorted((os.path.join(at, name) for at, _, names in os.walk(folder) for name in names), key=os.fsencode)
    images = [path for path in paths if Path(path).suffix.lower() in IMAGE_SUFFIXES and _inside(path, real)]
    if not images:
        raise InputError(f"{folder}: expected images ({' '.join(sorted(IMAGE_SUFFIXES))}), found none in this folder")
    return images


def _inside(path: str, real_folder: str) -> bool:
    """Tell whether a path stays in its folder: a link out of it is not followed."""
    return not os.path.islink(path) or os.path.realpath(path).startswith(real_folder + os.sep)


def _pattern(pattern: str) -> Iterator[str]:
    paths = sorted((p for p in glob.glob(pattern, recursive=True) if not os.path.isdir(p)), key=os.fsencode)
    if not paths:
        raise InputError(f"{pattern}: expected files that match this pattern, found none")
    return iter(paths)
