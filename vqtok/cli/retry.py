"""``vqtok retry``: do again what is missing, damaged or failed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from vqtok.cli import options, running

if TYPE_CHECKING:
    from vqtok.dataset.documents import Manifest
    from vqtok.dataset.engine import Progress
    from vqtok.dataset.folder import RunFolder


@click.command("retry")
@click.argument("path", metavar="DIR")
@click.option("--only", type=click.Choice(["failed", "missing", "corrupt"]), required=True, help="What to do again.")
@options.model
@options.as_json
@running.execution
def command(path: str, only: str, model: str | None, device: str, precision: str, as_json: bool, **chosen: Any) -> None:
    """Do again the images that failed, the shards that are missing, or those whose files are damaged.

    Shards that are done again hold what a fresh run would give: the same bytes, unless an image was changed.
    """
    from vqtok.dataset.folder import RunFolder

    running.parse_allowed(chosen["max_failures"], 0)
    folder = RunFolder(path)
    manifest = folder.manifest()
    with folder.locked():
        numbers = shards_to_do(folder, manifest, only)
        progress = _again(folder, manifest, only, numbers, (model, device, precision), chosen)
        log_json = chosen["log_format"] == "json"
        mine = range(len(manifest.chunks))
        running.Ending(folder, manifest, progress, mine, chosen["max_failures"], log_json).finish(as_json)


def shards_to_do(folder: RunFolder, manifest: Manifest, only: str) -> list[int]:
    """Return the shards to do again; damaged ones are let go."""
    from vqtok.dataset.repairing import to_retry

    numbers = to_retry(folder, manifest, only)
    if only == "corrupt":
        for number in numbers:
            folder.discard(number)
    return numbers


def _again(
    folder: RunFolder, manifest: Manifest, only: str, numbers: list[int], model: tuple[Any, str, str], chosen: Any
) -> Progress:
    from vqtok.dataset.decoding import default_workers
    from vqtok.dataset.engine import Progress, finish, run
    from vqtok.dataset.pool import Pool
    from vqtok.dataset.repairing import retry_failed

    if not numbers:
        finish(folder, manifest)
        return Progress()
    tokenizer = options.load_model(model[0] or manifest.model or None, model[1], model[2])
    from vqtok.cli.recomputing import recipe_of
    from vqtok.dataset.encoding import encode_shard, level

    recipe = recipe_of(manifest, tokenizer)
    workers = default_workers(tokenizer.device.type) if chosen["workers"] is None else chosen["workers"]
    limits = {"timeout": chosen["timeout"], "memory": chosen["worker_mem"] << 20}
    reporter = running.Reporter(len(numbers), chosen["log_format"] == "json")
    try:
        if only != "failed":
            return run(folder, manifest, tokenizer, recipe, numbers, workers=workers, watch=reporter.watch, **limits)
        progress, settings, start = Progress(), manifest.settings, time.monotonic()
        with Pool(recipe, workers, **limits) as pool, level(settings.repro):
            for number in numbers:
                encode = lambda outcomes: encode_shard(tokenizer, outcomes, settings)  # noqa: E731
                progress.add(retry_failed(folder, manifest, number, pool.decode, encode))
        progress.seconds = time.monotonic() - start
        finish(folder, manifest)
        return progress
    finally:
        reporter.close()
