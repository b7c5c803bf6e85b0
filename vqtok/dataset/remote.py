"""Images in object stores and on servers, read through fsspec: ``s3://``, ``gs://``, ``https://``, ...

The protocols are a closed list: nothing that runs a program, unpacks, or chains one address into another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, TypeVar

from vqtok.errors import ConfigError, ImageError, InputError, ResourceError, escape
from vqtok.images.files import Limits, check_bytes

PROTOCOLS = ("s3", "gs", "gcs", "az", "abfs", "adl", "oci", "oss", "hf", "https", "http", "sftp", "file", "memory")
_MOST_LIST = 1 << 30
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
T = TypeVar("T")


def is_remote(path: str) -> bool:
    """Tell whether a path is an address.

    >>> is_remote("s3://bucket/a.jpg"), is_remote("photos/a.jpg")
    (True, False)
    """
    return _SCHEME.match(path) is not None


def check_address(url: str) -> str:
    """Return an address's protocol.

    Raises:
        ConfigError: it is none of `PROTOCOLS`, or chains addresses.

    >>> check_address("s3://bucket/a.jpg")
    's3'
    """
    found = _SCHEME.match(url)
    protocol = found[1].lower() if found else ""
    if protocol not in PROTOCOLS or "::" in url:
        raise ConfigError(f"{escape(url, 200)}: expected one of {' '.join(f'{p}://' for p in PROTOCOLS)}, unchained")
    return protocol


def file_system(url: str) -> Any:
    """Return fsspec's file system of an address, or say how to get it."""
    protocol = check_address(url)
    return _file_system(protocol)


@lru_cache
def _file_system(protocol: str) -> Any:
    try:
        import fsspec

        return fsspec.filesystem(protocol)
    except ImportError as error:
        # fsspec itself, or what it needs for this protocol: its own message names that package.
        reason = "" if error.name == "fsspec" else f" ({escape(str(error), 200)})"
        raise ResourceError(
            f"expected fsspec for {protocol}://{reason}: install it with: pip install 'vqtok[fsspec]'"
        ) from None
    except Exception as error:
        raise InputError(f"expected access to {protocol}://, got: {_reason(error)}: check region and rights") from None


def list_addresses(url: str, suffixes: frozenset[str]) -> list[str] | None:
    """Return the files that an address names, sorted by bytes: one, those of a pattern, or a folder's images.

    Args:
        url: the address.
        suffixes: of images, in small letters, with the dot.

    Returns:
        None when it is a file and no folder or pattern.

    Raises:
        InputError: nothing is there, or it cannot be read.
    """
    system = file_system(url)
    path = system._strip_protocol(url)
    if any(mark in path for mark in "*?["):
        found = _asked(url, lambda: [name for name in system.glob(path) if not system.isdir(name)])
    elif _asked(url, lambda: system.isfile(path)):
        return None
    else:
        names = _asked(url, lambda: system.find(path))
        found = [name for name in names if _suffix(name) in suffixes]
    if not found:
        raise InputError(f"{escape(url, 200)}: expected images or files, found none there: check the address")
    return sorted((str(system.unstrip_protocol(name)) for name in found), key=lambda name: name.encode())


def _suffix(name: str) -> str:
    last = name.rpartition("/")[2]
    return f".{last.rpartition('.')[2].lower()}" if "." in last else ""


def open_address(url: str) -> Any:
    """Return a file that can be read from any place; InputError when there is none."""
    system = file_system(url)
    return _asked(url, lambda: system.open(system._strip_protocol(url), "rb"))


def read_list(url: str) -> bytes:
    """Return a list's content; InputError when it cannot be read."""
    with open_address(url) as file:
        data = _asked(url, lambda: file.read(_MOST_LIST + 1))
    if len(data) > _MOST_LIST:
        raise InputError(f"{escape(url, 200)}: expected a list of at most {_MOST_LIST} bytes")
    return bytes(data)


def read_address(url: str, limits: Limits, offset: int = -1, size: int = -1) -> bytes:
    """Return an image's bytes: a whole file's, or ``size`` bytes from ``offset`` on.

    Raises:
        ImageError: ``missing``, ``unreadable``, ``too_large`` or ``truncated``.
    """
    try:
        system = file_system(url)
        path = system._strip_protocol(url)
        if offset >= 0:
            check_bytes(size, limits)
            data = system.cat_file(path, start=offset, end=offset + size)
        else:
            known = system.info(path).get("size")
            check_bytes(known or 0, limits)
            data = system.cat_file(path) if known is not None else _at_most(system, path, limits.max_bytes + 1)
            check_bytes(len(data), limits)
            size = len(data) if known is None else known
    except (ImageError, ResourceError):
        raise
    except FileNotFoundError as error:
        raise ImageError("missing", "expected an image at this address, found none: check it.") from error
    except Exception as error:  # each store has errors of its own
        raise ImageError("unreadable", f"expected a readable address, got: {_reason(error)}.") from error
    if len(data) != size:
        raise ImageError("truncated", f"expected {size} bytes at this address, got {len(data)}: try again.")
    return bytes(data)


def _at_most(system: Any, path: str, size: int) -> bytes:
    with system.open(path, "rb") as file:
        return file.read(size)


def _asked(url: str, question: Callable[[], T]) -> T:
    try:
        return question()
    except FileNotFoundError:
        raise InputError(f"{escape(url, 200)}: expected images or files, found none there: check the address") from None
    except Exception as error:  # each store has errors of its own
        raise InputError(f"{escape(url, 200)}: expected a readable address, got: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return escape(" ".join(f"{type(error).__name__} {error}".split()), 200)


def relative(urls: list[str], folder: str) -> Iterator[tuple[str, str]]:
    """Yield each address with its name in a folder."""
    system = file_system(folder)
    start = str(system.unstrip_protocol(system._strip_protocol(folder))).rstrip("/") + "/"
    yield from ((url.removeprefix(start), url) for url in urls)
