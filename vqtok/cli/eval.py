"""``vqtok eval``: how good a tokenizer is on a set of images, with the protocol, as a table, JSON or a page."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vqtok.cli import options
from vqtok.cli.inputs import Input, expand
from vqtok.errors import ConfigError, InputError, TooManyFailures, escape

if TYPE_CHECKING:
    from vqtok.cli.reading import Reader
    from vqtok.evaluation.scores import Scores
    from vqtok.evaluation.shown import Shown
    from vqtok.image_tokenizer import ImageTokenizer
    from vqtok.images import PreprocessSpec

Named = list[tuple[str, Input]]
FILES = ("report.html", "scores.json")


@click.command("eval")
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("-o", "--output", metavar="DIR", help="Folder for report.html, made for looking, and scores.json.")
@click.option("--metrics", metavar="A,B,...", help="Which, by name.  [default: all that this machine has weights for]")
@click.option(
    "--crop", default="none", show_default=True, metavar="none|center:N|adm:N|stretch:N", help="Resize first."
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Take the first N images only.")
@click.option("--weights", metavar="DIR", help="Folder with weights of metrics, beside the packages that ship them.")
@click.option("--max-failures", default="0", metavar="N|P%", help="Failed images that still end in 0.")
@options.model
@options.overwrite
@options.as_json
def command(
    inputs: tuple[str, ...],
    output: str | None,
    metrics: str | None,
    crop: str,
    limit: int | None,
    weights: str | None,
    max_failures: str,
    model: str | None,
    device: str,
    precision: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Measure what tokens keep of images: PSNR, SSIM, ST-LPIPS, LPIPS, KID, rFID, bits a pixel, use of the codebook.

    Weights come from packages that are installed, or from --weights; nothing is downloaded.
    """
    if "-" in inputs:
        raise ConfigError("expected files, folders or patterns, got '-': images are read twice")
    if weights is not None and not os.path.isdir(weights):
        raise InputError(f"expected --weights DIR, a folder with files of weights, found none at {weights!r}")
    named = _named(inputs, limit)
    names = [name.strip() for name in metrics.split(",")] if metrics is not None else None
    from vqtok.cli.running import parse_allowed

    allowed = parse_allowed(max_failures, len(named))
    if output is not None:
        from vqtok.store.commit_folder import check_folder

        check_folder(output, FILES, overwrite=overwrite)

    tokenizer = options.load_model(model, device, precision)
    from vqtok.cli.reading import Reader
    from vqtok.evaluation.metric_table import open_metrics
    from vqtok.evaluation.protocol import cropped_spec
    from vqtok.evaluation.scores import evaluate

    spec = cropped_spec(tokenizer.spec, crop)
    opened = open_metrics(names, device=tokenizer.device, weights=weights)
    reader = Reader(spec)
    images = options.progress(reader.read(named), len(named), "eval")
    scores = evaluate(tokenizer, images, opened, refuse=reader.refuse)
    result = _result(scores, reader, allowed, tokenizer, spec, crop)
    if output is not None and scores.images:
        write_folder(output, result, scores, dict(named), tokenizer, spec, overwrite)
    if as_json:
        options.print_json(result)
    elif scores.images:
        options.write_stdout(("\n".join(table(result)) + "\n").encode())
    if len(reader.failures) > (allowed if scores.images else 0) and (outcome := reader.outcome()):
        raise outcome


def _named(inputs: tuple[str, ...], limit: int | None) -> Named:
    from vqtok.streaming import unique_keys

    listed = expand(inputs)[:limit]
    return [*zip(unique_keys(item.key for item in listed), listed, strict=True)]


def _result(
    scores: Scores, reader: Reader, allowed: int, tokenizer: ImageTokenizer, spec: PreprocessSpec, crop: str
) -> dict[str, Any]:
    """Return the JSON of ``--json`` and of scores.json."""
    from vqtok.evaluation.protocol import report

    head = reader.summary() | {"schema": "vqtok.scores/1"}
    if isinstance(reader.outcome(), TooManyFailures) and len(reader.failures) <= allowed:
        head |= {"ok": True, "exit_code": 0}
    return head | report(scores, tokenizer, spec, crop)


