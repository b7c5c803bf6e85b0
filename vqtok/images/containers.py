"""What an image file says of itself, read without decoding: its format, whether it is whole, what it would cost.

Decoders trust structure that a stranger wrote: a checksum nobody compares, a thousand scans over one picture, millions
of empty chunks. The walks here take time linear in the file, allocate nothing, and run before any decoder.
"""

from __future__ import annotations

import re
import struct
import zlib

from vqtok.errors import ImageError

MAX_PARTS = 100_000
"""Chunks of a PNG or segments of a JPEG; Pillow handles each in Python, so millions of them would hang it."""

MAX_SCANS = 100
"""Scans of a progressive JPEG, each a pass over the whole picture; encoders write about ten."""

MAX_PROLOGUE = 1 << 20
"""Bytes of a GIF before its first picture; Pillow reads them block by block in Python."""

MAX_FILL = 4096
"""Bytes 0xff before a marker of a JPEG; Pillow skips them one by one in Python."""

_ALLOWED = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"BM", "BMP"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
)

_REFUSED = (
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"%!PS", "EPS"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"%PDF", "PDF"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"8BPS", "PSD"),
    (0, b"\0\0\1\0", "ICO"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyp", "HEIF or video"),
    (4, b"jP  ", "JPEG 2000"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
)

# Left, top and steps of the seven passes of an interlaced PNG.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))

# After entropy-coded data a marker is 0xff and neither a stuffed zero, nor a restart marker, nor fill.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


def sniff(data: bytes) -> str | None:
    """Return the format that content has, whatever its file is called.

    Args:
        data: the file's bytes; the first 16 decide.

    Returns:
        ``JPEG``, ``PNG``, ``WEBP``, ``BMP`` or ``GIF``, or None for anything else.

    >>> sniff(b"GIF89a"), sniff(b"%!PS-Adobe")
    ('GIF', None)
    """
    found = next((name for at, magic, name in _ALLOWED if data.startswith(magic, at)), None)
    return None if found == "WEBP" and not data.startswith(b"RIFF") else found


def describe(data: bytes) -> str:
    """Return words for content that `sniff` does not know, for an error message.

    >>> describe(b"<!DOCTYPE html><html>")
    'HTML content'
    """
    for at, magic, name in _REFUSED:
        if data.startswith(magic, at):
            return f"{name} content"
    head = data[:512].lower()
    if b"<svg" in head:
        return "SVG content"
    if b"<html" in head or b"<!doctype html" in head:
        return "HTML content"
    return f"unknown content beginning with bytes {data[:8].hex(' ')}"


def is_whole(data: bytes, format: str) -> bool:
    r"""Walk a file's outer structure.

    A PNG must have sound checksums and end with IEND: Pillow compares no checksum of picture data, and an orientation
    may stand behind it. A WEBP must be as long as it says. The decoders of the others find a missing end themselves.

    Args:
        data: the whole file.
        format: what `sniff` said.

    Returns:
        False where the end is missing.

    Raises:
        ImageError: ``corrupt`` for a wrong checksum, ``too_large`` for more parts or scans than any honest file has.

    >>> is_whole(b"RIFF\xff\0\0\0WEBP", "WEBP")
    False
    """
    walk = {"PNG": _walk_png, "JPEG": _walk_jpeg, "GIF": _walk_gif, "WEBP": _walk_webp}.get(format)
    return walk is None or walk(data)


def _walk_png(data: bytes) -> bool:
    view, at = memoryview(data), 8
    for _ in range(MAX_PARTS):
        if at + 12 > len(data):
            return False
        length, name = struct.unpack_from(">I4s", data, at)
        stop = at + 12 + length
        if stop > len(data):
            return False
        if zlib.crc32(view[at + 4 : stop - 4]) != int.from_bytes(view[stop - 4 : stop], "big"):
            raise ImageError(
                "corrupt",
                f"expected PNG chunks that match their checksums, got another checksum in the one at byte {at}. "
                "The file was damaged after it was written: fetch it again.",
            )
        if name == b"IEND":
            return True
        at = stop
    raise _too_many("chunks", MAX_PARTS)


def _walk_jpeg(data: bytes) -> bool:
    at, scans = 2, 0
    for _ in range(MAX_PARTS):
        found = _MARKER.search(data, at)
        if found is None:
            # Left to the decoder: it tells a scan that stops short from a harmless missing end marker.
            return True
        if found.start() >= MAX_FILL and not data[found.start() - MAX_FILL : found.start()].strip(b"\xff"):
            raise _too_many("fill bytes", MAX_FILL)
        at, marker = found.end(), data[found.start() + 1]
        if marker == 0xD9:
            return True
        if marker not in (0x01, 0xD8):
            at += int.from_bytes(data[at : at + 2], "big")
        scans += marker == 0xDA
        if scans > MAX_SCANS:
            raise _too_many("scans", MAX_SCANS)
    raise _too_many("segments", MAX_PARTS)


def check_png_rows(data: bytes) -> None:
    """Inflate the picture data of a PNG whose chunks are sound, and count: Pillow leaves missing rows black.

    Args:
        data: the whole file; its size in pixels was checked, since this takes time linear in it.

    Raises:
        ImageError: ``truncated``.
    """
    missing, inflate, at = _png_raster(data[16:29]), zlib.decompressobj(), 8
    while missing > 0:
        length, name = struct.unpack_from(">I4s", data, at)
        if name == b"IEND":
            raise ImageError(
                "truncated", f"expected all rows of a PNG, but {missing} bytes are not there. Fetch it again."
            )
        part = data[at + 8 : at + 8 + length] if name == b"IDAT" else b""
        while part and missing > 0:
            try:
                missing -= len(inflate.decompress(part, 1 << 20))
            except zlib.error:
                return  # the decoder will say so
            part = inflate.unconsumed_tail
        at += 12 + length


def _png_raster(header: bytes) -> int:
    """Return the bytes of all rows, each with its filter byte, of a PNG with this IHDR."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 0)
    total = 0
    for left, top, step_x, step_y in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -((left - width) // step_x), -((top - height) // step_y)
        total += rows * (1 + (columns * bits + 7) // 8) if columns > 0 < rows else 0
    return total


def _walk_gif(data: bytes) -> bool:
    flags = data[10] if len(data) > 10 else 0
    at = 13 + (6 << (flags & 7) if flags & 128 else 0)
    end = min(len(data), MAX_PROLOGUE)
    while at < end:
        byte, at = data[at], at + 1
        if byte == 0x2C:
            return True
        if byte == 0x21:
            at += 1
            while at < end and data[at]:
                at += data[at] + 1
            at += 1
    if at < len(data):
        raise _too_many("bytes before the first picture", MAX_PROLOGUE)
    return False


def _walk_webp(data: bytes) -> bool:
    return len(data) >= 12 and int.from_bytes(data[4:8], "little") + 8 <= len(data)


def _too_many(what: str, limit: int) -> ImageError:
    return ImageError(
        "too_large",
        f"expected at most {limit} {what}, got more. No honest encoder writes this: leave it out, or save it again.",
    )
