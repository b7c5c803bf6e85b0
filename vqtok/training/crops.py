"""Training images: random crops of photographs that are kept in memory, each at several scales."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from vqtok import images
from vqtok.errors import ImageError, InputError

# Photographs are scaled down to these short sides: a large one in full is smooth where a small picture has detail.
SHORT_SIDES = (1024, 512, 256)
_SCALE_WEIGHTS = (0.3, 0.5, 0.2)


class PhotoCrops:
    """Random crops, the same for the same seed and step, so that a resumed training sees what it would have seen.

    Args:
        groups: a weight and a folder (or a list of files) each; every photograph of a group is equally likely.
        seed: of the crops.

    Raises:
        InputError: a group holds no image that can be read.
    """

    def __init__(self, groups: Iterable[tuple[float, Path | Sequence[Path]]], seed: int = 0) -> None:
        self.seed = seed
        self.weights: list[float] = []
        self.photos: list[list[list[images.RGB]]] = []
        for weight, files in groups:
            listed = sorted(p for p in files.rglob("*") if p.is_file()) if isinstance(files, Path) else files
            photos = [scales for path in tqdm(listed, "photos", disable=None) if (scales := _pyramid(path))]
            if not photos:
                raise InputError(f"expected photographs in {files}, found none that can be read")
            self.weights.append(weight)
            self.photos.append(photos)

    def batch(self, step: int, count: int, size: int) -> images.RGB:
        """Return uint8 [count, size, size, 3], half of them mirrored at random."""
        rng = np.random.default_rng((self.seed, step))
        shares = np.array(self.weights) / sum(self.weights)
        return np.stack([self._crop(rng, self.photos[rng.choice(len(shares), p=shares)], size) for _ in range(count)])

    def _crop(self, rng: np.random.Generator, photos: list[list[images.RGB]], size: int) -> images.RGB:
        scales = photos[rng.integers(len(photos))]
        scales = [x for x in scales if min(x.shape[:2]) >= size] or scales[:1]
        weights = np.array(_SCALE_WEIGHTS[: len(scales)])
        photo = scales[rng.choice(len(scales), p=weights / weights.sum())]
        top, left = (int(rng.integers(max(1, side - size + 1))) for side in photo.shape[:2])
        crop = photo[top : top + size, left : left + size]
        crop = np.pad(crop, [(0, size - crop.shape[0]), (0, size - crop.shape[1]), (0, 0)], mode="edge")
        return crop[:, ::-1] if rng.random() < 0.5 else crop


def short_side(photo: images.RGB, side: int) -> npt.NDArray[np.uint8]:
    """Return a photograph uint8 [H, W, 3] scaled down (bicubic) to a short side; a smaller one as it is."""
    height, width = photo.shape[:2]
    scale = side / min(height, width)
    if scale >= 1:
        return photo
    return np.asarray(
        Image.fromarray(photo).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    )


def _pyramid(path: Path) -> list[images.RGB]:
    try:
        photo = images.to_rgb(path, images.PreprocessSpec())
    except ImageError as error:
        tqdm.write(f"left out: {error}")
        return []
    sides = [side for side in SHORT_SIDES if side <= min(photo.shape[:2])]
    return [short_side(photo, side) for side in sides] or [photo]
