"""The page of an evaluation, one file made for looking: numbers, how codes are used, images and what came back."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape as quoted
from typing import Any

from PIL import Image

from vqtok.errors import escape
from vqtok.evaluation.charts import number
from vqtok.evaluation.metric_table import METRICS
from vqtok.evaluation.shown import Shown, codes_picture, difference, difference_factor, middle, usage_picture
from vqtok.evaluation.usage import Usage
from vqtok.images import RGB

_ROWS = 2000  # of the table of images
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>vqtok eval</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #202124; margin: 2rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p { color: #5f6368; margin: .3rem 0; max-width: 60rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; border-bottom: 1px solid #e8eaed; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; } th { font-weight: 600; }
.row { display: flex; flex-wrap: wrap; gap: 8px; align-items: flex-start; margin-bottom: .4rem; }
.pair { display: flex; gap: 8px; align-items: flex-start; max-width: 100%; }
figure { margin: 0; flex: 0 1 auto; min-width: 0; } figcaption { font-size: .8rem; color: #5f6368; }
img { display: block; max-width: 100%; height: auto; }
.back { cursor: crosshair; }
.pair:has(.back:hover) .original img { transform: translateX(calc(100% + 8px)); position: relative; z-index: 1;
  pointer-events: none; }
.pair:has(.back:hover) .back figcaption { visibility: hidden; }
.name { font-weight: 600; margin: 1.2rem 0 .2rem; color: #202124; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f5f7; padding: 1rem; font-size: .8rem; }
</style></head><body>
"""


def html(result: Mapping[str, Any], usages: Sequence[Usage], images: Sequence[Shown], ranked_by: str) -> bytes:
    """Return the page; it refers to nothing outside, and runs nothing.

    Args:
        result: what `vqtok.evaluation.protocol.report` gave.
        usages: of the codebooks.
        images: to show.
        ranked_by: the label of the metric by which they were chosen.
    """
    factor = difference_factor(images)
    parts = [
        _HEAD,
        f"<h1>vqtok eval</h1><p>{_lead(result)}</p>",
        "<h2>All images</h2>",
        _summary_table(result),
        *(
            f"<p>{_text(METRICS[name].label)}: not computed. {_text(why)}</p>"
            for name, why in result["not_computed"].items()
        ),
        "<h2>Codes</h2>",
        *(f"<p>{_text(line)}</p>" for line in _usage_lines(usages)),
        _image(usage_picture(usages), "how often codes occur") if usages else "",
        f"<h2>Worst, median and best by {_text(ranked_by)}</h2>",
        "<p>Point at a reconstruction to see the original in its place. Differences lie around grey, "
        f"{factor} times as large as they are. In token maps every code has its colour.</p>",
        *(_shown(image, factor) for image in images),
        "<h2>Each image</h2>",
        _image_table(result["images"]),
        "<h2>Protocol</h2>",
        f"<pre>{_text(_pretty(result['protocol']))}</pre></body></html>\n",
    ]
    return "\n".join(parts).encode("utf-8", "backslashreplace")


def _lead(result: Mapping[str, Any]) -> str:
    protocol = result["protocol"]
    fingerprint = str(protocol["model"]["fingerprints"]["model"])[:12]
    facts = [
        f"{protocol['images']:,} images",
        f"crop {protocol['crop']}",
        f"{result['bits_per_pixel']:.4g} bits a pixel",
        f"model {fingerprint}",
    ]
    return _text("   ·   ".join(facts))


def _summary_table(result: Mapping[str, Any]) -> str:
    rows: list[Sequence[str]] = [("metric", "", "value", "least", "greatest", "samples")]
    for name, summary in result["summary"].items():
        cells = [formatted(name, summary.get(part)) for part in ("value", "least", "greatest")]
        rows.append((summary["label"], f"{summary['better']} is better", *cells, f"{summary['samples']:,}"))
    return _table(rows)


def formatted(name: str, value: float | None) -> str:
    """Return a value of a metric as people read it; a dash for what is not known.

    >>> formatted("psnr", 26.41812), formatted("ssim", None)
    ('26.418', '-')
    """
    return "-" if value is None else f"{value:.{METRICS[name].digits}f}"


def _usage_lines(usages: Sequence[Usage]) -> list[str]:
    return [
        f"{f'codebook {k}: ' if len(usages) > 1 else ''}{usage.used:,} of {usage.vocab_size:,} codes used "
        f"({100 * usage.share:.3g} %), {usage.dead:,} dead, perplexity {usage.perplexity:,.1f}"
        for k, usage in enumerate(usages, 1)
    ]


def _image_table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = [name for name in METRICS if any(name in row for row in rows)]
    cells: list[Sequence[str]] = [
        ("image", "pixels", "tokens", "bits a pixel", *(METRICS[name].label for name in names))
    ]
    for row in rows[:_ROWS]:
        values = [formatted(name, row.get(name)) for name in names]
        size = f"{row['width']} x {row['height']}"
        cells.append((row["key"], size, f"{row['tokens']:,}", number(row["bits_per_pixel"]), *values))
    more = f"<p>and {len(rows) - _ROWS:,} more in scores.json</p>" if len(rows) > _ROWS else ""
    return _table(cells) + more


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = []
    for i, row in enumerate(rows):
        tag = "td" if i else "th"
        lines.append("<tr>" + "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in row) + "</tr>")
    return "<table>" + "\n".join(lines) + "</table>"


def _shown(image: Shown, factor: int) -> str:
    """Return four pictures in a row: the first two side by side at any width of the window."""
    window = middle(image.original)
    cut = image.original[window].shape != image.original.shape
    panels = {
        "original": ("original", image.original[window]),
        "back": ("from tokens", image.back[window]),
        "difference": (f"difference x {factor}", difference(image.original, image.back, factor)[window]),
        "codes": ("codes of the whole image" if cut else "codes", codes_picture(image)),
    }
    figures = {
        kind: f'<figure class="{kind}">{_image(pixels, title)}<figcaption>{_text(title)}</figcaption></figure>'
        for kind, (title, pixels) in panels.items()
    }
    first, second = figures["original"] + figures["back"], figures["difference"] + figures["codes"]
    part = " (the middle)" if cut else ""
    name = f'<p class="name">{_text(image.why)}: {_text(image.tokens.keys[0])}{part}</p><p>{_text(image.line)}</p>'
    return f'{name}<div class="row"><div class="pair">{first}</div><div class="pair">{second}</div></div>'


def _image(pixels: RGB, title: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = pixels.shape[:2]
    return f'<img alt="{_text(title)}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'


def _text(text: str) -> str:
    """Return text that is text in HTML, whatever an image is called."""
    return quoted(escape(text, 4000) if "\n" not in text else text)


def _pretty(value: object) -> str:
    import json

    return json.dumps(value, indent=2, ensure_ascii=True)
