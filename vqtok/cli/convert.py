"""``vqtok convert``: tokens to the formats of others, and back; needs no torch. Models: see `convert_model`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vqtok.cli import options
from vqtok.errors import ConfigError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqtok.dataset.exports.rows import Content
    from vqtok.dataset.numbering import Numbering

_TARGETS = ("npz", "parquet", "jsonl", "webdataset", "bin", "megatron")
_SUFFIXES = {".npz": "npz", ".parquet": "parquet", ".jsonl": "jsonl", ".tar": "webdataset", ".bin": "bin"}


class _Convert(click.Command):
    """The command itself, and ``model`` as its first word."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Hand the words behind ``model`` to that command; a run of this name is ``./model``."""
        if args[:1] != ["model"]:
            return super().make_context(info_name, args, parent, **extra)
        from vqtok.cli.convert_model import command as of_models

        return of_models.make_context(f"{info_name} model", args[1:], parent, **extra)


@click.command("convert", cls=_Convert)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("--to", "kind", type=click.Choice([*_TARGETS, "vqt"]), help="Format.  [default: by DST's suffix]")
@click.option("--offset", type=click.IntRange(0), default=0, help="Added to each code.")
@click.option("--boi", type=click.IntRange(0), help="Id before each image.")
@click.option("--eoi", type=click.IntRange(0), help="Id after each image.")
@click.option("--row-end", type=click.IntRange(0), help="Id after each row of an image.")
@click.option("--numbering", "named", type=click.Choice(["lavit", "chameleon"]), help="Ids of a known model.")
@click.option("--vocab-file", metavar="JSON", help="Chameleon's text tokenizer, for --numbering chameleon.")
@click.option("--dtype", type=click.Choice(["auto", "u16", "u32"]), default="auto", show_default=True)
@click.option("--vocab-size", type=click.IntRange(1), help="Number of codes of tokens that others wrote.")
@click.option("--factor", type=click.IntRange(1), default=16, show_default=True, help="Pixels a token, for those.")
@click.option("--shard-size", type=click.IntRange(1), default=10_000, show_default=True, help="Images a .vqt.")
@options.overwrite
@options.as_json
def command(source: str, target: str, kind: str | None, overwrite: bool, as_json: bool, **chosen: Any) -> None:
    """Turn a run or a token file into another format, or another format into token files.

    Offsets and special ids exist in exports only; DST.json records them, and converting back gives the raw codes again.
    SRC may also be a folder of .npy files (LlamaGen, 4M) or TiTok's .jsonl, with --vocab-size.

    Models are converted by `vqtok convert model SRC DST`: see `vqtok convert model --help`.
    """
    if not os.path.lexists(source):
        raise InputError(f"{source!r}: expected a run, a token file or an export, found nothing of that name")
    kind = kind or _SUFFIXES.get(Path(target).suffix, "vqt" if Path(target).suffix in ("", ".vqt") else "")
    if not kind:
        raise ConfigError(f"expected DST ending in {' '.join(_SUFFIXES)} or .vqt, or --to, got {target!r}")
    if kind == "vqt":
        outputs, images = import_tokens(Path(source), Path(target), overwrite, chosen)
    else:
        outputs, images = export_tokens(source, Path(target), kind, overwrite, chosen)
    if as_json:
        options.print_json(
            {"schema": "vqtok.result/1", "ok": True, "exit_code": 0, "counts": {"ok": images}, "outputs": outputs}
        )
    else:
        options.say(f"{target}: {images:,} images, {kind}")


def export_tokens(
    source: str, target: Path, kind: str, overwrite: bool, chosen: dict[str, Any]
) -> tuple[list[str], int]:
    """Write a run or token file in another format."""
    from vqtok.dataset.exports import export, open_source

    if kind in ("bin", "megatron") and target.suffix != ".bin":
        raise ConfigError(f"expected DST ending in .bin for {kind}, got {str(target)!r}")
    sidecar = export(open_source(source), target, kind, numbering_of(chosen), chosen["dtype"], overwrite=overwrite)
    return [str(target)], sidecar.images


def numbering_of(chosen: dict[str, Any]) -> Numbering:
    """Return the numbering that the options ask for."""
    from vqtok.dataset.numbering import LAVIT, Numbering, chameleon

    own = {"offset": chosen["offset"], "begin": chosen["boi"], "end": chosen["eoi"], "row_end": chosen["row_end"]}
    named = chosen["named"]
    if named is None:
        return Numbering(**own)
    if chosen["offset"] or chosen["boi"] is not None or chosen["eoi"] is not None:
        raise ConfigError(f"expected either --numbering {named} or --offset, --boi and --eoi, got both")
    if named == "lavit":
        return LAVIT.model_copy(update={"row_end": chosen["row_end"]})
    if not chosen["vocab_file"]:
        raise ConfigError("expected --vocab-file with --numbering chameleon: its text tokenizer's JSON")
    return chameleon(read_vocabulary(Path(chosen["vocab_file"])), chosen["vocab_size"] or 8192)


def read_vocabulary(path: Path) -> dict[str, int]:
    """Return id by word, of a tokenizer's JSON or of a plain mapping."""
    from vqtok.dataset.documents import read_file
    from vqtok.store.canonical import strict_json

    try:
        value = strict_json(read_file(path, "a vocabulary"))
    except ValueError as error:
        raise InputError(f"{str(path)!r}: expected a vocabulary in JSON, got: {error}") from None
    found: Any = value
    for name in ("model", "vocab"):
        found = found.get(name, found) if isinstance(found, dict) else found
    if not isinstance(found, dict):
        raise InputError(f"{str(path)!r}: expected ids by word, got {type(found).__name__}")
    return {str(word): number for word, number in found.items() if type(number) is int}


def import_tokens(source: Path, target: Path, overwrite: bool, chosen: dict[str, Any]) -> tuple[list[str], int]:
    """Write token files of an export, or of what others wrote: one, or a folder of one for each shard."""
    from vqtok.store import save_tokens
    from vqtok.store.commit import output_errors

    single = target.suffix == ".vqt"
    contents = read_source(source, chosen)
    if not single:
        with output_errors(target):
            target.mkdir(exist_ok=True)
    images, outputs = 0, []
    for number, content in enumerate(_whole(contents) if single else contents):
        path = target if single else target / f"{number:05d}.vqt"
        save_tokens(path, content.tokens, source_sha256=content.source_sha256, overwrite=overwrite)
        images += len(content.tokens)
        outputs.append(str(path))
    return outputs, images


def read_source(source: Path, chosen: dict[str, Any]) -> Iterator[Content]:
    """Return what an export or another program's file holds."""
    from vqtok.dataset.exports import open_source, read_export, read_foreign

    beside = source / "vqtok.json" if source.is_dir() else source.with_name(f"{source.name}.json")
    if beside.exists():
        return read_export(source)
    if (source / "manifest.json").exists() or source.suffix == ".vqt":
        return iter(open_source(str(source)))
    if chosen["vocab_size"] is None:
        raise ConfigError(f"expected --vocab-size for tokens that others wrote, or {str(beside)!r} beside an export")
    return read_foreign(source, chosen["vocab_size"], chosen["factor"], chosen["shard_size"])


def _whole(contents: Iterator[Content]) -> Iterator[Content]:
    import numpy as np

    from vqtok.dataset.exports.rows import Content
    from vqtok.types import concatenate

    parts = list(contents)
    sources = [part.source_sha256 for part in parts]
    known = [source for source in sources if source is not None]
    hashes = np.concatenate(known) if known and len(known) == len(parts) else None
    yield Content(concatenate([part.tokens for part in parts]), hashes)
