"""The nouns of the benchmarks: cases and contenders, and what came of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

Shape = tuple[int, int, int]
Call = Callable[[], Any]
Clock = Callable[[Call], float]
Say = Callable[[str], None]
Status = Literal["timed", "not installed", "cannot run", "refused"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer is worth beside the expected one.

    Attributes:
        of: number of answers.
        differing: how many are not the expected one.
        wrong: how many of these are farther than rounding explains; the others are near-ties.
        better: how many show that the expected answer is the wrong one.
    """

    of: int
    differing: int = 0
    wrong: int = 0
    better: int = 0


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to compute a case.

    Attributes:
        name: as tables and ``--contender`` have it; two of one name cannot stand in one case.
        prepare: takes the inputs, does what is left out of the timing (compiling too), returns the call that is timed.
        ours: one of vqtok's, which must give the expected answer bit for bit.
        modules: what it imports; without one of them it is not installed.
        install: what pip installs for them.
        note: what the reader of a table must know, above all what is left out of the timing.
        optional: left out unless asked for by name.
    """

    name: str
    prepare: Callable[[Any], Call]
    ours: bool = False
    modules: tuple[str, ...] = ()
    install: str = ""
    note: str = ""
    optional: bool = False

    def missing(self) -> str:
        """Return how to install what is missing, or ""."""
        return "" if all(map(_found, self.modules)) else f"pip install {self.install}"


@dataclass(frozen=True, slots=True)
class Case:
    """Something to compute, and who computes it.

    Attributes:
        name: as the command has it.
        summary: one line.
        axes: what the three numbers of a shape count.
        shapes: measured by default; the smaller `quick_shapes` by ``--quick``.
        inputs: makes the inputs of a shape on a device; equal seeds, equal inputs.
        contenders: all there are on a device, the baseline first.
        judge: takes inputs, expected answer and answer.
        flop: the float32 operations that a shape needs, or 0 where they say nothing.
        memory_shape: where the extra memory of each contender is measured, if at all.
    """

    name: str
    summary: str
    axes: tuple[str, str, str]
    shapes: tuple[Shape, ...]
    quick_shapes: tuple[Shape, ...]
    inputs: Callable[[Shape, str], Any]
    contenders: Callable[[str], list[Contender]]
    judge: Callable[[Any, Any, Any], Verdict]
    flop: Callable[[Shape], float]
    memory_shape: Shape | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """What came of one contender: its raw times in seconds, or why there are none."""

    contender: str
    status: Status
    ours: bool
    reason: str = ""
    note: str = ""
    verdict: Verdict | None = None
    seconds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """One case at one shape.

    Attributes:
        peak: float32 operations a second of the machine, measured once a round; empty where it cannot be measured.
        entries: in the order of the case; the first is the baseline if it was asked for.
    """

    case: str
    axes: tuple[str, str, str]
    shape: Shape
    baseline: str
    rounds: int
    flop: float
    peak: tuple[float, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """How to measure.

    Attributes:
        device: ``cpu`` or ``cuda``.
        clock: returns the seconds that a call takes.
        peak: returns the machine's float32 operations a second, or None.
        rounds: how many, or 0 to let the time that a round takes decide.
    """

    device: str
    clock: Clock
    peak: Callable[[], float] | None = None
    rounds: int = 0


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it is missing
        return False
