"""The weighted sum of named losses: what training minimises."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from vqtok.errors import ConfigError


@dataclass(frozen=True)
class WeightedLosses:
    """What an `Objective` gives.

    Attributes:
        total: scalar with gradient.
        parts: each loss times its weight, without gradient; they sum to the total.
    """

    total: Tensor
    parts: Mapping[str, Tensor]


class Objective:
    """Weights of named losses. Losses are unweighted everywhere else, so this is all that a configuration says of them.

    A weight of 0 asks for nothing: that loss may be missing, and a NaN in it does no harm.

    Args:
        weights: name of each loss to its weight.

    Raises:
        ConfigError: no weight but 0, or one that is not finite.

    >>> import torch
    >>> objective = Objective({"l2": 1.0, "commitment": 0.25, "perceptual": 0.0})
    >>> value = objective({"l2": torch.tensor(2.0), "commitment": torch.tensor(4.0)})
    >>> value.total.item(), {name: part.item() for name, part in value.parts.items()}
    (3.0, {'l2': 2.0, 'commitment': 1.0})
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        wrong = {name: weight for name, weight in weights.items() if not math.isfinite(weight)}
        if wrong or not any(weights.values()):
            raise ConfigError(f"expected finite weights, at least one of them not 0, got {wrong or dict(weights)}")
        self.weights: Mapping[str, float] = MappingProxyType({name: float(w) for name, w in weights.items()})

    def asks_for(self, name: str) -> bool:
        """Tell whether a loss has a weight but 0: others need not be computed.

        >>> Objective({"l1": 1.0, "perceptual": 0.0}).asks_for("perceptual")
        False
        """
        return self.weights.get(name, 0.0) != 0

    def __call__(self, losses: Mapping[str, Tensor]) -> WeightedLosses:
        """Return total and weighted parts of scalar losses.

        Raises:
            ConfigError: a loss has no weight, or a weight no loss.
        """
        for name in losses:
            if name not in self.weights:
                raise ConfigError(f"no weight for the loss {name!r}: {_hint(name, self.weights, 'weights')}")
        wanted = [name for name in self.weights if self.asks_for(name)]
        for name in wanted:
            if name not in losses:
                raise ConfigError(f"a weight for {name!r}, but no such loss: {_hint(name, losses, 'losses')}")
            if losses[name].numel() != 1:
                raise ConfigError(f"expected {name!r} to be a scalar, got {list(losses[name].shape)}: take its mean")
        parts = {name: self.weights[name] * losses[name].squeeze() for name in wanted}
        first, *others = parts.values()
        return WeightedLosses(sum(others, first), MappingProxyType({name: x.detach() for name, x in parts.items()}))


def _hint(name: str, known: Iterable[str], what: str) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"{what}: {', '.join(known) or 'none'}"
