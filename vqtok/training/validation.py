"""The fixed images on which the best weights are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vqtok import images
from vqtok.dataset.decoding import Failure
from vqtok.training.cache import decode_photo
from vqtok.training.pyramid import short_side
from vqtok.training.refusals import Refusals
from vqtok.training.sources import Source


@dataclass(frozen=True, slots=True, eq=False)
class ValidationImages:
    """What a training is judged by.

    Attributes:
        images: uint8 [H, W, 3] each.
        failures: images that were refused, and are left out.
    """

    images: tuple[images.RGB, ...]
    failures: tuple[Failure, ...]


def load_validation(sources: Sequence[Source], side: int, limit: int, allowed: float) -> ValidationImages:
    """Decode images, scaled down to a short side.

    Args:
        sources: all images.
        side: short side in pixels.
        limit: how many to take, evenly spaced in the order of sources and names.
        allowed: share that may be refused.

    Raises:
        TooManyFailures: more are refused.
    """
    listed = [(item, source.columns) for source in sources for item in source.items]
    chosen = [listed[i] for i in evenly(len(listed), limit)]
    refusals = Refusals(allowed, len(chosen))
    refusals.drawn(len(chosen))
    found: list[images.RGB] = []
    failures: list[Failure] = []
    for number, (item, columns) in enumerate(chosen):
        photo = decode_photo(item, columns)
        if isinstance(photo, Failure):
            refusals.add(number, photo)
            failures.append(photo)
        else:
            found.append(short_side(photo, side))
    return ValidationImages(tuple(found), tuple(failures))


def evenly(count: int, limit: int) -> list[int]:
    """Return at most limit of the numbers below count, evenly spaced.

    >>> evenly(10, 4), evenly(3, 4)
    ([0, 2, 5, 7], [0, 1, 2])
    """
    return [i * count // limit for i in range(limit)] if count > limit else list(range(count))
