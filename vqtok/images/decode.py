"""Untrusted images to uint8 RGB arrays, or an `ImageError` of a stable kind; nothing else comes out.

Kinds raised here: ``missing``, ``unreadable``, ``empty``, ``format``, ``truncated``, ``corrupt``, ``too_large`` (bytes
or parts), ``too_many_pixels`` (area or side), ``depth``, ``memory``, ``decode`` (a decoder failed in its own way).
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from vqtok.errors import ConfigError, ImageError, escape
from vqtok.images import colour, containers
from vqtok.images.files import Limits, check_bytes, display_name, read

RGB: TypeAlias = npt.NDArray[np.uint8]
Source: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | RGB

# Named so that each is registered: Image.open imports every plugin there is when a format it is asked for is not.
_PLUGINS = (BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin)

_POLICIES = (("apply", "ignore"), ("white", "black", "keep"), ("refuse", "scale"))

# First match wins: words of Pillow's own messages, the kind they mean, what to do.
_REASONS = (
    ("truncated", "truncated", "The file stops early: fetch it again."),
    ("not enough image data", "truncated", "The file stops early: fetch it again."),
    ("out of memory", "memory", "Decode fewer images at once, or give the process more memory."),
    ("decompression bomb", "too_many_pixels", "Scale the image down before."),
    ("too much memory", "too_large", "Its metadata is far larger than it should be: save the image again without it."),
    ("too large", "too_large", "Its metadata unpacks to far more than it should: save the image again without it."),
)


class _Quiet:
    """Keeps Pillow's warnings from showing (or raising) while any thread decodes.

    ``warnings.catch_warnings`` alone restores the filters of whichever thread leaves last; counting makes that safe.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caught.__exit__(None, None, None)


_quiet = _Quiet()
if hasattr(os, "register_at_fork"):
    # Another thread of the parent may hold the lock at the moment of a fork.
    os.register_at_fork(after_in_child=_quiet.__init__)


def decode(
    source: Source,
    *,
    exif: Literal["apply", "ignore"] = "apply",
    alpha: Literal["white", "black", "keep"] = "white",
    depth16: Literal["refuse", "scale"] = "refuse",
    limits: Limits | None = None,
    name: str | None = None,
) -> RGB:
    """Turn one image into RGB.

    Files and bytes are untrusted: content decides the format (JPEG, PNG, WEBP, BMP, GIF and no other; the first frame
    of an animation), limits are checked before pixels exist, and a damaged file is an error. What no check can tell is
    a JPEG that was cut and then closed by an end marker: libjpeg fills it up with grey, and Pillow says nothing of it.
    ICC profiles are ignored. CMYK, palettes, greys and 1-bit become RGB as Pillow's ``convert("RGB")`` makes them.

    Args:
        source: a path, a file's bytes, a Pillow image (its current frame, left as it is), or a uint8 array of
            [H, W, 3], [H, W, 4] (with alpha), [H, W, 1] or [H, W].
        exif: turn the picture as its EXIF orientation says, or not. Unreadable EXIF turns nothing.
        alpha: composite on ``white`` or ``black``, as (c * a + background * (255 - a)) / 255 rounded to nearest, or
            ``keep`` the colour hidden under the alpha.
        depth16: refuse samples of more than 8 bits, or scale them: v * 255 / 65535 rounded to nearest. Mode ``I`` must
            then lie in 0..65535, mode ``F`` in 0..1 (v * 255, half to even).
        limits: sizes above which to refuse; None for the usual `Limits`.
        name: what messages call the image; None takes the path, or the kind of source.

    Returns:
        uint8 [H, W, 3], contiguous, writable, sharing nothing with the source.

    Raises:
        ImageError: the image is refused; ``kind`` says why, the message what to do.
        ConfigError: a policy is none of the words above.

    >>> decode(np.zeros((2, 3), np.uint8)).shape
    (2, 3, 3)
    """
    for word, known in zip((exif, alpha, depth16), _POLICIES, strict=True):
        if word not in known:
            raise ConfigError(f"expected a policy among {', '.join(known)}, got {word!r}")
    shown = display_name(source) if name is None else escape(name)
    try:
        with _quiet:
            image, data = _open(source, limits or Limits())
            return colour.to_rgb(image, data, exif, alpha, depth16)
    except ImageError as error:
        raise ImageError(error.kind, f"{shown}: {error}") from error.__cause__
    except Exception as error:
        raise _refusal(shown, error) from error


def _open(source: Source, limits: Limits) -> tuple[Image.Image, bytes]:
    if isinstance(source, np.ndarray):
        image, data = _from_array(source), b""
    elif isinstance(source, Image.Image):
        image, data = source, b""
    elif isinstance(source, (bytes, str, os.PathLike)):
        data = source if isinstance(source, bytes) else read(source, limits)
        return _open_bytes(data, limits), data
    else:
        raise ImageError("format", "expected a path, bytes, a Pillow image or a uint8 array. Convert it.")
    _check_size(image.size, limits)
    return image, data


def _open_bytes(data: bytes, limits: Limits) -> Image.Image:
    if not data:
        raise ImageError("empty", "expected an image, got 0 bytes. Fetch it again.")
    check_bytes(len(data), limits)
    format = containers.sniff(data)
    if format is None:
        raise ImageError(
            "format",
            f"expected JPEG, PNG, WEBP, BMP or GIF content, got {containers.describe(data)}. Convert it first.",
        )
    cut = ImageError("truncated", f"expected a whole {format}, got its first {len(data)} bytes. Fetch it again.")
    whole = containers.is_whole(data, format)
    try:
        image = Image.open(io.BytesIO(data), formats=(format,))
    except OSError as error:
        if not whole:
            raise cut from error
        if not isinstance(error, Image.UnidentifiedImageError):
            raise
        # Pillow's text names a buffer's address, which helps nobody and differs from run to run.
        raise ImageError("corrupt", f"expected a {format} header, got a broken one. Fetch it again.") from error
    _check_size(image.size, limits)
    if not whole:
        raise cut
    if format == "PNG":
        containers.check_png_rows(data)
    return image


def _from_array(array: npt.NDArray[np.generic]) -> Image.Image:
    if array.dtype != np.uint8:
        raise ImageError("depth", f"expected a uint8 array, got {array.dtype}. Scale it to 0..255 and round.")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError("format", f"expected an array [H, W, 3] or [H, W], got {list(array.shape)}. Transpose it?")
    if 0 in array.shape:
        raise ImageError("empty", f"expected at least one pixel, got an array of {list(array.shape)}.")
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array))


def _check_size(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError("empty", f"expected at least one pixel, got {height} x {width}. Leave it out.")
    if max(size) > limits.max_side or width * height > limits.max_pixels:
        raise ImageError(
            "too_many_pixels",
            f"expected at most {limits.max_pixels} pixels and sides of {limits.max_side}, got {height} x {width}. "
            "Scale it down before, or raise the limits.",
        )


def _refusal(shown: str, error: Exception) -> ImageError:
    text = escape(str(error) or type(error).__name__)
    for words, kind, advice in _REASONS:
        if words in text.lower():
            return ImageError(kind, f"{shown}: expected a sound image, got: {text}. {advice}")
    if isinstance(error, MemoryError):
        return ImageError("memory", f"{shown}: memory ran out. Decode fewer images at once, or lower the limits.")
    kind = "corrupt" if isinstance(error, (OSError, SyntaxError, ValueError, EOFError)) else "decode"
    return ImageError(kind, f"{shown}: expected a sound image, got: {text}. Fetch it again, or leave it out.")
