"""``vqtok merge``: several run folders into one, or the index of one made anew. Needs no torch."""

from __future__ import annotations

import os

import click

from vqtok.cli import options
from vqtok.errors import ConfigError, TooManyFailures


@click.command("merge")
@click.argument("paths", nargs=-1, metavar="DIR...")
@click.option("-o", "--output", metavar="DIR/", help="Folder of the merged run.")
@options.as_json
def command(paths: tuple[str, ...], output: str | None, as_json: bool) -> None:
    """Put runs of equal settings into one folder; with one run and no -o, write its index anew.

    Parts of one job, made by ranks in folders of their own, become that job's run; runs over different images come one
    after the other. Shards are copied, never computed.
    """
    from vqtok.dataset.folder import RunFolder
    from vqtok.dataset.repairing import merge_runs

    if not paths or (len(paths) > 1) != (output is not None):
        raise ConfigError("expected one run, or several with -o DIR/")
    folder = RunFolder(os.path.normpath(output or paths[0]))
    runs = [RunFolder(path) for path in paths]
    for run in runs:
        run.manifest()
    with folder.locked():
        manifest = merge_runs(runs, folder) if output else folder.manifest()
        index = folder.commit_index(manifest)
    if index is None:
        left = sum(not folder.exists(manifest, number) for number in range(len(manifest.chunks)))
        raise TooManyFailures(
            f"expected {len(manifest.chunks)} shards, but {left} are missing: vqtok status says which"
        )
    if as_json:
        counts = {"seen": index.images, "ok": index.ok, "failed": index.failed}
        outputs = [str(folder.path)]
        options.print_json(
            {"schema": "vqtok.result/1", "ok": True, "exit_code": 0, "counts": counts, "outputs": outputs}
        )
    else:
        options.say(f"{folder.path}: {len(index.shards):,} shards, {index.ok:,} images, {index.failed:,} failed")
