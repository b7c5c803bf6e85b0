"""How many images may be refused before a training is not what was asked for."""

from __future__ import annotations

import math
from collections.abc import Hashable

from vqtok.dataset.decoding import Failure
from vqtok.errors import TooManyFailures

_NAMED = 3


class Refusals:
    """Counts different images that were refused, and ends the work when they are too many.

    Too many are: more than the allowed share of all images (one is always allowed, unless none is or it is the only
    one); or, earlier, more than three standard deviations above the allowed share of those drawn so far.

    Args:
        allowed: share of the images.
        total: number of images.

    >>> refusals = Refusals(allowed=0.5, total=2)
    >>> refusals.drawn(2)
    >>> refusals.add(0, Failure("a.jpg", "decode", "truncated", "a.jpg: expected a whole JPEG"))
    True
    """

    def __init__(self, allowed: float, total: int) -> None:
        self._allowed, self._total, self._drawn = allowed, total, 0
        self._failures: dict[Hashable, Failure] = {}

    def drawn(self, count: int) -> None:
        """Count images that were asked for."""
        self._drawn = min(self._total, self._drawn + count)

    def add(self, image: Hashable, failure: Failure) -> bool:
        """Count a refused image; return whether it is a new one.

        Raises:
            TooManyFailures: there are too many now.
        """
        if image in self._failures:
            return False
        self._failures[image] = failure
        expected = self._allowed * self._drawn
        by_chance = 1 + expected + 3 * math.sqrt(expected)
        most = max(1.0, self._allowed * self._total) if self._allowed else 0.0
        if len(self._failures) > min(most, by_chance) or len(self._failures) == self._total:
            self.give_up()
        return True

    def give_up(self) -> None:
        """Raise `TooManyFailures`, naming some."""
        named = "; ".join(failure.message for failure in list(self._failures.values())[:_NAMED])
        raise TooManyFailures(
            f"expected at most {self._allowed:.4g} of {self._total} images to be refused, got {len(self._failures)} "
            f"refused after {self._drawn}: {named}: repair them, take them out, or raise data.allowed_failures"
        )
