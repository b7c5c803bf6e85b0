"""Values that change with the step: Gumbel's temperature and the weight of its divergence."""

from __future__ import annotations

import math


def cosine(step: int, start: float, end: float, steps: int) -> float:
    """Return a value that goes from start to end along half a cosine in a number of steps, and stays there.

    dVAE's temperature goes from 1 to 1/16 in 150,000 steps (Ramesh et al. 2021, appendix A.2).

    >>> [round(cosine(step, 1.0, 1 / 16, 150_000), 4) for step in (0, 75_000, 150_000, 200_000)]
    [1.0, 0.5312, 0.0625, 0.0625]
    """
    done = min(1.0, step / steps)
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def linear(step: int, start: float, end: float, steps: int) -> float:
    """Return a value that goes from start to end in a number of steps, and stays there.

    dVAE's weight of the divergence goes from 0 to 6.6 in 5,000 steps (Ramesh et al. 2021, appendix A.2).

    >>> [linear(step, 0.0, 6.6, 5_000) for step in (0, 2_500, 9_000)]
    [0.0, 3.3, 6.6]
    """
    return start + (end - start) * min(1.0, step / steps)
