"""Training images as a pure function of seed and step, whatever decodes them: processes, ranks, folders or archives."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from vqtok import images
from vqtok.dataset.decoding import Failure
from vqtok.errors import ConfigError
from vqtok.training.cache_folder import cache_folder
from vqtok.training.cutting import Cut, Cutter, Sample, Task, transforms
from vqtok.training.data_section import DataSection as DataSection
from vqtok.training.data_section import Group as Group
from vqtok.training.loader import cut_ahead
from vqtok.training.order import Draw, Order
from vqtok.training.refusals import Refusals
from vqtok.training.sources import list_source
from vqtok.training.validation import ValidationImages, load_validation

_TRAINING, _CALIBRATION = 0, 1  # streams of random numbers
_ATTEMPTS = 100


@dataclass(frozen=True, slots=True)
class BatchShape:
    """How much a batch holds.

    Attributes:
        count: images, over all ranks.
        size: side of the crops in pixels.
    """

    count: int
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What one step trains on.

    Attributes:
        step: its number.
        images: uint8 [count / world_size, size, size, 3].
        failures: images refused for the first time; others stand in for them.
    """

    step: int
    images: images.RGB
    failures: tuple[Failure, ...]


class TrainingData:
    """The images of a recipe.

    The crop at a position (the number of crops before it, from step 0 on) is a function of seed and position alone:
    which image, scale, place and mirroring; of the images' bytes; and of the versions of numpy, Pillow and torchvision.

    Args:
        section: what to train on.
        seed: of order and crops.
        base: where relative paths start.

    Attributes:
        section: as given.
        count: number of training images.

    Raises:
        InputError: a source is missing, or holds no image.
        OutputError: the cache cannot be written.
        ResourceError: torchvision is not installed.

    >>> import tempfile
    >>> from PIL import Image
    >>> folder = tempfile.mkdtemp()
    >>> Image.new("RGB", (64, 48)).save(f"{folder}/a.png")
    >>> data = TrainingData(DataSection(train=(Group(path=folder),), workers=0), seed=0, base=Path())
    >>> next(data.batches(0, lambda step: BatchShape(count=4, size=32))).images.shape
    (4, 32, 32, 3)
    """

    def __init__(self, section: DataSection, seed: int, base: Path) -> None:
        transforms()
        self.section, self._seed = section, seed
        self._sources = [list_source(group, base) for group in section.train]
        self._validate_on = [list_source(Group(path=path), base) for path in section.validate_on]
        self._sizes = [len(source.items) for source in self._sources]
        self.count = sum(self._sizes)
        self._cache = cache_folder(section.cache, base)

    def batches(
        self, first: int, shape_of: Callable[[int], BatchShape], *, rank: int = 0, world_size: int = 1
    ) -> Generator[Batch, None, None]:
        """Yield the batches of steps first, first + 1, ... without end.

        Args:
            first: the step to start at.
            shape_of: the shape of each step's batch; steps before first are asked too, to know the position.
            rank: which slice of each batch.
            world_size: how many slices, one after the other, make a batch.

        Raises:
            ConfigError: a batch cannot be cut into slices of one size.
            TooManyFailures: more images are refused than the recipe allows, counted since this call.
            ResourceError: a process that decodes was lost.
        """
        if not 0 <= rank < world_size:
            raise ConfigError(f"expected a rank below the number of processes {world_size}, got {rank}")
        work = _Work(self, _TRAINING, Refusals(self.section.allowed_failures, self.count))
        tasks = work.tasks(first, shape_of, rank, world_size)
        for cut in cut_ahead(Cutter(self.section, self._cache.path), tasks, self.section.workers):
            yield work.batch(cut)

    def calibration(self, index: int, shape: BatchShape) -> Batch:
        """Return a batch of crops that training never sees: other random numbers, counted by an index from 0."""
        work = _Work(self, _CALIBRATION, Refusals(self.section.allowed_failures, self.count))
        task = next(work.tasks(index, lambda _: shape, 0, 1))
        return work.batch(work.cutter[task])

    @cached_property
    def validation_images(self) -> ValidationImages:
        """Images to choose weights on and those refused; decoded when first asked for. TooManyFailures as above."""
        section = self.section
        return load_validation(
            self._validate_on, section.validate_side, section.validate_limit, section.allowed_failures
        )

    @property
    def validation(self) -> tuple[images.RGB, ...]:
        """Images to choose weights on, uint8 [H, W, 3], of a short side of at most ``section.validate_side``."""
        return self.validation_images.images

    def sample(self, draw: Draw, seed: tuple[int, ...]) -> Sample:
        """Return what a worker needs to know to cut a drawn image."""
        source = self._sources[draw.group]
        number = int(np.random.SeedSequence((self._seed, *seed)).generate_state(1, np.uint64)[0]) >> 1
        return Sample(source.items[draw.index], source.columns, number)

    def order(self, stream: int) -> Order:
        """Return the order of a stream."""
        weights = [group.weight for group in self.section.train if group.weight is not None]
        return Order(self._sizes, weights, self._seed, stream, [source.blocks for source in self._sources])

    def cutter(self) -> Cutter:
        """Return a cutter of this process."""
        return Cutter(self.section, self._cache.path)


class _Work:
    """One walk over the batches: draws, hands out, and puts others in the place of what is refused."""

    def __init__(self, data: TrainingData, stream: int, refusals: Refusals) -> None:
        self._data, self._stream, self._refusals = data, stream, refusals
        self._order, self.cutter = data.order(stream), data.cutter()
        self._pending: dict[int, tuple[int, list[Draw]]] = {}

    def tasks(self, first: int, shape_of: Callable[[int], BatchShape], rank: int, world_size: int) -> Iterator[Task]:
        """Yield the work of each step from first on."""
        position = sum(shape_of(step).count for step in range(first))
        step = first
        while True:
            shape = shape_of(step)
            count, rest = divmod(shape.count, world_size)
            if rest or count < 1:
                raise ConfigError(
                    f"expected a batch that {world_size} processes can share, got {shape.count} images at step {step}"
                )
            start = position + rank * count
            draws = list(self._order.draws(start, count))
            self._pending[step] = (start, draws)
            seeds = ((self._stream, start + i, 0) for i in range(count))
            samples = tuple(self._data.sample(draw, seed) for draw, seed in zip(draws, seeds, strict=True))
            yield Task(step, shape.size, samples)
            position += shape.count
            step += 1

    def batch(self, cut: Cut) -> Batch:
        """Return a batch with a substitute for each image that was refused."""
        start, draws = self._pending.pop(cut.step)
        self._refusals.drawn(len(draws))
        failures: list[Failure] = []
        for number, failure in list(cut.refused.items()):
            if self._refusals.add(draws[number], failure):
                failures.append(failure)
            self._substitute(cut, number, draws[number].group, start + number, failures)
        return Batch(cut.step, cut.crops.numpy(), tuple(failures))

    def _substitute(self, cut: Cut, number: int, group: int, position: int, failures: list[Failure]) -> None:
        """Cut another image of the group here: this is rare, and depends on nothing but position and attempt."""
        for attempt in range(1, _ATTEMPTS):
            draw = self._order.substitute(group, position, attempt)
            sample = self._data.sample(draw, (self._stream, position, attempt))
            if self.cutter.replace(cut, number, sample):
                return
            if self._refusals.add(draw, cut.refused[number]):
                failures.append(cut.refused[number])
        self._refusals.give_up()
