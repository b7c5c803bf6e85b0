"""What a run folder of a training says: what it is, how far, how fast, how good, and what goes wrong."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import Any

from vqtok.errors import InputError
from vqtok.training import log
from vqtok.training.alarms import Alarm, Watch
from vqtok.training.history import numbers
from vqtok.training.progress import describe, duration
from vqtok.training.symptoms import SYMPTOMS

Report = dict[str, Any]

_SPEED_ROWS = 20  # rows over which the time left is reckoned: stages differ


def diagnose(run: Path) -> Report:
    """Return a report of a run as JSON.

    Args:
        run: folder that ``vqtok train -o`` wrote, whether the training goes on or not.

    Returns:
        ``schema``, ``path``, ``model`` (preset or what it started from; None if not known), ``step``, ``total`` (None),
        ``validation`` and ``best`` (row or None), ``images_per_second``, ``seconds_left``, ``idle_seconds`` since the
        last row (None), ``alarms`` (rows with ``active``), ``ok`` (no alarm is active).

    Raises:
        InputError: there is no such run, or its log is not one.
    """
    rows, recipe = read_rows(run), _recipe(run)
    total = _steps(recipe.get("stages"))
    step = max((row["step"] for row in rows), default=0)
    model = recipe.get("model")
    found = raised(rows)
    report = {
        "schema": "vqtok.training/1",
        "path": str(run),
        "model": (model.get("preset") or model.get("start")) if isinstance(model, dict) else None,
        "step": step,
        "total": total,
        **_validations(rows),
        **_speed(rows, total),
        "idle_seconds": round(max(0.0, time.time() - (run / log.NAME).stat().st_mtime), 1) if rows else None,
        "alarms": found,
        "ok": not any(row["active"] for row in found),
    }
    return log.writable(report)


def raised(rows: Sequence[Mapping[str, Any]]) -> list[Report]:
    """Return every alarm of a log in its order, with ``active``: whether it holds at the last row.

    Alarms of the kinds in `SYMPTOMS` are found anew from the numbers, and ``now`` is what the last row shows of an
    active one. Others, which the training itself wrote, are taken as they stand, and hold until it was started again.
    """
    watch, kinds = Watch(), {symptom.name for symptom in SYMPTOMS}
    found: list[tuple[Alarm, Report]] = []
    others: list[Report] = []
    for row in rows:
        found += [(alarm, alarm.row()) for alarm in watch.feed(row)]
        if row["event"] == "start":
            others = [{**other, "active": False} for other in others]
        elif row["event"] == "alarm" and row.get("name") not in kinds:
            others.append(
                {key: str(row.get(key, "")) for key in ("name", "message", "remedy", "now")}
                | {"step": row["step"], "active": True}
            )
    for alarm, row in found:
        active = watch.active.get(alarm.name) is alarm
        row |= {"active": active, "now": watch.latest[alarm.name] if active else ""}
        del row["event"]
    known = [*(row for _, row in found), *others]
    return sorted(known, key=lambda row: row["step"])


def render(report: Report) -> list[str]:
    """Return a report as lines for people."""
    of = f" of {report['total']:,}" if report["total"] else ""
    lines = [f"{report['path']}: {report['model'] or 'a training'}, step {report['step']:,}{of}"]
    lines += [_metrics(name, report[name]) for name in ("validation", "best") if report[name]]
    left = "" if report["seconds_left"] is None else f"{duration(report['seconds_left'])} left"
    idle = "no row yet" if report["idle_seconds"] is None else f"last row {duration(report['idle_seconds'])} ago"
    pace = describe(numbers({"images_per_second": report["images_per_second"]}))
    lines.append(f"  {'  '.join(part for part in (pace, left, idle) if part)}")
    for title, active in (("wrong now", True), ("was wrong and is over", False)):
        rows = [row for row in report["alarms"] if row["active"] is active]
        lines += [title] if rows else []
        for row in rows:
            lines.append(f"  {row['name']}, step {row['step']:,}: {row['message']}")
            lines += [f"    now: {row['now']}"] if row["now"] not in ("", row["message"]) else []
            lines.append(f"    what helps: {row['remedy']}")
    return lines if report["alarms"] else [*lines, "nothing wrong"]


def _metrics(name: str, row: Mapping[str, Any]) -> str:
    found = numbers(row)
    others = [f"{key} {value:.4g}" for key, value in found.items() if key not in ("step", "psnr", "usage")]
    return f"  {name} at step {row['step']:,}: {'  '.join([describe(found), *others])}".rstrip()


def read_rows(run: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's log, none if it has only just begun; nothing is written.

    Raises:
        InputError: there is no such run, or its log is not one.
    """
    path = run / log.NAME
    if path.exists():
        return log.read_log(path)
    if (run / "recipe.toml").exists():
        return []
    hint = "`vqtok status` reads runs of tokenize" if (run / "manifest.json").exists() else "check the path"
    raise InputError(f"{str(run)!r}: expected the folder of a training with {log.NAME} in it, found none: {hint}")


def _recipe(run: Path) -> dict[str, Any]:
    """Return the recipe as it lies there, unchecked: a run of another version can be read. Empty if it cannot."""
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        return toml.loads((run / "recipe.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _steps(stages: object) -> int | None:
    steps = [x.get("steps") for x in stages if isinstance(x, dict)] if isinstance(stages, list) else []
    found = [x for x in steps if isinstance(x, int)]
    return sum(found) or None


def _validations(rows: Sequence[Mapping[str, Any]]) -> Report:
    found = [row for row in rows if row["event"] == "validate"]
    best = [row for row in found if row.get("best") is True]
    return {"validation": found[-1] if found else None, "best": best[-1] if best else None}


def _speed(rows: Sequence[Mapping[str, Any]], total: int | None) -> Report:
    """Return images a second and seconds left, from the seconds since the start that the last rows say."""
    started = max((i for i, row in enumerate(rows) if row["event"] == "start"), default=-1)
    trained = [(row["step"], numbers(row)) for row in rows[started + 1 :] if row["event"] == "train"][-_SPEED_ROWS:]
    timed = [(step, found["seconds"]) for step, found in trained if isfinite(found.get("seconds", float("nan")))]
    steps, seconds = (timed[-1][0] - timed[0][0], timed[-1][1] - timed[0][1]) if timed else (0, 0.0)
    left = (total - timed[-1][0]) * seconds / steps if total and steps > 0 and seconds > 0 else None
    speed = trained[-1][1].get("images_per_second") if trained else None
    return {"images_per_second": speed, "seconds_left": None if left is None else round(max(0.0, left), 1)}
