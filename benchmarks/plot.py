"""A report as a picture: one panel a shape, a bar a contender, vqtok in colour.

python -m vqtok.benchmarks.plot REPORT.json PICTURE.png
"""

# matplotlib is an extra.
# pyright: reportMissingImports=false
from __future__ import annotations

import io
import sys
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from .protocol import Entry, Panel
from .report import Report, speedup

_OURS, _OURS_TOO, _OTHERS, _BASELINE = "#e4572e", "#f2a48d", "#9fb3c8", "#486581"
_TIMES = "\N{MULTIPLICATION SIGN}"
_INK, _PALE = "#1f2933", "#7b8794"
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": "#cbd2d9",
    "xtick.color": _PALE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}


def picture(report: Report) -> bytes:
    """Return a PNG of all panels: each case begins a row, two shapes in a row."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [panel for panel in report.panels if any(entry.seconds for entry in panel.entries)]
    cases = [list(group) for _, group in groupby(panels, key=lambda panel: panel.case)]
    rows = [group[i : i + 2] for group in cases for i in range(0, len(group), 2)]
    columns = max(map(len, rows), default=1)
    heights = [1.0 + 0.3 * max(len(_bars(panel)) for panel in row) for row in rows]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.8 * columns, sum(heights) + 0.9), layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12)  # pyright: ignore
        figure.suptitle(_title(report), x=0.012, ha="left", fontsize=10, color=_PALE)
        grid = figure.add_gridspec(max(1, len(rows)), columns, height_ratios=heights or [1.0])
        for i, row in enumerate(rows):
            for j, panel in enumerate(row):
                draw(figure.add_subplot(grid[i, j]), panel)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=150, facecolor="white")
    return file.getvalue()


def draw(axis: Any, panel: Panel) -> None:
    """Draw one panel: medians as bars on a log scale, the fastest on top, the best round as a tick in the bar."""
    bars = _bars(panel)
    times = [median(entry.seconds) * 1e3 for entry in bars]
    places = range(len(bars))
    axis.barh(places, times, color=[_colour(panel, entry) for entry in bars], height=0.72)
    axis.set_xscale("log")
    axis.set_xlim(min(min(e.seconds) for e in bars) * 1e3 / 2.5, max(times) * 9)  # room for the labels
    axis.set_yticks(places, [entry.contender for entry in bars])
    axis.tick_params(axis="y", length=0)
    for place, entry, time, name in zip(places, bars, times, axis.get_yticklabels(), strict=True):
        best = min(entry.seconds) * 1e3
        axis.plot([best, best], [place - 0.36, place + 0.36], color="white", linewidth=1.2)
        text = {"color": _OURS if entry.ours else _INK, "fontweight": "bold" if entry.ours else "normal"}
        name.set(**text)
        where = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
        axis.annotate(_label(panel, entry, time), (time, place), **where, **text)
    axis.set_ylim(len(bars) - 0.4, -0.6)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.xaxis.set_minor_formatter(lambda value, _: "")  # else short axes label every tick
    axis.grid(axis="x", color="#e4e7eb", linewidth=0.8)
    axis.set_axisbelow(True)
    size = f" {_TIMES} ".join(f"{n:,} {name}" for n, name in zip(panel.shape, panel.axes, strict=True))
    axis.set_title(panel.case, loc="left", fontsize=12, fontweight="bold", pad=22)
    axis.text(0, 1.02, size, transform=axis.transAxes, fontsize=9, color=_PALE, va="bottom")
    axis.set_xlabel("milliseconds, median (white mark: best)", fontsize=8, color=_PALE, loc="left")


def _bars(panel: Panel) -> list[Entry]:
    return sorted((entry for entry in panel.entries if entry.seconds), key=lambda entry: median(entry.seconds))


def _colour(panel: Panel, entry: Entry) -> str:
    if entry.ours:
        return _OURS_TOO if ":" in entry.contender else _OURS  # a backend by name; what users get
    return _BASELINE if entry.contender == panel.baseline else _OTHERS


def _label(panel: Panel, entry: Entry, milliseconds: float) -> str:
    digits = f"{milliseconds:.3g}" if milliseconds < 1000 else f"{milliseconds:,.0f}"
    if entry.contender == panel.baseline:
        return f"{digits} ms, baseline"
    ratio = speedup(panel, entry)
    times = f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2f}"
    return f"{digits} ms" + (f"   {times}{_TIMES}" if ratio else "")


def _title(report: Report) -> str:
    where = report.machine.get("gpu") or f"{report.machine['processor']}, {report.threads} threads"
    line = (
        f"{where}, {report.machine['instruction_set']}, torch {report.versions.get('torch', '?')}, {report.date[:10]}"
    )
    return f"{line}    QUICK RUN: the times say little" if report.quick else line


def main() -> None:
    """Draw a report that was written before."""
    source, target = map(Path, sys.argv[1:])
    target.write_bytes(picture(Report.from_json(source.read_text())))


if __name__ == "__main__":
    main()