def table(result: dict[str, Any]) -> list[str]:
    """Return the numbers as lines for people."""
    from vqtok.evaluation.html import formatted

    rows = [
        (summary["label"], formatted(name, summary["value"]), f"{summary['better']} is better, {_of(summary)}")
        for name, summary in result["summary"].items()
    ]
    rows.append(("bits a pixel", f"{result['bits_per_pixel']:.4f}", ""))
    for k, book in enumerate(result["codebooks"], 1):
        name = f"codebook {k}" if len(result["codebooks"]) > 1 else "codebook"
        rows.append((name, f"{100 * book['share']:.1f} %", f"{book['used']:,} of {book['vocab_size']:,} codes used"))
        rows.append(("perplexity", f"{book['perplexity']:,.1f}", ""))
    label, value = (max(len(row[i]) for row in rows) for i in (0, 1))
    lines = [f"{row[0]:<{label}}  {row[1]:>{value}}  {row[2]}".rstrip() for row in rows]
    return lines + [f"{name}: not computed: {escape(why)}" for name, why in result["not_computed"].items()]


def _of(summary: dict[str, Any]) -> str:
    lost = f", {summary['lossless']} without loss" if "lossless" in summary else ""
    return f"{summary['samples']:,} samples{lost}"


def write_folder(
    output: str,
    result: dict[str, Any],
    scores: Scores,
    inputs: dict[str, Input],
    tokenizer: ImageTokenizer,
    spec: PreprocessSpec,
    overwrite: bool,
) -> None:
    """Write the page and the JSON, both or neither."""
    from vqtok.evaluation.html import html
    from vqtok.evaluation.metric_table import METRICS
    from vqtok.store.commit_folder import commit_folder

    name = ranking(scores)
    images = shown(scores, name, inputs, tokenizer, spec)
    page = html(result, scores.usage, images, METRICS[name].label if name else "name")
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    commit_folder(
        output, {"report.html": page, "scores.json": text.encode("utf-8", "backslashreplace")}, overwrite=overwrite
    )
    options.say(f"{Path(output) / 'report.html'}: {len(images)} of {len(scores.images)} images shown")


def ranking(scores: Scores) -> str:
    """Return the metric by which images are shown: what is nearest to how people see, or else PSNR, or none."""
    order = ("lpips-vgg", "st-lpips-vgg", "lpips-alex", "st-lpips-alex", "psnr", "ssim")
    return next((name for name in order if any(name in row.values for row in scores.images)), "")


def shown(
    scores: Scores, name: str, inputs: dict[str, Input], tokenizer: ImageTokenizer, spec: PreprocessSpec
) -> list[Shown]:
    """Read the images that the page shows once more; one that has gone since is left out."""
    from vqtok import streaming
    from vqtok.cli.reading import Reader
    from vqtok.evaluation.html import formatted
    from vqtok.evaluation.metric_table import METRICS
    from vqtok.evaluation.shown import Shown, chosen

    values = {row.key: row.values.get(name, math.nan) for row in scores.images}
    values = {key: value for key, value in values.items() if not math.isnan(value)} or dict.fromkeys(values, 0.0)
    picks = chosen(values, METRICS[name].better if name else "higher")
    rows = {row.key: row for row in scores.images}
    found = []
    for key, array in Reader(spec).read([(key, inputs[key]) for key in picks]):
        if hashlib.sha256(array.tobytes()).hexdigest() != rows[key].sha256:
            options.say(f"{key}: left out of the page: it has changed since it was measured")
            continue
        tokens = streaming.collect(tokenizer, streaming.tokenize(tokenizer, [(key, array)]), [key])
        back = next(streaming.detokenize(tokenizer, tokens))
        line = "   ·   ".join(f"{METRICS[n].label} {formatted(n, v)}" for n, v in rows[key].values.items())
        found.append(Shown(picks[key], array, back, tokens, line))
    return found
