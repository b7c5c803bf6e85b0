"""Colours for codes and for values, even to the eye: laid out in OKLCH (Ottosson 2020, "A perceptual color space")."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Colour = tuple[int, int, int]

INK: Colour = (32, 33, 36)
SOFT: Colour = (112, 117, 122)
GRID: Colour = (232, 234, 237)
PAPER: Colour = (255, 255, 255)
EMPTY: Colour = (244, 245, 247)
ACCENT: Colour = (52, 84, 164)
ALARM: Colour = (200, 48, 48)

_GOLDEN = 0.6180339887498949

# Oklab to the cube roots of cone responses, and cone responses to linear sRGB.
_CONES = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_SRGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def oklch(
    lightness: npt.NDArray[np.float64], chroma: npt.NDArray[np.float64], hue: npt.NDArray[np.float64]
) -> npt.NDArray[np.uint8]:
    """Return sRGB uint8 [..., 3] of lightness 0..1, chroma 0..0.4 and hue in turns, all of one shape; clipped.

    >>> one = np.ones(1)
    >>> oklch(one, 0 * one, 0 * one).tolist(), oklch(0.628 * one, 0.2577 * one, 29.23 / 360 * one).tolist()
    ([[255, 255, 255]], [[255, 0, 0]])
    """
    angle = 2 * np.pi * hue
    lab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)
    linear = ((lab @ _CONES.T) ** 3 @ _SRGB.T).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * encoded).astype(np.uint8)


def code_colours(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return uint8 [n, 3] for codes [n]: hues a golden angle apart, so that neighbouring ids look different.

    A code has the same colour in every picture.

    >>> code_colours(np.array([0, 1, 0])).tolist()
    [[124, 68, 86], [79, 194, 230], [124, 68, 86]]
    """
    i = codes.astype(np.float64)
    # Two more steps, of other lengths, so that codes of nearly one hue differ in something else.
    return oklch(0.46 + 0.4 * (i * 0.7548776662 % 1), 0.08 + 0.06 * (i * 0.5698402910 % 1), i * _GOLDEN % 1)


def ramp(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Return uint8 [..., 3] for values 0..1, others clipped: from dark blue over green to light yellow.

    >>> ramp(np.array([0.0, 1.0])).tolist()
    [[42, 39, 107], [239, 217, 86]]
    """
    t = values.clip(0, 1)
    return oklch(0.32 + 0.56 * t, 0.115 + 0.035 * t, (280 - 180 * t) / 360)
