"""One decoded image to RGB: depth, alpha and orientation, each by an explicit policy and never by accident."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from vqtok.errors import ImageError

# Pillow scales the samples of 2- and 4-bit grey to 0..255, but not the transparent grey that they are compared with.
_GREY_STEPS = {"L;2": 85, "L;4": 17}
_BACKGROUND = {"white": 255, "black": 0}

# Orientation -> swap the axes, then flip the rows, then flip the columns.
_TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}

_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")


def to_rgb(image: Image.Image, data: bytes, exif: str, alpha: str, depth16: str) -> npt.NDArray[np.uint8]:
    """Return an opened image as RGB under the policies of `vqtok.images.decode`.

    Args:
        image: as opened; its pixels are loaded here.
        data: the file it was opened from, or nothing for an image that came without one.
        exif: ``apply`` or ``ignore``.
        alpha: ``white``, ``black`` or ``keep``.
        depth16: ``refuse`` or ``scale``.

    Returns:
        uint8 [H, W, 3], contiguous, of its own memory.

    Raises:
        ImageError: ``depth`` for samples of more than 8 bits, ``format`` for a mode that has no one way to RGB.

    >>> to_rgb(Image.new("LA", (1, 1), (7, 0)), b"", "apply", "white", "refuse").tolist()
    [[[255, 255, 255]]]
    """
    narrow = _narrow(image, data, depth16)
    if narrow.mode not in _MODES:
        raise ImageError("format", f"expected a mode among {', '.join(_MODES)}, got {narrow.mode}. Convert it to RGB.")
    rgb = _flatten(narrow, alpha)
    # Asked last: a PNG may carry its EXIF behind the pixels.
    turn = _TURNS.get(_orientation(image)) if exif == "apply" else None
    if turn is not None:
        swap, rows, columns = turn
        rgb = rgb.swapaxes(0, 1) if swap else rgb
        rgb = rgb[:: -1 if rows else 1, :: -1 if columns else 1]
    return np.ascontiguousarray(rgb)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        # Cameras and editors write broken EXIF around sound pictures, and every viewer shows them unturned.
        return 1
    return value if isinstance(value, int) else 1


def _flatten(image: Image.Image, alpha: str) -> npt.NDArray[np.uint8]:
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    straight = image.convert("LA") if image.mode == "La" else image
    rgba = np.asarray(straight.convert("RGBA"))
    if alpha == "keep":
        return rgba[..., :3].copy()
    flat = np.empty((*rgba.shape[:2], 3), np.uint8)
    for top in range(0, len(rgba), 256):
        # uint16 is enough: 255 * 255 + 127 < 65536. In bands, so that the largest allowed image costs no more memory.
        band = rgba[top : top + 256].astype(np.uint16)
        colour, opacity = band[..., :3], band[..., 3:]
        flat[top : top + 256] = (colour * opacity + _BACKGROUND[alpha] * (255 - opacity) + 127) // 255
    return flat


def _narrow(image: Image.Image, data: bytes, depth16: str) -> Image.Image:
    """Return the image with 8 bits a sample, its pixels loaded."""
    raw = _png_layout(image)
    if raw in _GREY_STEPS and isinstance(key := image.info.get("transparency"), int):
        scaled = image.copy()
        scaled.info["transparency"] = key * _GREY_STEPS[raw]
        return scaled
    if not raw.endswith(";16B") and not image.mode.startswith(("I", "F")):
        image.load()
        return image
    if depth16 != "scale":
        raise ImageError(
            "depth",
            f"expected 8 bits a sample, got {raw or 'mode ' + image.mode}. Set depth16 to 'scale', or convert it.",
        )
    if image.mode == "F":
        return Image.fromarray(np.rint(_within(np.asarray(image), 1) * 255).astype(np.uint8))
    values = _samples(image, data, raw)
    scaled = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    key = image.info.get("transparency")
    if raw and key is not None and scaled.shape[2] in (1, 3):
        # Compared before scaling: two neighbouring 16-bit colours may be one 8-bit colour.
        opaque = (values != np.array(key)).any(axis=2, keepdims=True)
        scaled = np.concatenate([scaled, np.where(opaque, 255, 0).astype(np.uint8)], axis=2)
    return Image.fromarray(scaled[..., 0] if scaled.shape[2] == 1 else scaled)


def _png_layout(image: Image.Image) -> str:
    """Return how a PNG stores its samples, ``RGB;16B`` for example, or nothing: Pillow's mode alone does not tell."""
    tile = getattr(image, "tile", None)
    raw = tile[0][3] if tile and image.format == "PNG" else ""
    return raw if isinstance(raw, str) else ""


def _samples(image: Image.Image, data: bytes, raw: str) -> npt.NDArray[np.uint16]:
    """Return 16-bit samples [H, W, C]."""
    if raw in ("", "I;16B"):
        return _within(np.asarray(image), 65535).astype(np.uint16)[..., None]
    if not data:
        raise ImageError("depth", "expected a file for 16-bit colour, got an opened image: pass its path or bytes.")
    if raw == "LA;16B":
        # Read as four bytes a pixel, which they are.
        pairs = _load_as(data, "RGBA")
        high, low = pairs[..., 0::2], pairs[..., 1::2]
    else:
        # Unpacking them as little-endian keeps what unpacking them as big-endian drops.
        high, low = np.asarray(image), _load_as(data, raw.replace("16B", "16L"))
    image.load()
    return high.astype(np.uint16) * np.uint16(256) + low


def _load_as(data: bytes, raw: str) -> npt.NDArray[np.uint8]:
    image = Image.open(io.BytesIO(data), formats=("PNG",))
    tiles: list[Any] = [(*tile[:3], raw) for tile in image.tile]
    image.tile = tiles
    return np.asarray(image)


def _within(values: npt.NDArray[Any], high: int) -> npt.NDArray[Any]:
    # Written so that NaN is refused as well.
    if not ((values >= 0) & (values <= high)).all():
        raise ImageError("depth", f"expected samples in 0..{high}, got others. Scale them to 0..255 yourself.")
    return values
