"""The picture of a codebook: a map of its codes, and how far each is from its nearest other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vqtok.evaluation.charts import Axis, Chart, histogram, number
from vqtok.evaluation.colours import ACCENT, ALARM, EMPTY, SOFT, ramp
from vqtok.evaluation.neighbours import Floats, Neighbours, main_plane, neighbours
from vqtok.evaluation.page import Page, shortened
from vqtok.images import RGB

# Pixels: around the page, its width, the side of a map, from one codebook to the next, where charts begin and end.
_MARGIN, _WIDTH, _MAP, _EACH, _LEFT, _RIGHT = 40, 1200, 540, 700, 672, 1160
_HEAD, _CHART, _BETWEEN, _BINS = 112, 196, 108, 60


@dataclass(frozen=True, slots=True, eq=False)
class CodebookMap:
    """What is drawn of one codebook.

    Attributes:
        neighbours: distances, norms and duplicates.
        points: float64 [n, 2], the compared codes in the plane of greatest variance.
        share: what that plane has of all variance.
        dim: length of a row.
    """

    neighbours: Neighbours
    points: Floats
    share: float
    dim: int


def survey(codebook: npt.NDArray[np.floating]) -> CodebookMap:
    """Return what is drawn of a codebook [K, D], with its numbers.

    >>> survey(np.eye(3)).neighbours.distances.round(3).tolist()
    [1.414, 1.414, 1.414]
    """
    found = neighbours(codebook)
    points, share = main_plane(codebook)
    return CodebookMap(found, points[found.codes], share, codebook.shape[1])


def codebook_picture(title: str, maps: Mapping[str, CodebookMap]) -> RGB:
    """Return a picture of a model's codebooks, one under the other, each with its name.

    Args:
        title: what stands above them.
        maps: what `survey` found, by name; at least one.

    Returns:
        uint8 [height, 1200, 3].
    """
    page = Page(_WIDTH, _HEAD + _EACH * len(maps) - 30)
    page.text((_MARGIN, 34), shortened(title, _WIDTH - 2 * _MARGIN, 26), 26)
    for i, (name, found) in enumerate(maps.items()):
        top = _HEAD + _EACH * i
        page.text((_MARGIN, top - 40), "   ·   ".join([*[name] * (len(maps) > 1), *_facts(found)]), 15, SOFT)
        _draw_map(page, found, top)
        _draw_curve(page, found.neighbours, top + 26)
        _draw_histogram(page, found.neighbours, top + 26 + _CHART + _BETWEEN)
    return page.picture()


def _facts(found: CodebookMap) -> list[str]:
    lie = found.neighbours
    facts = [f"{len(lie.norms):,} codes of {found.dim} dimensions"]
    if len(lie.codes) < len(lie.norms):
        facts.append(f"{len(lie.codes):,} of them compared with all")
    shortest, longest = (number(float(f"{x:.3g}")) for x in (lie.norms.min(), lie.norms.max()))
    facts.append(f"norms {shortest} to {longest}" if shortest != longest else f"norm {longest}")
    facts.append(f"nearest pair {number(lie.distances.min())} apart")
    facts.append(f"{lie.duplicates or 'no'} duplicate{'s' * (lie.duplicates != 1)}")
    return facts


def _draw_map(page: Page, found: CodebookMap, top: int) -> None:
    """Draw the codes in their main plane, dark where a nearest other is near; duplicates in red rings."""
    page.rectangle((_MARGIN, top, _MARGIN + _MAP, top + _MAP), EMPTY)
    middle = (found.points.max(axis=0) + found.points.min(axis=0)) / 2
    reach = max(float(np.abs(found.points - middle).max()), 1e-12)
    radius = min(4.0, max(0.9, math.sqrt(0.2 * _MAP**2 / math.pi / len(found.points))))
    scale = (_MAP / 2 - 16) / reach
    distances = found.neighbours.distances
    low, high = np.quantile(distances, [0.02, 0.98])
    colours = ramp((distances - low) / max(high - low, 1e-12))
    for i in np.argsort(-distances, kind="stable").tolist():
        x = _MARGIN + _MAP / 2 + scale * (found.points[i, 0] - middle[0])
        y = top + _MAP / 2 - scale * (found.points[i, 1] - middle[1])
        page.dot((x, y), radius, (int(colours[i, 0]), int(colours[i, 1]), int(colours[i, 2])))
        if distances[i] == 0:
            page.ring((x, y), radius + 3, ALARM, 1.5)
    text = f"two main directions, {100 * found.share:.0f} % of the variance"
    page.text((_MARGIN, top + _MAP + 12), text, 13, SOFT)
    _draw_ramp(page, number(float(f"{low:.3g}")), number(float(f"{high:.3g}")), top + _MAP + 12)


def _draw_ramp(page: Page, low: str, high: str, top: int) -> None:
    """Draw what the colours of the map mean, at its lower right."""
    right, width = _MARGIN + _MAP - 44, 120
    page.panel(right - width, top + 2, ramp(np.linspace(0, 1, width))[None].repeat(10, axis=0))
    page.text((right - width - 8, top), low, 13, SOFT, "ra")
    page.text((right + 8, top), high, 13, SOFT)


def _draw_curve(page: Page, lie: Neighbours, top: int) -> None:
    """Draw the distances in rising order; those of duplicates are a red line along the bottom."""
    distances = np.sort(lie.distances)
    box = (_LEFT, top, _RIGHT, top + _CHART)
    high = max(1.08 * float(distances[-1]), 1e-12)
    chart = Chart(
        page, box, Axis(0, len(distances)), Axis(0, high), "distance to the nearest other code", "codes by distance"
    )
    chart.frame()
    chart.curve(np.arange(0.5, len(distances)), distances, ACCENT)
    if same := int((distances == 0).sum()):
        page.rectangle((_LEFT, box[3] - 3, max(chart.at_x(same), _LEFT + 2), box[3]), ALARM)
        page.text((_LEFT + 8, top + 6), f"{same:,} codes equal another", 13, ALARM)


def _draw_histogram(page: Page, lie: Neighbours, top: int) -> None:
    edges, counts = histogram(lie.distances, _BINS)
    x, y = Axis(0, 1.02 * float(edges[-1])), Axis(0, max(1.0, 1.08 * float(counts.max())))
    chart = Chart(page, (_LEFT, top, _RIGHT, top + _CHART), x, y, "codes", "distance to the nearest other code")
    chart.frame()
    chart.bars(edges, counts)
