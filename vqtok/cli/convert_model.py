"""``vqtok convert model``: a model to a model folder, to a publisher's layout, to ONNX."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vqtok.cli import options
from vqtok.errors import ConfigError, InputError

if TYPE_CHECKING:
    from vqtok.image_tokenizer import ImageTokenizer


@click.command("model")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("--to", metavar="FAMILY|onnx", help="Whose layout.  [default: a model folder of vqtok]")
@click.option("--family", metavar="FAMILY", help="Whose checkpoint SRC is, where its names cannot tell.")
@click.option("--config", metavar="FILE", help="SRC's yaml or json, for what shapes cannot tell.")
@click.option("--to-config", metavar="FILE", help="The same for DST, as its publisher would have it.")
@options.overwrite
@options.as_json
def command(
    source: str,
    target: str,
    to: str | None,
    family: str | None,
    config: str | None,
    to_config: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Turn a model folder or a published checkpoint into a model folder, or into a publisher's layout.

    vqtok convert model theirs.ckpt model/; vqtok convert model model/ ours.ckpt --to taming_vqgan

    DST's ending chooses the container: .safetensors, or .ckpt .pt .pth .bin for torch's zip. What is written is read
    back and gives the same numbers, bit for bit. ONNX gives a folder of two graphs, encode.onnx and decode.onnx.
    """
    from vqtok.loading import load

    if not os.path.lexists(source):
        raise InputError(f"{source!r}: expected a model folder or a checkpoint, found nothing of that name")
    check_target(Path(target), to, overwrite)
    tokenizer = load(source, family=family, config=config)
    write(tokenizer, Path(target), to, to_config, overwrite)
    kind = "a model folder" if to is None else to
    if as_json:
        result = {"kind": to or "model folder", "fingerprint": tokenizer.fingerprint, "outputs": [target]}
        options.print_json({"schema": "vqtok.result/1", "ok": True, "exit_code": 0, **result})
    else:
        options.say(f"{target}: {kind}, {sum(x.numel() for x in tokenizer.inference_tensors().values()):,} weights")


def check_target(target: Path, to: str | None, overwrite: bool) -> None:
    """Refuse what cannot be written, before a model is read."""
    from vqtok.adapters import find_family
    from vqtok.adapters.files import SUFFIXES

    if to is None and target.suffix in SUFFIXES:
        raise ConfigError(f"expected --to FAMILY with a checkpoint as DST, or a model folder, got {str(target)!r}")
    if to not in (None, "onnx") and not find_family(str(to)).parts:
        options.check_file(target, overwrite)


def write(tokenizer: ImageTokenizer, target: Path, to: str | None, config: str | None, overwrite: bool) -> None:
    """Write a model in the layout that was asked for."""
    if to is None:
        tokenizer.save(target, overwrite=overwrite)
    elif to == "onnx":
        from vqtok.onnx import export_onnx

        export_onnx(tokenizer, target, overwrite=overwrite)
    else:
        from vqtok.exporting import export

        export(tokenizer, target, to, config=config, overwrite=overwrite)
