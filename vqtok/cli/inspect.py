"""``vqtok inspect``: what is in a token file or a model folder. Needs no torch."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vqtok.cli import options
from vqtok.errors import ConfigError, InputError, escape

if TYPE_CHECKING:
    from vqtok.store import TokenFile

_SHOWN = 8


@click.command("inspect")
@click.argument("path", metavar="FILE.vqt|DIR")
@click.option("--picture", metavar="IMAGE", help="Draw the tokens, each code in its colour.")
@options.overwrite
@options.as_json
def command(path: str, picture: str | None, overwrite: bool, as_json: bool) -> None:
    """Check a token file or a model folder and say what is in it."""
    if not os.path.exists(path):
        raise InputError(f"{path!r}: expected a token file or a model folder, found nothing of that name")
    if os.path.isdir(path):
        if picture:
            raise ConfigError("expected a token file for --picture, got a folder")
        report = model_report(path)
    else:
        report = token_report(path, picture, overwrite)
    if as_json:
        options.print_json(report)
    else:
        options.write_stdout(("\n".join(render(report)) + "\n").encode())


def token_report(path: str, picture: str | None, overwrite: bool) -> dict[str, Any]:
    """Return what a token file holds; draw it when asked to."""
    from vqtok import store
    from vqtok.evaluation.metrics import bits_per_pixel, codebook_usage

    content = store.read_token_file(path)
    tokens, header = content.tokens, content.header
    if picture:
        draw(content, Path(picture), overwrite)
    images = [
        {"key": row.keys[0], "size": row.sizes[0].tolist(), "grid": row.grids[0].tolist(), "tokens": row.ids.size}
        for row in tokens
    ]
    return {
        "kind": "token file",
        "path": path,
        "bytes": os.path.getsize(path),
        "images": len(tokens),
        "tokens": int(tokens.ids.size),
        "vocab_size": tokens.vocab_size,
        "codes_used": round(codebook_usage(tokens) * tokens.vocab_size),
        "bits_per_pixel": round(bits_per_pixel(tokens), 4) if len(tokens) else 0.0,
        "fingerprints": dict(header.fingerprints),
        "execution": dict(header.execution),
        "created_by": header.created_by,
        "sha256": header.sha256,
        "rows": images,
    }


def draw(content: TokenFile, target: Path, overwrite: bool) -> None:
    """Write the token maps of the first images."""
    import numpy as np

    from vqtok.cli.detokenize import FORMATS, write_image
    from vqtok.evaluation.pictures import contact_sheet

    if not len(content.tokens):
        raise ConfigError("expected at least one image to draw, got none")
    if content.header.layout != "grid":
        raise ConfigError(f"expected tokens in grids to draw, got {content.header.layout!r}")
    if target.suffix.lower() not in FORMATS:
        raise ConfigError(f"expected --picture IMAGE ending in {' '.join(FORMATS)}, got {str(target)!r}")
    options.check_file(target, overwrite)
    write_image(np.asarray(contact_sheet(content.tokens)), target, overwrite)


def model_report(folder: str) -> dict[str, Any]:
    """Return what a model folder says of itself, and what its files are, which no configuration can talk away."""
    from vqtok import store

    config = store.read_config(folder)
    tensors = store.tensor_shapes(folder)
    store.read_weights(folder, tensors)  # nothing is said of weights that are damaged or another model's
    facts = {
        "kind": "model folder",
        "path": folder,
        "bytes": sum(file.stat().st_size for file in Path(folder).iterdir() if file.is_file()),
        "parameters": sum(map(math.prod, tensors.values())),
        "tensors": len(tensors),
    }
    return facts | {name: value for name, value in config.items() if name not in facts}


def render(report: dict[str, Any], indent: int = 0) -> list[str]:
    """Return a report as aligned lines; long lists are cut."""
    lines = []
    width = max((len(key) for key in report), default=0)
    for key, value in report.items():
        head = f"{' ' * indent}{_printable(key):<{width}}  "
        if isinstance(value, dict) and value:
            lines += [head.rstrip(), *render(value, indent + 2)]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(head.rstrip())
            lines += [f"{' ' * indent}  {_row(row)}" for row in value[:_SHOWN]]
            lines += [f"{' ' * indent}  ... and {len(value) - _SHOWN} more (--json shows all)"] * (len(value) > _SHOWN)
        else:
            lines.append(f"{head}{_printable(value)}")
    return lines


def _row(row: dict[str, Any]) -> str:
    return ", ".join(f"{_printable(key)} {_printable(value)}" for key, value in row.items())


def _printable(value: object) -> str:
    """Return what a file says as text that cannot steer the terminal."""
    return escape(str(value))
