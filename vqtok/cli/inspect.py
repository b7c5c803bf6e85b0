"""``vqtok inspect``: what is in a token file or a model folder. Needs no torch, but for a picture of a model."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vqtok.cli import options
from vqtok.errors import ConfigError, InputError, escape

if TYPE_CHECKING:
    from vqtok.types import Tokens

_SHOWN, _DRAWN = 8, 5


@click.command("inspect")
@click.argument("path", metavar="FILE.vqt|DIR")
@click.option("--picture", metavar="IMAGE", help="Draw the tokens and how codes are used, or a model's codebook.")
@click.option("--image", metavar="PHOTO", help="Put the photograph into the picture; what was dropped is dimmed.")
@options.overwrite
@options.as_json
def command(path: str, picture: str | None, image: str | None, overwrite: bool, as_json: bool) -> None:
    """Check a token file or a model folder and say what is in it."""
    if not os.path.exists(path):
        raise InputError(f"{path!r}: expected a token file or a model folder, found nothing of that name")
    if image and (not picture or os.path.isdir(path)):
        raise ConfigError("expected a token file and --picture IMAGE with --image PHOTO")
    target = check_target(picture, overwrite)
    if os.path.isdir(path):
        report = model_report(path)
        if target:
            report["codebooks"] = draw_codebooks(path, target, overwrite)
    else:
        report = token_report(path, target, image, overwrite)
    if as_json:
        options.print_json(report)
    else:
        options.write_stdout(("\n".join(render(report)) + "\n").encode())


def check_target(picture: str | None, overwrite: bool) -> Path | None:
    """Refuse a picture that cannot be written before any work is done."""
    from vqtok.cli.detokenize import FORMATS

    if picture is None:
        return None
    if Path(picture).suffix.lower() not in FORMATS:
        raise ConfigError(f"expected --picture IMAGE ending in {' '.join(FORMATS)}, got {picture!r}")
    options.check_file(Path(picture), overwrite)
    return Path(picture)


def token_report(path: str, target: Path | None, image: str | None, overwrite: bool) -> dict[str, Any]:
    """Return what a token file holds; draw it when asked to."""
    from vqtok import store
    from vqtok.evaluation.metrics import bits_per_pixel, codebook_usage
    from vqtok.evaluation.usage import usage_of

    content = store.read_token_file(path)
    tokens, header = content.tokens, content.header
    if target:
        draw_tokens(tokens, target, image, overwrite)
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
        "codebooks": [
            {"used": usage.used, "dead": usage.dead, "perplexity": round(usage.perplexity, 2)}
            for usage in usage_of(tokens)
        ],
        "bits_per_pixel": round(bits_per_pixel(tokens), 4) if len(tokens) else 0.0,
        "fingerprints": dict(header.fingerprints),
        "execution": dict(header.execution),
        "created_by": header.created_by,
        "sha256": header.sha256,
        "rows": images,
    }


def draw_tokens(tokens: Tokens, target: Path, image: str | None, overwrite: bool) -> None:
    """Write the token maps of the first images and the usage of the codes; or one image's beside its photograph."""
    from vqtok.cli.detokenize import write_image
    from vqtok.evaluation.token_pictures import token_picture
    from vqtok.images import PreprocessSpec, to_rgb

    if image is None:
        write_image(token_picture(tokens), target, overwrite)
    else:
        picture = token_picture(tokens_of(tokens, image), to_rgb(image, PreprocessSpec()))
        write_image(picture, target, overwrite)


def tokens_of(tokens: Tokens, image: str) -> Tokens:
    """Return the tokens of an image among others: those of its path, of its name, or the only ones."""
    if len(tokens) == 1:
        return tokens
    for name in (str, os.path.basename):
        found = [i for i, key in enumerate(tokens.keys) if name(key) == name(image)]
        if len(found) == 1:
            return tokens[found[0]]
    raise ConfigError(f"expected --image PHOTO to be one of the file's {len(tokens)} images, got {image!r}")


def draw_codebooks(folder: str, target: Path, overwrite: bool) -> dict[str, Any]:
    """Write the maps of a model's codebooks and return their numbers."""
    from vqtok.cli.detokenize import write_image
    from vqtok.evaluation.codebook_pictures import codebook_picture, survey
    from vqtok.evaluation.codebooks import codebooks_of

    books = codebooks_of(options.load_model(folder, "cpu", "float32"))
    found = {name: survey(rows) for name, rows in books.items()}
    shown = dict([*found.items()][:_DRAWN])
    write_image(codebook_picture(Path(os.path.abspath(folder)).name, shown), target, overwrite)
    return {name: entry.neighbours.report() for name, entry in found.items()}


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
