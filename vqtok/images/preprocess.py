"""How an image becomes a model's input and back: data that is saved with the model, because tokens depend on every bit.

Decoding and resizing are Pillow's and numpy's alone; `algorithm` names this arithmetic, so that a change of it is a new
name and never a silent change of tokens.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vqtok.errors import ConfigError, ImageError, escape
from vqtok.images.decode import RGB, Source, decode
from vqtok.images.files import Limits, display_name
from vqtok.images.resize import RESIZES

Pixels = npt.NDArray[np.float32]
_Triple = tuple[float, float, float]
_Levels = np.arange(256, dtype=np.uint8).reshape(256, 1).repeat(3, axis=1)


class PreprocessSpec(BaseModel):
    """What a model expects of images. Frozen; part of the model's config.json.

    Attributes:
        algorithm: the arithmetic of this module.
        resize: ``none`` keeps the true size. ``center``: the short side becomes `size`, then a square is cut from the
            centre (torchvision's arithmetic). ``adm``: halved with a box filter while the short side is at least twice
            `size`, then bicubic, then cut (the arithmetic of ADM, LlamaGen, RAR). ``stretch``: `size` x `size`.
        size: side of the result, for every `resize` but ``none``.
        filter: Pillow's filter for ``center`` and ``stretch``.
        multiple: the model's downsampling factor; other sizes are padded at the bottom and right by repeating the edge.
        low: what 0 becomes, before `mean` and `std`.
        high: what 255 becomes, before `mean` and `std`.
        mean: subtracted from each channel, after low and high.
        std: divides each channel, after mean.
        exif: whether the picture is turned as EXIF says.
        alpha: what lies behind transparent pixels, or ``keep`` the colour hidden there.
        depth16: whether samples of more than 8 bits are refused or scaled.

    >>> PreprocessSpec(multiple=16).low
    -1.0
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    algorithm: Literal["pil-1"] = "pil-1"
    resize: Literal["none", "center", "adm", "stretch"] = "none"
    size: Annotated[int, Field(ge=1, le=65_535)] | None = None
    filter: Literal["bicubic", "lanczos", "bilinear", "box"] = "bicubic"
    multiple: Annotated[int, Field(ge=1, le=4096)] = 1
    low: float = -1.0
    high: float = 1.0
    mean: _Triple = (0.0, 0.0, 0.0)
    std: _Triple = (1.0, 1.0, 1.0)
    exif: Literal["apply", "ignore"] = "apply"
    alpha: Literal["white", "black", "keep"] = "white"
    depth16: Literal["refuse", "scale"] = "refuse"

    @model_validator(mode="after")
    def _agrees(self) -> PreprocessSpec:
        """Refuse fields that contradict each other, and ranges in which float32 cannot tell 256 levels apart."""
        if (self.resize == "none") != (self.size is None):
            raise ValueError(f"expected size exactly where resize is not 'none', got {self.resize!r} and {self.size}")
        if self.resize == "adm" and self.filter != "bicubic":
            raise ValueError(f"expected filter 'bicubic' with resize 'adm', got {self.filter!r}")
        if not self.low < self.high or min(self.std) <= 0:
            raise ValueError("expected low below high and every std above 0")
        with np.errstate(all="ignore"):
            back = _to_levels(_to_floats(_Levels, self), self)
        if not np.array_equal(back, _Levels):
            raise ValueError("expected low, high, mean and std that keep 256 levels apart in float32")
        return self

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> PreprocessSpec:
        """Read a spec from a parsed config.json.

        Args:
            config: what ``spec.model_dump(mode="json")`` gave.

        Raises:
            ConfigError: an unknown key (with the nearest known one), a wrong type or value, a contradiction.

        >>> PreprocessSpec.from_config({"resize": "center", "size": 256}).size
        256
        """
        try:
            return cls.model_validate_json(json.dumps(config))
        except ValidationError as error:
            raise ConfigError(f"preprocess: {'; '.join(_teach(cls, row) for row in error.errors())}") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"preprocess: expected plain JSON values, got {escape(str(error))}") from error


def to_rgb(source: Source, spec: PreprocessSpec, *, limits: Limits | None = None, name: str | None = None) -> RGB:
    """Decode an image and bring it to the size at which it is tokenized.

    Args:
        source: what `vqtok.images.decode` takes.
        spec: the model's.
        limits: sizes above which to refuse; the resized image, too, must keep to ``max_pixels``.
        name: what messages call the image.

    Returns:
        uint8 [H, W, 3]; its (H, W) is the true size that token files record.

    Raises:
        ImageError: the image is refused.

    >>> to_rgb(np.zeros((20, 30, 3), np.uint8), PreprocessSpec(resize="center", size=10)).shape
    (10, 10, 3)
    """
    limits = limits or Limits()
    array = decode(source, exif=spec.exif, alpha=spec.alpha, depth16=spec.depth16, limits=limits, name=name)
    if spec.size is None:
        return array
    height, width = array.shape[:2]
    area = spec.size**2 * (1 if spec.resize == "stretch" else max(height, width) / min(height, width))
    if area > limits.max_pixels:
        shown = display_name(source) if name is None else escape(name)
        raise ImageError(
            "too_many_pixels",
            f"{shown}: expected at most {limits.max_pixels} pixels after resizing to {spec.size}, got {int(area)} from "
            f"{height} x {width}. The image is too narrow for this: leave it out.",
        )
    return RESIZES[spec.resize](array, spec.size, spec.filter)


