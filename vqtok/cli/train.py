"""``vqtok train``: a recipe to a run folder with a tokenizer in it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from vqtok.cli import options

if TYPE_CHECKING:
    from vqtok.training.processes import Strategy
    from vqtok.training.recipe import Recipe


@click.command("train")
@click.argument("recipe", metavar="RECIPE")
@click.option("-o", "--output", required=True, metavar="RUN/", help="Run folder; one of the same recipe is continued.")
@click.option("--set", "changes", multiple=True, metavar="KEY.KEY=VALUE", help="Change the recipe; may be repeated.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--strategy", type=click.Choice(["ddp", "fsdp"]), default="ddp", show_default=True, help="Under torchrun."
)
@click.option("--overwrite", is_flag=True, help="Forget the run that is there and begin again.")
@click.option("--resume", is_flag=True, help="Go on with the run that is there, and refuse to begin one.")
@click.option("--dry-run", is_flag=True, help="Check recipe and images, say what would be trained, and write nothing.")
@options.as_json
def command(
    recipe: str,
    output: str,
    changes: tuple[str, ...],
    device: str,
    strategy: Strategy,
    overwrite: bool,
    resume: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a tokenizer as RECIPE says, and put it into RUN/model with its log, pictures and checkpoints beside it.

    RECIPE is a TOML file, or the name of one that comes with vqtok, such as vqgan-tiny.

    Killed at any moment, it goes on from the last checkpoint when it is run again, to the same weights. With torchrun
    it uses several devices: torchrun --nproc-per-node 2 -m vqtok train RECIPE -o RUN/
    """
    # Torch's own log has warnings for whoever writes training loops; it is read when torch is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from vqtok.errors import ConfigError
    from vqtok.training.folder import RunFolder
    from vqtok.training.recipe import read_recipe

    if overwrite and resume:
        raise ConfigError("expected one of --overwrite and --resume, got both")
    chosen, folder = read_recipe(recipe, changes), RunFolder(output)
    if resume:
        folder.check_begun()
    if dry_run:
        folder.check(chosen, overwrite=overwrite)
        options.print_json(_plan(chosen, device))
        return

    from vqtok.training.loop import train

    model = train(chosen, output, device=device, strategy=strategy, overwrite=overwrite)
    if os.environ.get("RANK", "0") != "0":
        return  # the first process speaks for all
    if as_json:
        options.print_json({"run": os.fspath(output), "model": os.fspath(model), "steps": chosen.steps})
    else:
        options.say(f"{os.fspath(model)}: trained for {chosen.steps:,} steps")


def _plan(recipe: Recipe, device: str) -> dict[str, object]:
    """Return what would be trained, on what."""
    from vqtok.training.loop import launch, prepare

    data, state = prepare(recipe, launch(recipe, device))
    return {
        "recipe": recipe.model_dump(mode="json"),
        "steps": recipe.steps,
        "parameters": sum(x.numel() for x in state.tokenizer.parameters()),
        "images": data.count,
        "validation_images": len(data.validation),
    }
