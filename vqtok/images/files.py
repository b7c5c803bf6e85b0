"""Reading files that strangers name, and showing their names."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from vqtok.errors import ImageError, escape

_SPECIAL = {stat.S_IFDIR: "directory", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}


@dataclass(frozen=True, slots=True)
class Limits:
    """What an image may cost at most.

    Attributes:
        max_bytes: size of the file, checked before it is read.
        max_pixels: height times width, checked before pixels are decoded. Pillow itself refuses more than twice its
            own ``Image.MAX_IMAGE_PIXELS``, whatever stands here.
        max_side: height or width.

    >>> Limits(max_pixels=4096).max_side
    65535
    """

    max_bytes: int = 64 << 20
    max_pixels: int = 89_478_485
    max_side: int = 65_535


def display_name(source: object) -> str:
    r"""Return what messages call a source: its path with control characters escaped, or its type in brackets.

    >>> display_name("a\x1b[2Jb.jpg"), display_name(b"...")
    ('a\\x1b[2Jb.jpg', '<bytes>')
    """
    if isinstance(source, (str, os.PathLike)):
        return escape(os.fsdecode(source))
    return f"<{type(source).__name__}>"


def read(path: str | os.PathLike[str], limits: Limits) -> bytes:
    """Read a regular file without ever blocking on, or acting upon, anything else.

    Args:
        path: where it is; links are followed.
        limits: ``max_bytes`` is asked before anything is read.

    Returns:
        The whole content.

    Raises:
        ImageError: ``missing``, ``unreadable`` or ``too_large``.

    >>> read(os.devnull, Limits())
    Traceback (most recent call last):
    vqtok.errors.ImageError: expected a regular file, got a device. Leave it out.
    """
    try:
        # Asked before opening: opening a FIFO or a device may block, or act. O_NONBLOCK covers a swap in between.
        _check_regular(os.stat(path), limits)
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:
            size = _check_regular(os.fstat(handle), limits)
            data = file.read(size + 1)
    except FileNotFoundError as error:
        hint = "the link's target is gone" if os.path.islink(path) else "check the path"
        raise ImageError("missing", f"expected an image file, found none: {hint}.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError("unreadable", f"expected a readable file, got: {reason}. Check path and rights.") from error
    if len(data) != size:
        raise ImageError("unreadable", f"expected {size} bytes, got another number. It changed while read: try again.")
    return data


def _check_regular(info: os.stat_result, limits: Limits) -> int:
    if not stat.S_ISREG(info.st_mode):
        kind = _SPECIAL.get(stat.S_IFMT(info.st_mode), "device")
        raise ImageError("unreadable", f"expected a regular file, got a {kind}. Leave it out.")
    check_bytes(info.st_size, limits)
    return info.st_size


def check_bytes(size: int, limits: Limits) -> None:
    """Raise ``too_large`` for more bytes than allowed.

    >>> check_bytes(10, Limits())
    """
    if size > limits.max_bytes:
        raise ImageError(
            "too_large", f"expected at most {limits.max_bytes} bytes, got {size}. Leave it out, or raise the limit."
        )
