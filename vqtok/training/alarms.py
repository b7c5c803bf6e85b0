"""Alarms: what goes wrong in a training, said in words with what helps, from the rows of its log alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from vqtok.training.history import History, Row
from vqtok.training.remedies import remedy
from vqtok.training.symptoms import SYMPTOMS, Symptom


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that goes wrong.

    Attributes:
        step: of the row that showed it.
        name: of its kind, a row of `SYMPTOMS`.
        message: what was seen, with numbers.
        remedy: what helps, with keys of the recipe.
    """

    step: int
    name: str
    message: str
    remedy: str

    def row(self) -> dict[str, object]:
        """Return the row of ``metrics.jsonl``.

        >>> Alarm(7, "nan", "not finite: total nan", "precision=float32").row()["event"]
        'alarm'
        """
        return {"event": "alarm", "step": self.step, "name": self.name, "message": self.message, "remedy": self.remedy}

    def text(self) -> str:
        """Return one line for people."""
        return f"{self.name} at step {self.step:,}: {self.message}. What helps: {self.remedy}"


@dataclass(slots=True)
class Watch:
    """Reads the rows of a log one by one and raises each kind of alarm once until it is over.

    A resumed training feeds the rows that are there, and is told nothing twice.

    Attributes:
        active: alarms that hold now, by name.
        latest: what was seen last of each kind, by name.

    >>> watch = Watch()
    >>> [alarm.name for alarm in watch.feed({"event": "train", "step": 100, "total": "nan", "losses": {"l2": "nan"}})]
    ['nan']
    >>> watch.active["nan"].message
    'not finite: losses.l2 nan, total nan'
    """

    active: dict[str, Alarm] = field(default_factory=dict)
    latest: dict[str, str] = field(default_factory=dict)
    _history: History = field(default_factory=History)
    _quiet: dict[str, int] = field(default_factory=dict)

    def feed(self, row: Row) -> list[Alarm]:
        """Take the next row and return the alarms that it raises."""
        if row.get("event") not in ("train", "validate"):
            return []
        self._history.add(row)
        found = (self._look(symptom) for symptom in SYMPTOMS if row["event"] in symptom.events)
        return [alarm for alarm in found if alarm is not None]

    def _look(self, symptom: Symptom) -> Alarm | None:
        name, history = symptom.name, self._history
        message = symptom.seen(history, name in self.active)
        if message is None:
            self._quiet[name] = self._quiet.get(name, 0) + 1
            if self._quiet[name] >= symptom.clears:
                self.active.pop(name, None)
            return None
        self._quiet[name], self.latest[name] = 0, message
        if name in self.active:
            return None
        alarm = Alarm(history.step, name, message, remedy(name, history.peak_rate))
        self.active[name] = alarm
        return alarm


def alarms(rows: Iterable[Row]) -> list[Alarm]:
    """Return every alarm that the rows of a log raise, in their order: a pure function of the rows.

    Args:
        rows: of ``metrics.jsonl``; other events than ``train`` and ``validate`` say nothing.

    >>> rows = [{"event": "train", "step": s, "total": 1.0, "gradient_norm": 1e-9} for s in (100, 200, 300, 400)]
    >>> [(alarm.step, alarm.name) for alarm in alarms(rows)]
    [(300, 'dead-gradients')]
    """
    watch = Watch()
    return [alarm for row in rows for alarm in watch.feed(row)]
