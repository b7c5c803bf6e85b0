"""``vqtok tokenize``: images to tokens, in one file or in a run folder of shards."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from vqtok.cli import options, running
from vqtok.cli.inputs import expand

if TYPE_CHECKING:
    from vqtok.image_tokenizer import ImageTokenizer


@click.command("tokenize")
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("-o", "--output", required=True, metavar="FILE.vqt|DIR/", help="Token file or run folder; '-': stdout.")
@options.model
@options.overwrite
@options.as_json
@click.option("--files-from", metavar="FILE", help="List of images, a path a line; '-' for stdin.")
@click.option("-0", "--null", is_flag=True, help="The paths of --files-from end in NUL.")
@click.option("--dry-run", is_flag=True, help="List images and shards, and write nothing.")
@click.option("--resume", is_flag=True, help="Go on with the run that is there, and refuse to begin one.")
@click.option("--extend", is_flag=True, help="Add images that the run does not list yet, in new shards.")
@click.option("--shard-size", type=click.IntRange(1, 10_000_000), default=10_000, show_default=True)
@click.option("--crop", default="none", show_default=True, help="none, center, ten or random:N; boxes are recorded.")
@click.option("--size", type=click.IntRange(0, 65_535), default=0, metavar="N", help="Side of crops.  [default: model]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of random crops.")
@click.option("--repro", type=click.Choice(["fast", "stable", "exact"]), default="stable", show_default=True)
@click.option("--no-source-hash", is_flag=True, help="Leave out the sha256 of each image's file.")
@click.option("--image-col", default="", help="Column of images in lists and tables.")
@click.option("--key-col", default="", help="Column of names in lists and tables.")
@click.option("--label-col", default="", help="Column of labels in lists and tables.")
@click.option("--caption-col", default="", help="Column of captions in lists and tables.")
@click.option("--root", default="", metavar="DIR", help="Folder of the relative paths in lists and tables.")
@click.option("--tile", type=click.IntRange(1), metavar="PIXELS", help="Larger images in tiles.")
@click.option("--rank", type=int, help="Make every world-size-th shard, from this one on.")
@click.option("--world-size", type=int)
@running.execution
def command(inputs: tuple[str, ...], output: str, overwrite: bool, as_json: bool, **chosen: Any) -> None:
    """Turn images into tokens: one token file, or a run folder of shards that can be resumed and verified.

    INPUT is an image (JPEG, PNG, WebP, BMP, GIF), a folder, a quoted pattern, a list (.txt, .csv, .jsonl), a tar, a
    parquet file, or '-' for an image on stdin; for a run folder (-o DIR/, or a name without a suffix) also several tars
    as 'x-{000..127}.tar', or a dataset saved to disk. All but tables and datasets may lie in object stores, as
    s3://bucket/folder (needs vqtok[fsspec]). Run it again to go on after an interruption.
    """
    if is_run(output):
        tokenize_run(inputs, output, overwrite, as_json, chosen)
    else:
        refuse_run_options(chosen)
        tokenize_file(inputs, output, overwrite, as_json, chosen)


def is_run(output: str) -> bool:
    """Tell whether an output is a run folder: it ends in ``/``, is a folder, or has no suffix.

    >>> is_run("run/"), is_run("tokens"), is_run("a.vqt"), is_run("-")
    (True, True, False, False)
    """
    ends = output.endswith((os.sep, "/"))
    return bool(output) and output != "-" and (ends or os.path.isdir(output) or not os.path.splitext(output)[1])


def refuse_run_options(chosen: dict[str, Any]) -> None:
    """Refuse options that only run folders have, so that none is overlooked in silence."""
    from vqtok.errors import ConfigError

    context = click.get_current_context()
    shared = {"inputs", "output", "model", "device", "precision", "overwrite", "as_json", "tile"}
    for name in chosen:
        source = context.get_parameter_source(name)
        if name not in shared and source is click.core.ParameterSource.COMMANDLINE:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"expected a run folder (-o DIR/) with {flag}, got a token file")


def refuse_remote_output(output: str) -> None:
    """Refuse a run in an object store: a commit needs a lock, a link that fails when the name is taken, and fsync."""
    from vqtok.dataset.remote import is_remote
    from vqtok.errors import ConfigError

    if is_remote(output):
        raise ConfigError(f"expected a local folder for a run, got {output!r}: copy the finished run there")


def cut_into_tiles(tokenizer: ImageTokenizer, tile: int | None) -> None:
    """Let images that are larger than a tile go through in tiles, and say so where that changes tokens."""
    from vqtok.errors import ConfigError
    from vqtok.grid import GridTokenizer

    if tile is None:
        return
    if not isinstance(tokenizer, GridTokenizer):
        raise ConfigError("expected a model of token grids with --tile, got one whose images have one size")
    tokenizer.tile = tile
    if tokenizer.sees_everything:
        options.say(
            f"tiles of {tile} pixels: each token of this model depends on the whole image (attention, GroupNorm), so "
            "these are others than those of the image in one piece"
        )


def tokenize_file(inputs: tuple[str, ...], output: str, overwrite: bool, as_json: bool, chosen: dict[str, Any]) -> None:
    """Write one token file."""
    listed = expand(inputs)
    check_output(output, overwrite, as_json)

    from vqtok import store, streaming
    from vqtok.cli.reading import Reader

    tokenizer = options.load_model(chosen["model"], chosen["device"], chosen["precision"])
    cut_into_tiles(tokenizer, chosen["tile"])
    keys = streaming.unique_keys(item.key for item in listed)
    reader = Reader(tokenizer.spec)
    arrays = reader.read(list(zip(keys, listed, strict=True)))
    rows = options.progress(streaming.tokenize(tokenizer, arrays, reader.refuse), len(listed), "tokenize")
    tokens = streaming.collect(tokenizer, rows, keys)
    if len(tokens):
        if output == "-":
            options.write_binary(store.tokens_to_bytes(tokens))
        else:
            store.save_tokens(output, tokens, overwrite=overwrite)
    if as_json:
        outputs = [output] if len(tokens) else []
        counts = {"tokens": int(tokens.ids.size), "fingerprint": tokens.fingerprint, "outputs": outputs}
        options.print_json(reader.summary() | counts)
    elif output != "-" and len(tokens):
        count = f"{len(tokens)} image{'s' if len(tokens) > 1 else ''}"
        options.say(f"{output}: {count}, {tokens.ids.size} tokens of {tokens.vocab_size}")
    if outcome := reader.outcome():
        raise outcome


def check_output(output: str, overwrite: bool, as_json: bool) -> None:
    """Refuse an output that cannot be written before any work is done."""
    from pathlib import Path

    from vqtok.errors import ConfigError

    if output == "-":
        if as_json:
            raise ConfigError("expected either '-o -' or --json: both want stdout")
        return
    if Path(output).suffix != ".vqt":
        raise ConfigError(f"expected -o FILE.vqt, -o DIR/ or '-o -', got {output!r}")
    options.check_file(Path(output), overwrite)


def tokenize_run(inputs: tuple[str, ...], output: str, overwrite: bool, as_json: bool, chosen: dict[str, Any]) -> None:
    """Begin a run or go on with it."""
    refuse_remote_output(output)
    from vqtok.dataset.crops import views
    from vqtok.dataset.folder import MANIFEST, RunFolder
    from vqtok.dataset.tables import Columns
    from vqtok.errors import ConfigError, InputError

    views(chosen["crop"])
    running.parse_allowed(chosen["max_failures"], 0)
    share = running.share_of(chosen["rank"], chosen["world_size"])
    if sum([overwrite, chosen["resume"], chosen["extend"]]) > 1:
        raise ConfigError("expected one of --overwrite, --resume and --extend")
    if overwrite and share.world_size > 1:
        raise ConfigError("expected no --overwrite with several ranks, of which each would forget the others' work")
    names = ("image", "key", "label", "caption")
    columns = Columns(*(chosen[f"{name}_col"] for name in names), root=chosen["root"])
    items = listed_files(chosen["files_from"], chosen["null"], columns)
    if "-" in inputs:
        raise ConfigError("expected files, folders or --files-from - for a run, got '-'")
    if items and inputs:
        raise ConfigError("expected either INPUT or --files-from, got both")
    folder = RunFolder(os.path.normpath(output))
    if chosen["resume"] and not (folder.path / MANIFEST).exists():
        raise InputError(f"{output!r}: expected a run to resume, found none: leave out --resume to begin one")
    if chosen["dry_run"]:
        show_plan(inputs, columns, items, chosen["shard_size"], as_json)
        return
    _run(folder, inputs, columns, items, share, overwrite, as_json, chosen)


def _run(
    folder: Any, inputs: Any, columns: Any, items: Any, share: Any, overwrite: bool, as_json: bool, chosen: Any
) -> None:
    from vqtok.dataset.decoding import Recipe, default_workers
    from vqtok.dataset.engine import missing_shards, run
    from vqtok.dataset.planning import Request, prepare

    tokenizer = options.load_model(chosen["model"], _device(chosen["device"]), chosen["precision"])
    cut_into_tiles(tokenizer, chosen["tile"])
    from vqtok.dataset.encoding import execution_of, settings_of

    crop, spec = chosen["crop"], tokenizer.spec
    size = (chosen["size"] or spec.size or 0) if crop != "none" else 0
    recipe = Recipe(spec, crop, size, chosen["seed"], not chosen["no_source_hash"], columns=columns)
    request = Request(
        inputs=inputs,
        columns=columns,
        settings=settings_of(tokenizer, recipe, chosen["repro"], chosen["shard_size"]),
        model=os.path.abspath(chosen["model"]) if chosen["model"] else "",
        execution=execution_of(tokenizer, chosen["repro"]),
        created_by=str(tokenizer.record()["created_by"]),
        items=items,
    )
    with folder.locked(share.rank, share.world_size):
        manifest = prepare(folder, request, extend=chosen["extend"], overwrite=overwrite)
        numbers = missing_shards(folder, manifest, share)
        log_json = chosen["log_format"] == "json"
        reporter = running.Reporter(len(numbers), log_json)
        reporter.emit("start", {"job": manifest.job(), "images": manifest.images, "shards": len(numbers)})
        workers = default_workers(tokenizer.device.type) if chosen["workers"] is None else chosen["workers"]
        try:
            progress = run(
                folder,
                manifest,
                tokenizer,
                recipe,
                numbers,
                workers=workers,
                timeout=chosen["timeout"],
                memory=chosen["worker_mem"] << 20,
                watch=reporter.watch,
            )
        finally:
            reporter.close()
        mine = share.shards(len(manifest.chunks))
        running.Ending(folder, manifest, progress, mine, chosen["max_failures"], log_json).finish(as_json)


def _device(device: str) -> str:
    """Return the device of this process: under torchrun, each takes its own GPU."""
    local = os.environ.get("LOCAL_RANK", "")
    if device == "auto" and local.isdecimal():
        import torch

        return f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    return device


def listed_files(files_from: str | None, null: bool, columns: Any) -> tuple[Any, ...]:
    """Return the images of ``--files-from``, sorted and without repetition."""
    if files_from is None:
        return ()
    from vqtok.cli.inputs import read_stdin
    from vqtok.dataset.documents import read_file
    from vqtok.dataset.listing import parse_list, unique

    data = read_stdin() if files_from == "-" else read_file(_path(files_from), "a list of images")
    items = parse_list(data.replace(b"\n", b"\0") if not null else data, ".txt", columns, files_from)
    return tuple(unique(sorted(items, key=lambda item: item.key.encode())))


def _path(text: str) -> Any:
    from pathlib import Path

    return Path(text)


def show_plan(inputs: tuple[str, ...], columns: Any, items: Any, shard_size: int, as_json: bool) -> None:
    """Say what a run would do."""
    from vqtok.dataset.listing import list_items

    images = refused = 0
    for item in items or list_items(inputs, columns):
        images, refused = images + 1, refused + bool(item.refused)
    shards = -(-images // shard_size)
    if as_json:
        options.print_json(
            {
                "schema": "vqtok.plan/1",
                "ok": True,
                "exit_code": 0,
                "images": images,
                "shards": shards,
                "refused": refused,
            }
        )
    else:
        print_line = f"{images:,} images in {shards:,} shards of {shard_size:,}"
        options.write_stdout(f"{print_line}{f', {refused:,} cannot be read' if refused else ''}\n".encode())
    sys.stdout.flush()
