"""Images in tar archives: found by reading the headers once, read later by their place in the file.

Members are names and bytes, never files: nothing is unpacked, no link is followed. A sample of a WebDataset is what
shares a name up to the first dot of its last part: ``000.jpg``, ``000.cls``, ``000.txt``, ``000.json``.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import PurePosixPath

from vqtok.dataset import remote
from vqtok.dataset.items import Item
from vqtok.errors import ImageError, InputError
from vqtok.images.files import Limits, check_bytes
from vqtok.store.token_keys import path_key

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}
_MAX_NOTE = 1 << 16
_NOTES = {".cls": "label", ".txt": "caption", ".json": "json"}


def list_tar(path: str) -> list[Item]:
    """Return the images of a tar, sorted by key; of a damaged archive, also an item that says so.

    Raises:
        InputError: it cannot be opened.
    """
    found: list[Item] = []
    notes: dict[str, dict[str, object]] = {}
    archive = path_key(path)
    try:
        source = remote.open_address(path) if remote.is_remote(path) else None
        with source or nullcontext(), tarfile.open(path, "r:", fileobj=source) as tar:
            for member in _members(tar, archive, found):
                suffix = PurePosixPath(member.name).suffix.lower()
                if suffix in IMAGE_SUFFIXES:
                    key = path_key(f"{archive}/{member.name}")
                    found.append(Item(key, path, member.offset_data, member.size))
                elif suffix in _NOTES and member.size <= _MAX_NOTE:
                    file = tar.extractfile(member)
                    data = file.read() if file else b""
                    notes.setdefault(f"{archive}/{_stem(member.name)}", {})[_NOTES[suffix]] = _note(suffix, data)
    except tarfile.TarError as error:
        words = f"{archive}: expected an uncompressed tar archive, got: {error}"
        found.append(Item(archive, path, refused=("corrupt", words)))
    except OSError as error:
        raise InputError(f"{path!r}: expected a tar archive, got: {error.strerror or error}") from None
    if notes:
        found = [_with(item, notes.get(_stem(item.key), {})) for item in found]
    return sorted(found, key=lambda item: item.key.encode())


def _members(tar: tarfile.TarFile, archive: str, found: list[Item]) -> Iterator[tarfile.TarInfo]:
    """Yield plain members; what cannot be one becomes a refused item, and the list goes on where it can."""
    while True:
        try:
            member = tar.next()
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            found.append(Item(archive, archive, refused=("truncated", f"{archive}: the archive is damaged: {error}")))
            return
        tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  (else it keeps every header in memory)
        if member is None:
            return
        is_image = PurePosixPath(member.name).suffix.lower() in IMAGE_SUFFIXES
        if member.isreg() and not member.issparse():
            yield member
        elif is_image and not member.isdir():
            key = path_key(f"{archive}/{member.name}")
            words = f"{key}: expected a plain member of the archive, got a link, a device or a sparse file"
            found.append(Item(key, archive, member.offset, 0, refused=("unreadable", words)))


def _stem(name: str) -> str:
    """Return a member's name up to the first dot of its last part.

    >>> _stem("a.b/000.seg.png")
    'a.b/000'
    """
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.split('.', 1)[0]}"


def _note(suffix: str, data: bytes) -> object:
    text = data.decode("utf-8", "backslashreplace").strip()
    if suffix == ".cls" and text.lstrip("-").isdecimal():
        return int(text)
    if suffix == ".json":
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def _with(item: Item, about: dict[str, object]) -> Item:
    return Item(item.key, item.path, item.offset, item.size, about=about, refused=item.refused) if about else item


def read_member(item: Item, limits: Limits) -> bytes:
    """Read an image's bytes out of its tar.

    Raises:
        ImageError: ``missing``, ``unreadable``, ``too_large``, or ``truncated`` when the archive ends before.
    """
    check_bytes(item.size, limits)
    if remote.is_remote(item.path):
        return remote.read_address(item.path, limits, item.offset, item.size)
    try:
        with open(item.path, "rb", buffering=0) as file:
            parts, at = [], item.offset
            while at < item.offset + item.size:
                part = os.pread(file.fileno(), item.offset + item.size - at, at)
                if not part:
                    raise ImageError("truncated", "expected a whole member, but the archive ends before.")
                parts.append(part)
                at += len(part)
    except FileNotFoundError as error:
        raise ImageError("missing", "expected its archive, found none: check the path.") from error
    except OSError as error:
        raise ImageError("unreadable", f"expected a readable archive, got: {error.strerror}.") from error
    return b"".join(parts)