def to_pixels(array: RGB, spec: PreprocessSpec) -> Pixels:
    """Turn RGB into a model's input.

    Each operation rounds to float32, in this order: v / 255, times (high - low), plus low, minus mean, divided by std;
    high - low is rounded once from float64.

    Args:
        array: uint8 [H, W, 3], as `to_rgb` gives it.
        spec: the model's.

    Returns:
        float32 [3, H', W'], contiguous; H' and W' are the next multiples of ``spec.multiple``, filled at the bottom and
        right by repeating the last row and column.

    Raises:
        ConfigError: the array is of another shape or dtype.

    >>> to_pixels(np.full((2, 3, 3), 255, np.uint8), PreprocessSpec(multiple=4))[0].tolist()[0]
    [1.0, 1.0, 1.0, 1.0]
    """
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ConfigError(f"expected uint8 [H, W, 3], got {array.dtype} {list(array.shape)}: use to_rgb first")
    # 256 levels are all there are: the arithmetic is done on them, and pixels only look up.
    table = _to_floats(_Levels, spec)
    height, width = padded_size((array.shape[0], array.shape[1]), spec)
    pixels = np.empty((3, height, width), np.float32)
    for channel, plane in enumerate(pixels):
        plane[: array.shape[0], : array.shape[1]] = table[array[..., channel], channel]
        plane[: array.shape[0], array.shape[1] :] = plane[: array.shape[0], array.shape[1] - 1, None]
        plane[array.shape[0] :] = plane[array.shape[0] - 1]
    return pixels


def from_pixels(pixels: Pixels, spec: PreprocessSpec, size: tuple[int, int]) -> RGB:
    """Turn a model's output back into RGB of the true size; the exact inverse of `to_pixels`.

    In float64, in this order: times std, plus mean, minus low, divided by (high - low), times 255, rounded half to
    even, clipped to 0..255.

    Args:
        pixels: float32 [3, H', W'], of the shape that `to_pixels` gives for size.
        spec: the model's.
        size: true (height, width).

    Returns:
        uint8 [height, width, 3], contiguous.

    Raises:
        ConfigError: another shape or dtype, or values that are not finite.

    >>> from_pixels(np.zeros((3, 4, 4), np.float32), PreprocessSpec(multiple=4), (1, 2)).tolist()
    [[[128, 128, 128], [128, 128, 128]]]
    """
    expected = (3, *padded_size(size, spec))
    if pixels.dtype != np.float32 or pixels.shape != expected:
        raise ConfigError(f"expected float32 {list(expected)} for size {size}, got {pixels.dtype} {list(pixels.shape)}")
    cut = pixels[:, : size[0], : size[1]]
    if not np.isfinite(cut).all():
        raise ConfigError("expected finite pixels, got NaN or infinity: look for an overflow in the decoder")
    return _to_levels(np.ascontiguousarray(cut.transpose(1, 2, 0)), spec)


def padded_size(size: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int]:
    """Return the (height, width) that a true (height, width) has once padded.

    >>> padded_size((16, 17), PreprocessSpec(multiple=16))
    (16, 32)
    """
    if min(size) < 1:
        raise ConfigError(f"expected a height and a width of at least 1, got {size}")
    return -(-size[0] // spec.multiple) * spec.multiple, -(-size[1] // spec.multiple) * spec.multiple


def _to_floats(levels: RGB, spec: PreprocessSpec) -> Pixels:
    span = np.float32(spec.high - spec.low)
    values = levels.astype(np.float32) / np.float32(255) * span + np.float32(spec.low)
    shifted = values - np.array(spec.mean, np.float32)
    return np.divide(shifted, np.array(spec.std, np.float32), dtype=np.float32)


def _to_levels(values: Pixels, spec: PreprocessSpec) -> RGB:
    wide = values.astype(np.float64) * np.array(spec.std) + np.array(spec.mean)
    return np.rint((wide - spec.low) / (spec.high - spec.low) * 255).clip(0, 255).astype(np.uint8)


def _teach(model: type[BaseModel], row: Mapping[str, object]) -> str:
    """Return one of pydantic's findings in a user's words."""
    where = ".".join(map(str, row["loc"])) if isinstance(row["loc"], tuple) else ""
    if row["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where, model.model_fields, n=1)
        known = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(model.model_fields)}"
        return f"unknown key '{escape(where)}': {known}"
    came = escape(repr(row["input"]), 80)
    return f"{escape(where) or 'the fields'}: {row['msg']}, got {came}"
