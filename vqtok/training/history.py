"""What the rows of a training's log say, as numbers that can be compared."""

from __future__ import annotations

from bisect import insort
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from statistics import median

from vqtok.training.limits import limit, rows

Row = Mapping[str, object]

_KEPT = 32  # rows; no rule looks further back
_NON_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
# What the image lost, by name of the loss: it falls while a training learns, with or without a discriminator.
RECONSTRUCTION = ("l2", "l1", "logit_laplace", "features")


def numbers(row: Row, prefix: str = "") -> dict[str, float]:
    """Return the numbers of a row by their dotted names; those that are not finite are strings in the log.

    >>> numbers({"event": "train", "step": 100, "losses": {"l2": 0.5, "commitment": "nan"}, "best": True})
    {'step': 100.0, 'losses.l2': 0.5, 'losses.commitment': nan}
    """
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}.")
        elif isinstance(value, str) and value in _NON_FINITE:
            found[f"{prefix}{name}"] = _NON_FINITE[value]
        elif isinstance(value, float | int) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = _as_float(value)
    return found


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number beyond 1e308
        return _NON_FINITE["inf" if value > 0 else "-inf"]


@dataclass(frozen=True, slots=True)
class Validation:
    """A validation.

    Attributes:
        step: at which it was.
        metrics: its numbers by name.
        fit: the training's reconstruction loss at that time; NaN when it is not known.
    """

    step: int
    metrics: Mapping[str, float]
    fit: float


@dataclass(slots=True)
class History:
    """All rows so far, as far as alarms need them; `add` takes the next one.

    Attributes:
        row: numbers of the last row, the only ones that may be not finite.
        first: step at which each number of the training rows was seen first.
        series: the last finite numbers of the training rows, by name.
        highest: the highest median of three rows of usage and perplexity, after their warm-up.
        norms: gradient norms of all rows but the last three, sorted.
        validations: all of them.
        adversarial: index in `validations` of the first one after the discriminator's start.
        peak_rate: the highest learning rate so far, 0 while none is known.
    """

    row: dict[str, float] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    series: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=_KEPT)))
    highest: dict[str, float] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    adversarial: int | None = None
    peak_rate: float = 0.0

    def add(self, row: Row) -> None:
        """Take the next row of the log; alarms and starts say nothing new."""
        if row.get("event") == "train":
            self.row = numbers(row)
            self._train()
        elif row.get("event") == "validate":
            self.row = numbers(row)
            metrics = {name: x for name, x in self.row.items() if name != "step" and isfinite(x)}
            self.validations.append(Validation(self.step, metrics, self._fit()))

    @property
    def step(self) -> int:
        """The step of the last row."""
        step = self.row.get("step", 0.0)
        return int(step) if isfinite(step) else 0

    def last(self, name: str, count: int) -> list[float]:
        """Return the last numbers of a name in the training rows, none when there are fewer."""
        found = self.series.get(name, ())
        return [*found][-count:] if len(found) >= count else []

    def recent(self, name: str) -> float | None:
        """Return the median of the last three rows, None before there are three."""
        found = self.last(name, rows("recent"))
        return median(found) if found else None

    def since(self, name: str) -> int:
        """Return how many steps ago a number was seen first; -1 when it never was."""
        return self.step - self.first[name] if name in self.first else -1

    def _train(self) -> None:
        if self.adversarial is None and any(name.startswith("discriminator.") for name in self.row):
            self.adversarial = len(self.validations)
        if len(gone := self.last("gradient_norm", rows("recent"))) and isfinite(self.row.get("gradient_norm", 0.0)):
            insort(self.norms, gone[0])
        if isfinite(rate := self.row.get("learning_rate", 0.0)):
            self.peak_rate = max(self.peak_rate, rate)
        for name, value in self.row.items():
            self.first.setdefault(name, self.step)
            if isfinite(value):
                self.series[name].append(value)
        for name in ("usage", "perplexity"):
            if name in self.row and self.since(name) >= limit("collapse.warmup"):
                self._raise_highest(name)

    def _raise_highest(self, name: str) -> None:
        found = self.recent(name)
        if found is not None:
            self.highest[name] = max(found, self.highest.get(name, found))

    def _fit(self) -> float:
        found = (self.recent(f"losses.{name}") for name in RECONSTRUCTION)
        return next((value for value in found if value is not None), float("nan"))
