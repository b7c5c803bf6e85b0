"""What happened since the last row of the log: means of losses, and which codes were chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


class Tally:
    """Sums on the device, read once a row, so that a step waits for no number.

    Args:
        vocab_size: number of codes.
        device: where losses are.

    >>> tally = Tally(4, torch.device("cpu"))
    >>> tally.add({"l2": torch.tensor(2.0)}, torch.tensor([0, 0, 1, 1]))
    >>> tally.add({"l2": torch.tensor(4.0)}, torch.tensor([0, 1]))
    >>> tally.means(), tally.usage(), round(tally.perplexity(), 6)
    ({'l2': 3.0}, 0.5, 2.0)
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.histogram = torch.zeros(vocab_size, dtype=torch.int64, device=device)
        self.clear()

    def clear(self) -> None:
        """Forget everything, as for the next row."""
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.histogram = torch.zeros_like(self.histogram)

    def add(self, values: Mapping[str, Tensor], codes: Tensor | None = None) -> None:
        """Add scalars by name, and the codes of a batch."""
        for name, value in values.items():
            value = value.detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1
        if codes is not None and codes.numel():
            self.histogram += torch.bincount(codes.flatten(), minlength=len(self.histogram))

    def joined(self) -> Tally:
        """Return the sums over all processes, each of which has added scalars of the same names."""
        if not (dist.is_available() and dist.is_initialized()):
            return self
        whole = Tally(len(self.histogram), self.histogram.device)
        whole.counts = {name: count * dist.get_world_size() for name, count in self.counts.items()}
        whole.sums = {name: total.clone() for name, total in self.sums.items()}
        whole.histogram = self.histogram.clone()
        for tensor in [*whole.sums.values(), whole.histogram]:
            dist.all_reduce(tensor)
        return whole

    def means(self) -> dict[str, float]:
        """Return the mean of each scalar over the steps that had it."""
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}

    def usage(self) -> float | None:
        """Return the share of codes that were chosen; None when nothing was quantized."""
        return float((self.histogram > 0).float().mean()) if self.histogram.any() else None

    def perplexity(self) -> float:
        """Return the exponential of the entropy of the codes' frequencies."""
        shares = self.histogram[self.histogram > 0].double()
        shares = shares / shares.sum()
        return math.exp(-float((shares * shares.log()).sum())) if len(shares) else 0.0

    def state(self) -> dict[str, Any]:
        """Return everything a resumed training needs."""
        return {"sums": self.sums, "counts": self.counts, "histogram": self.histogram}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        device = self.histogram.device
        self.sums = {name: x.to(device) for name, x in state["sums"].items()}
        self.counts, self.histogram = dict(state["counts"]), state["histogram"].to(device)
