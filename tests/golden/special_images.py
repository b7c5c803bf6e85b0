"""Images on which tokenizers go wrong, made from arithmetic alone so that they are the same everywhere."""

import numpy as np


def special_images() -> dict[str, np.ndarray]:
    """Return uint8 [H, W, 3] by name."""
    y, x = np.mgrid[0:48, 0:64]
    noise = (
        (np.arange(48 * 64 * 3, dtype=np.uint64) * 2654435761 % 4294967291 >> 20).astype(np.uint8).reshape(48, 64, 3)
    )
    return {
        "black": np.zeros((32, 32, 3), np.uint8),
        "white": np.full((32, 32, 3), 255, np.uint8),
        "grey": np.full((32, 32, 3), 128, np.uint8),
        "one pixel": np.array([[[200, 30, 90]]], np.uint8),
        "one white pixel on black": np.pad(np.full((1, 1, 3), 255, np.uint8), ((17, 14), (9, 22), (0, 0))),
        "checkerboard": np.repeat(((x + y) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2),
        "coarse checkerboard": np.repeat(((x // 8 + y // 8) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2),
        "gradient": np.stack([4 * x, 5 * y, 2 * (x + y)], axis=2).astype(np.uint8),
        "stripes": np.stack([x % 3 * 127, y % 5 * 63, (x + 2 * y) % 7 * 42], axis=2).astype(np.uint8),
        "noise": noise,
        "no multiple of eight": noise[:37, :29],
    }
