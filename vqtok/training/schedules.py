"""Schedules: pure functions of the step, for temperatures and for weights of losses."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from vqtok.architecture.section import Section
from vqtok.errors import ConfigError

Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Ramp(Section):
    """A number that changes over the steps of a training.

    Attributes:
        start: its value up to step ``first``.
        end: its value from ``first + steps`` on.
        steps: how long it takes.
        first: when it begins to change.
        shape: ``linear``, or ``cosine``: half a wave.

    >>> Ramp(start=1.0, end=3.0, steps=100).at(50)
    2.0
    """

    start: Finite
    end: Finite
    steps: Annotated[int, Field(ge=1)]
    first: Annotated[int, Field(ge=0)] = 0
    shape: Literal["linear", "cosine"] = "cosine"

    def at(self, step: int) -> float:
        """Return the value at a step."""
        ramp = cosine_ramp if self.shape == "cosine" else linear_ramp
        return ramp(step, start=self.start, end=self.end, steps=self.steps, first=self.first)


def value_at(value: float | Ramp, step: int) -> float:
    """Return a number, or a ramp's value at a step."""
    return value.at(step) if isinstance(value, Ramp) else value


def linear_ramp(step: int, *, start: float, end: float, steps: int, first: int = 0) -> float:
    """Return ``start`` up to step ``first``, then a straight line, then ``end`` from ``steps`` steps later on.

    BSQ's weight of the entropies falls from three times its last value to that over 2,000 steps (Zhao et al. 2024,
    published configuration).

    >>> [linear_ramp(step, start=3.0, end=1.0, steps=2000) for step in (0, 500, 2000, 9999)]
    [3.0, 2.5, 1.0, 1.0]
    """
    return start + (end - start) * _progress(step, steps, first)


def cosine_ramp(step: int, *, start: float, end: float, steps: int, first: int = 0) -> float:
    """Return ``start`` up to step ``first``, then half a cosine wave, then ``end`` from ``steps`` steps later on.

    >>> [round(cosine_ramp(step, start=1.0, end=0.0, steps=4), 4) for step in range(6)]
    [1.0, 0.8536, 0.5, 0.1464, 0.0, 0.0]
    """
    return start + (end - start) * (1 - math.cos(math.pi * _progress(step, steps, first))) / 2


def gumbel_temperature(step: int, *, start: float = 1.0, end: float = 1 / 16, steps: int = 150_000) -> float:
    """Return the temperature of `GumbelQuantizer` at a step, along a cosine; the defaults are DALL-E's.

    Source:
        Ramesh et al., "Zero-Shot Text-to-Image Generation", 2021, appendix A.2: from 1 to 1/16 over the first 150,000
        updates; with a straight line training diverged.

    >>> [round(gumbel_temperature(step), 5) for step in (0, 75_000, 10**6)]
    [1.0, 0.53125, 0.0625]
    """
    return cosine_ramp(step, start=start, end=end, steps=steps)


def kl_weight(step: int, *, start: float = 0.0, end: float = 6.6, steps: int = 5_000) -> float:
    """Return the weight of the loss ``kl`` at a step, along a cosine; the defaults are DALL-E's.

    There the reconstruction's log-likelihood is a mean over the 256 x 256 x 3 numbers of an image and the divergence a
    sum over 32 x 32 codes over as many numbers: beside a mean over pixels and our mean over codes the weight is this
    over 192.

    Source:
        Ramesh et al., "Zero-Shot Text-to-Image Generation", 2021, appendix A.2: from 0 to 6.6 over the first 5,000
        updates.

    >>> [round(kl_weight(step), 5) for step in (0, 2_500, 5_000)]
    [0.0, 3.3, 6.6]
    """
    return cosine_ramp(step, start=start, end=end, steps=steps)


def _progress(step: int, steps: int, first: int) -> float:
    """Return how much of the way is done, in [0, 1]."""
    if steps < 1 or first < 0 or step < 0:
        raise ConfigError(f"expected steps >= 1, first >= 0 and step >= 0, got {steps}, {first} and {step}")
    return min(max((step - first) / steps, 0.0), 1.0)
