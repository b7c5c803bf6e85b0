"""Decoded photographs on disk, memory-mapped: shared by worker processes, kept from run to run.

A file holds the levels of one photograph as they are in memory, so that a crop reads its own pages and nothing else.
Its name is the hash of all that its content depends on; a photograph that changed has another name.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import resource
import shutil
import struct
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from vqtok import images
from vqtok.dataset.decoding import Decoded, Failure, Recipe, decode_item
from vqtok.dataset.items import Item
from vqtok.dataset.tables import Columns, read_cell
from vqtok.errors import ImageError, IntegrityError, OutputError
from vqtok.store.commit import commit
from vqtok.training.pyramid import Extent, Pyramid, pyramid

_MAGIC = b"vqtpix1\n"
_OPEN = 1 << 12  # mapped files a process keeps, or half of the descriptors it may have: each costs one
_RESERVE = 1 << 30  # bytes of the file system that a cache leaves to others, or a quarter of a small one
_SPEC = images.PreprocessSpec()


def decode_photo(item: Item, columns: Columns) -> images.RGB | Failure:
    """Return one image uint8 [H, W, 3] as it is in its file, EXIF applied, or why it is refused."""
    outcome = decode_item(item, Recipe(_SPEC, source_hash=False, columns=columns))
    return outcome.arrays[0] if isinstance(outcome, Decoded) else outcome


class PhotoCache:
    """Photographs by item, decoded once.

    Args:
        folder: where the pixels are kept; "" keeps none.
        sides: of the levels (`vqtok.training.pyramid`).
    """

    def __init__(self, folder: str, sides: Sequence[int]) -> None:
        self.folder, self.sides = folder, tuple(sides)
        self._open: OrderedDict[str, Pyramid] = OrderedDict()
        self._most_open = min(_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

    def photo(self, item: Item, columns: Columns) -> Pyramid | Failure:
        """Return the levels of an image, or why it is refused. Refusals are not kept: the image is tried again."""
        path = self._path(item, columns)
        if path is not None and (known := self._known(path)) is not None:
            return known
        photo = decode_photo(item, columns)
        if isinstance(photo, Failure):
            return photo
        levels = pyramid(photo, self.sides)
        if path is not None and self._keeps(item, columns):
            self._write(path, levels)
        return levels

    def _path(self, item: Item, columns: Columns) -> str | None:
        """Return where the pixels of an image are or will be; None when they cannot be kept."""
        if not self.folder or item.refused:
            return None
        try:
            info = os.stat(item.path)
        except (OSError, ValueError):
            return None
        place = os.path.abspath(item.path), item.offset, item.size, item.row, columns.image
        what = info.st_size, info.st_mtime_ns, info.st_ino, _SPEC.algorithm, self.sides
        name = hashlib.sha256(repr((place, what)).encode("utf-8", "surrogateescape")).hexdigest()
        return f"{self.folder}/{name[:2]}/{name[2:]}"

    def _keeps(self, item: Item, columns: Columns) -> bool:
        """Tell whether an image's file is the one that was asked for its age: a table may name another file."""
        if item.row < 0:
            return True
        try:
            return isinstance(read_cell(item.path, item.row, columns), bytes)
        except ImageError:
            return False

    def _known(self, path: str) -> Pyramid | None:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        try:
            found = read_levels(path)
        except (OSError, IntegrityError):  # not there, or cut by a disk that was full: it is written anew
            return None
        self._open[path] = found
        if len(self._open) > self._most_open:
            self._open.popitem(last=False)
        return found

    def _write(self, path: str, levels: Pyramid) -> None:
        """Keep the pixels if there is room; a cache that cannot grow is slow, not wrong."""
        pieces = [_header(levels.extents), *(levels.level(i).tobytes() for i in range(len(levels.extents)))]
        usage = shutil.disk_usage(self.folder)
        if usage.free - sum(map(len, pieces)) < min(_RESERVE, usage.total // 4):
            return
        with suppress(OutputError, OSError):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            commit(path, pieces, verify=lambda written: _check(read_levels(str(written)), levels), overwrite=True)


def read_levels(path: str) -> Pyramid:
    """Map a cached photograph; its pixels may be written to, which changes no file.

    Raises:
        IntegrityError: it is not as long as its header says, or has none.
        OSError: it cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size < 16:
            raise IntegrityError(f"{path}: expected a cached photograph, got {size} bytes: delete it")
        data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    count = struct.unpack_from("<I", data, 8)[0]
    if data[:8] != _MAGIC or size < 12 + 8 * count:
        raise IntegrityError(f"{path}: expected a cached photograph, got another file: delete it")
    extents = [Extent(*struct.unpack_from("<II", data, 12 + 8 * i)) for i in range(count)]
    ends = np.cumsum([12 + 8 * count, *(3 * height * width for height, width in extents)]).tolist()
    if ends[-1] != size or not count:
        raise IntegrityError(f"{path}: expected {ends[-1]} bytes of a cached photograph, got {size}: delete it")
    levels = [
        np.frombuffer(data, np.uint8, 3 * extent.height * extent.width, start).reshape(*extent, 3)
        for extent, start in zip(extents, ends[:-1], strict=True)
    ]
    return Pyramid(extents, levels.__getitem__)


def _header(extents: Sequence[Extent]) -> bytes:
    return _MAGIC + struct.pack(
        f"<I{2 * len(extents)}I", len(extents), *(side for extent in extents for side in extent)
    )


def _check(written: Pyramid, levels: Pyramid) -> None:
    if written.extents != levels.extents:
        raise IntegrityError(f"expected levels of {levels.extents}, got {written.extents}")
