"""The curves of a training as one picture: losses, validation, codebook, gradients, discriminator; alarms in red."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from vqtok.evaluation.charts import Axis, Chart, Floats, number
from vqtok.evaluation.colours import ACCENT, ALARM, SOFT, Colour
from vqtok.evaluation.page import Page, shortened, text_width
from vqtok.images import RGB
from vqtok.training.alarms import alarms
from vqtok.training.history import Row, numbers
from vqtok.training.pictures import write_picture

_INKS: tuple[Colour, ...] = (ACCENT, (214, 118, 20), (24, 134, 92), (142, 68, 160), (120, 90, 60), (90, 150, 190))
_WIDTH, _HEIGHT, _LEFT, _ABOVE, _BELOW, _BETWEEN, _HEAD = 460, 180, 76, 64, 56, 40, 64

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """A chart of several curves.

    Attributes:
        title: what the heights are.
        event: kind of rows.
        names: of the numbers; one that ends in a dot stands for all below it.
        log: whether heights are on a logarithmic axis, as long as they are all above 0.
    """

    title: str
    event: str
    names: tuple[str, ...]
    log: bool = False


_PANELS = (
    Panel("losses, unweighted", "train", ("losses.",), log=True),
    Panel("validation, PSNR in dB", "validate", ("psnr",)),
    Panel("share of the codes in use", "train", ("usage",)),
    Panel("perplexity of the codes", "train", ("perplexity",), log=True),
    Panel("norm of the gradient", "train", ("gradient_norm",), log=True),
    Panel("discriminator's logits", "train", ("discriminator.real", "discriminator.fake")),
    Panel("discriminator's loss", "train", ("discriminator.loss",)),
    Panel("images a second", "train", ("images_per_second",)),
)


def curves_picture(rows: Sequence[Row], title: str) -> RGB:
    """Return the curves of a log, two charts a row; a thin red line stands where an alarm was raised.

    Args:
        rows: of ``metrics.jsonl``; numbers that are not finite are left out of the curves.
        title: above all, such as the run's name.

    Returns:
        uint8 [height, width, 3].
    """
    found = [(panel, curves) for panel in _PANELS if (curves := curves_of(rows, panel))]
    columns = min(2, max(1, len(found)))
    width = max(480, columns * (_LEFT + _WIDTH) + (columns - 1) * _BETWEEN + 32)
    page = Page(width, _HEAD + max(1, -(-len(found) // columns)) * (_ABOVE + _HEIGHT + _BELOW))
    steps = [x for _, curves in found for points in curves.values() for x, _ in points]
    raised = alarms(rows)
    words = ", ".join(f"{alarm.name} at {alarm.step:,}" for alarm in raised)
    page.text((24, 18), shortened(title, width - 48, 20), 20)
    page.text((24, 46), shortened(words, width - 48, 13), 13, ALARM)
    x = Axis(min(steps, default=0), max(steps, default=1) + (len({*steps}) < 2))
    marks = [alarm.step for alarm in raised]
    for i, (panel, curves) in enumerate(found):
        left = _LEFT + i % columns * (_LEFT + _WIDTH + _BETWEEN)
        top = _HEAD + _ABOVE + i // columns * (_ABOVE + _HEIGHT + _BELOW)
        _draw(
            Chart(page, (left, top, left + _WIDTH, top + _HEIGHT), x, _axis(panel, curves), "", "step"),
            panel,
            curves,
            marks,
        )
    return page.picture()


def draw_curves(run: Path, rows: Sequence[Row]) -> None:
    """Write ``pictures/curves.png`` of a run anew, once there are rows.

    Raises:
        OutputError: the picture cannot be written.
    """
    if rows:
        write_picture(curves_picture(rows, run.name), run / "pictures" / "curves.png")


def curves_of(rows: Sequence[Row], panel: Panel) -> dict[str, Points]:
    """Return the points (step, value) of each curve of a panel, by the number's name.

    >>> row = {"event": "train", "step": 100, "losses": {"l2": 0.5, "commitment": "nan"}}
    >>> curves_of([row], _PANELS[0])
    {'losses.l2': [(100.0, 0.5)]}
    """
    found: dict[str, Points] = {}
    for row in rows:
        if row.get("event") != panel.event:
            continue
        values = numbers(row)
        for name, value in values.items():
            wanted = any(name == x or (x.endswith(".") and name.startswith(x)) for x in panel.names)
            if wanted and isfinite(value) and isfinite(values.get("step", 0.0)):
                found.setdefault(name, []).append((values.get("step", 0.0), value))
    return found


def _axis(panel: Panel, curves: Mapping[str, Points]) -> Axis:
    heights = [y for points in curves.values() for _, y in points]
    low, high = min(heights), max(heights)
    if panel.log and low > 0:
        return Axis(low / 1.2, high * 1.2, log=True)
    room = 0.05 * (high - low) or max(1e-9, 0.05 * abs(high)) or 1.0
    return Axis(low - room, high + room)


def _draw(chart: Chart, panel: Panel, curves: Mapping[str, Points], marks: Sequence[int]) -> None:
    left, top, _, bottom = chart.box
    chart.frame()
    chart.page.text((left, top - 48), panel.title, 15)
    for step in marks:
        if chart.x.low <= step <= chart.x.high:
            chart.page.line([(chart.at_x(step), top), (chart.at_x(step), bottom)], ALARM)
    at = left
    for i, (name, points) in enumerate(curves.items()):
        ink = _INKS[i % len(_INKS)]
        chart.curve(*_arrays(points), ink)
        for x, y in points if len(points) < 2 else []:
            chart.page.dot((chart.at_x(x), chart.at_y(y)), 2.5, ink)
        text = f"{name.rpartition('.')[2]} {number(points[-1][1])}"
        chart.page.text((at, top - 24), text, 12, ink if len(curves) > 1 else SOFT)
        at += text_width(text, 12) + 14


def _arrays(points: Points) -> tuple[Floats, Floats]:
    values = np.array(points, np.float64)
    return values[:, 0], values[:, 1]
