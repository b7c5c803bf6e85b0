"""From images to the crops of a batch: what a worker process does. A crop depends on its image and its seed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vqtok.dataset.decoding import Failure
from vqtok.dataset.items import Item
from vqtok.dataset.tables import Columns
from vqtok.errors import ResourceError
from vqtok.training.cache import PhotoCache
from vqtok.training.data_section import DataSection, ResizedCrops, ScaledCrops
from vqtok.training.pyramid import Pyramid


@dataclass(frozen=True, slots=True)
class Sample:
    """One crop to be made.

    Attributes:
        item: the image.
        columns: how its table is read.
        seed: of its scale, place and mirroring: below 2^63.
    """

    item: Item
    columns: Columns
    seed: int


@dataclass(frozen=True, slots=True)
class Task:
    """The crops of one batch to be made, of one side in pixels."""

    step: int
    size: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """The crops of one batch.

    Attributes:
        step: of the task.
        crops: uint8 [N, size, size, 3]; zeros where an image was refused.
        refused: by the number of the sample.
    """

    step: int
    crops: Tensor
    refused: dict[int, Failure]


class Cutter(Dataset[Cut]):
    """Makes batches of crops.

    Args:
        section: of the recipe.
        folder: of the cache, "" for none.
    """

    def __init__(self, section: DataSection, folder: str) -> None:
        self._crops, self._flip = section.crops, section.flip
        sides = section.crops.sides if isinstance(section.crops, ScaledCrops) else ()
        self._photos = PhotoCache(folder, sides)
        self._transforms: dict[int, Callable[[Tensor], Tensor]] = {}

    def __getitem__(self, task: Task) -> Cut:
        """Return the crops of a task; made in the order in which their bytes lie, so that a table is read in turn."""
        cut = Cut(task.step, torch.zeros(len(task.samples), task.size, task.size, 3, dtype=torch.uint8), {})
        with torch.random.fork_rng(devices=[]):
            for number in sorted(range(len(task.samples)), key=lambda i: task.samples[i].item.place()):
                self._place(cut, number, task.samples[number])
        return cut

    def replace(self, cut: Cut, number: int, sample: Sample) -> bool:
        """Put another crop in the place of one that was refused; return whether it was not refused, too."""
        with torch.random.fork_rng(devices=[]):
            return self._place(cut, number, sample)

    def _place(self, cut: Cut, number: int, sample: Sample) -> bool:
        levels = self._photos.photo(sample.item, sample.columns)
        if isinstance(levels, Failure):
            cut.refused[number] = levels
            return False
        size = cut.crops.shape[1]
        # Not torch.manual_seed, which would seed the generators of GPUs as well.
        torch.default_generator.manual_seed(sample.seed)
        photo = torch.from_numpy(levels.level(self._level(levels, size))).permute(2, 0, 1)
        if size not in self._transforms:
            self._transforms[size] = transform(self._crops, self._flip, size)
        cut.crops[number] = self._transforms[size](photo).permute(1, 2, 0)
        return True

    def _level(self, levels: Pyramid, size: int) -> int:
        """Draw one of the levels that hold a whole crop; if none does, take the largest."""
        shorts = [min(extent) for extent in levels.extents]
        fitting = [i for i, short in enumerate(shorts) if short >= size] or [int(np.argmax(shorts))]
        if len(fitting) == 1 or not isinstance(self._crops, ScaledCrops):
            return fitting[0]
        weights = [self._crops.weights[self._crops.sides.index(shorts[i])] for i in fitting]
        return fitting[pick(weights, float(torch.rand(())))]


def pick(weights: Sequence[float], number: float) -> int:
    """Return the index whose part of 0..1, as wide as its weight, holds a number.

    >>> [pick([1, 2, 1], number) for number in (0.2, 0.3, 0.7, 0.8)]
    [0, 1, 1, 2]
    """
    ends = np.cumsum(weights) / sum(weights)
    return min(int(np.searchsorted(ends, number, side="right")), len(weights) - 1)


def transform(crops: ScaledCrops | ResizedCrops, flip: float, size: int) -> Callable[[Tensor], Tensor]:
    """Return torchvision's transform uint8 [3, H, W] -> uint8 [3, size, size], which draws from torch's generator."""
    v2 = transforms()
    if isinstance(crops, ScaledCrops):
        crop = v2.RandomCrop(size, pad_if_needed=True, padding_mode="edge")
    else:
        crop = v2.RandomResizedCrop(size, scale=crops.area, ratio=crops.aspect, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(flip)])


def transforms() -> Any:
    """Return ``torchvision.transforms.v2``, or say how to get it."""
    try:
        from torchvision.transforms import v2
    except ImportError:
        raise ResourceError("expected torchvision for training: install it with: pip install 'vqtok[train]'") from None
    return v2
