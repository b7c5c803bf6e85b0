"""How a codebook is used: counts, perplexity, dead codes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vqtok.types import Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Usage:
    """How often the codes of one codebook occur.

    Attributes:
        counts: int64 [used], how often each code that occurs does, most frequent first.
        vocab_size: number of codes there are.

    >>> usage = Usage(np.array([4, 2, 2]), vocab_size=10)
    >>> usage.used, usage.dead, usage.share, round(usage.perplexity, 3)
    (3, 7, 0.3, 2.828)
    """

    counts: npt.NDArray[np.int64]
    vocab_size: int

    @property
    def used(self) -> int:
        """Number of codes that occur."""
        return len(self.counts)

    @property
    def dead(self) -> int:
        """Number of codes that do not."""
        return self.vocab_size - self.used

    @property
    def share(self) -> float:
        """Share of the codes that occur."""
        return self.used / self.vocab_size

    @property
    def perplexity(self) -> float:
        """Exponential of the entropy: as many equally frequent codes would be as hard to guess; 0 of no tokens."""
        shares = self.counts / max(1, self.counts.sum())
        return float(np.exp(-(shares * np.log(shares)).sum())) if self.used else 0.0


def usage_of(tokens: Tokens) -> list[Usage]:
    """Return the usage of each codebook over all images; one for each of the Q codes that a position has.

    >>> ids, grid, size = np.array([0, 7, 0, 8]), np.array([[2, 1, 2]]), np.array([[8, 16]])
    >>> [usage.counts.tolist() for usage in usage_of(Tokens(ids, np.array([0, 4]), grid, size, 9, ("a",), ""))]
    [[2], [1, 1]]
    """
    columns: dict[int, list[npt.NDArray[np.int64]]] = defaultdict(list)
    for row in tokens:
        for k, ids in enumerate(row.ids.reshape(-1, int(row.grids[0, 0])).T):
            columns[k].append(ids)
    counts = (np.unique(np.concatenate(columns[k]), return_counts=True)[1] for k in sorted(columns))
    return [Usage(-np.sort(-found), tokens.vocab_size) for found in counts]
