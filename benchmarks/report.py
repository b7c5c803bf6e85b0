"""What a run found: as JSON that keeps every round, and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median

from pydantic import TypeAdapter

from .protocol import Entry, Panel, Shape

SCHEMA = "vqtok.bench/1"


@dataclass(frozen=True, slots=True)
class Memory:
    """Extra memory of one contender; None where it could not be measured."""

    case: str
    shape: Shape
    contender: str
    extra_bytes: int | None


@dataclass(frozen=True, slots=True)
class Report:
    """One run: on what, when, and what came of everybody."""

    schema: str
    quick: bool
    date: str
    device: str
    threads: int
    machine: Mapping[str, str | int]
    versions: Mapping[str, str]
    commit: str
    panels: tuple[Panel, ...]
    memory: tuple[Memory, ...] = ()

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Return the report that `to_json` wrote."""
        return TypeAdapter(cls).validate_json(text)

    def bugs(self) -> list[str]:
        """Return what shows a bug of vqtok's own."""
        return [
            f"{entry.contender} {entry.reason}"
            for panel in self.panels
            for entry in panel.entries
            if entry.ours and entry.status == "refused"
        ]

    def table(self) -> str:
        """Return the tables for a terminal, one a panel, and what they were measured on."""
        blocks = [_heading(self), *map(panel_table, self.panels)]
        return "\n\n".join([*blocks, *([_memory_table(self)] if self.memory else [])])


def speedup(panel: Panel, entry: Entry) -> float:
    """Return how many times as fast as the baseline, by medians; 0 where one of them has no times."""
    base = next((e for e in panel.entries if e.contender == panel.baseline), None)
    return median(base.seconds) / median(entry.seconds) if base and base.seconds and entry.seconds else 0.0


def panel_table(panel: Panel) -> str:
    """Return the table of one case at one shape; everybody is in it, timed or not."""
    size = " x ".join(f"{n:,} {axis}" for n, axis in zip(panel.shape, panel.axes, strict=True))
    lines = [f"{panel.case}: {size}; {panel.rounds} rounds"]
    if panel.flop and panel.peak:
        lines.append(f"FMA peak {median(panel.peak) / 1e9:.0f} GFLOP/s (best {max(panel.peak) / 1e9:.0f})")
    width = max(len(entry.contender) for entry in panel.entries)
    columns = f"{'median ms':>10} {'best ms':>10} {'speedup':>8}"
    if panel.flop:
        columns += f" {'GFLOP/s':>8} {'of peak':>8} {'(best)':>7}"
    lines.append(f"  {'':<{width}} {columns}".rstrip())
    return "\n".join([*lines, *(f"  {e.contender:<{width}} {_cells(panel, e)}".rstrip() for e in panel.entries)])


def differences(entry: Entry) -> str:
    """Return in words how a contender's answers differ from the expected ones, or ""."""
    verdict = entry.verdict
    if verdict is None or not verdict.differing or entry.status == "refused":
        return ""
    return f"{verdict.differing} of {verdict.of} answers differ, by no more than rounding explains"


def _cells(panel: Panel, entry: Entry) -> str:
    if not entry.seconds:
        reason = f" ({entry.reason})" if entry.status == "not installed" else f": {entry.reason}"
        return entry.status + reason * bool(entry.reason) + ("; not timed" if entry.status == "refused" else "")
    middle, best, ratio = median(entry.seconds), min(entry.seconds), speedup(panel, entry)
    cells = f"{middle * 1e3:>10.2f} {best * 1e3:>10.2f} " + (f"{ratio:>7.2f}x" if ratio else f"{'-':>8}")
    if panel.flop:
        cells += f" {panel.flop / middle / 1e9:>8.1f} {_of_peak(panel, middle, best)}"
    fewer = f"{len(entry.seconds)} rounds, being slow" if len(entry.seconds) < panel.rounds else ""
    notes = "; ".join(filter(None, (entry.note, differences(entry), fewer)))
    return f"{cells}  {notes}"


def _of_peak(panel: Panel, middle: float, best: float) -> str:
    """Return the share of the float32 peak: median of median, and best of best, which a noisy machine blurs less."""
    if not panel.peak:
        return f"{'-':>8} {'-':>7}"
    share, best_share = panel.flop / middle / median(panel.peak), panel.flop / best / max(panel.peak)
    return f"{share:>8.0%} {f'({best_share:.0%})':>7}"


def _heading(report: Report) -> str:
    facts, known = report.machine, report.versions
    where = [str(facts.get("gpu") or facts["processor"]), f"{facts['cores_usable']} of {facts['cores']} cores"]
    where += [f"{report.threads} threads", str(facts["instruction_set"]), f"torch {known.get('torch', '?')}"]
    lines = [", ".join(where), f"{report.date}, commit {report.commit or 'unknown'}"]
    if report.quick:
        lines.append("QUICK: few rounds of small shapes, to see that everything runs; the times say little")
    return "\n".join(lines)


def _memory_table(report: Report) -> str:
    width = max(len(row.contender) for row in report.memory)
    first = report.memory[0]
    lines = [f"{first.case}: memory on top of the inputs at {' x '.join(f'{n:,}' for n in first.shape)}"]
    for row in report.memory:
        used = "not measured" if row.extra_bytes is None else f"{row.extra_bytes / 2**20:.1f} MiB"
        lines.append(f"  {row.contender:<{width}} {used:>12}")
    return "\n".join(lines)
