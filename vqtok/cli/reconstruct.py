"""``vqtok reconstruct``: what the tokens keep of an image, as a picture with the numbers under it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vqtok.cli import options
from vqtok.cli.inputs import expand

if TYPE_CHECKING:
    from vqtok.image_tokenizer import ImageTokenizer
    from vqtok.images import RGB

Numbers = dict[str, Any]


@click.command("reconstruct")
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option(
    "-o", "--output", required=True, metavar="IMAGE|DIR", help="Picture to write, folder for several, '-' for stdout."
)
@click.option("--only", is_flag=True, help="Write the reconstruction alone, without the original and the numbers.")
@options.model
@options.overwrite
@options.as_json
def command(
    inputs: tuple[str, ...],
    output: str,
    only: bool,
    model: str | None,
    device: str,
    precision: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write each image beside what comes back from its tokens, with size, bits and PSNR."""
    listed = expand(inputs)

    from vqtok.cli.detokenize import plan_files, write_image
    from vqtok.cli.reading import Reader
    from vqtok.streaming import blames_image, unique_keys

    keys = unique_keys(item.key for item in listed)
    targets = dict(zip(keys, plan_files(keys, output, overwrite, as_json), strict=True))
    tokenizer = options.load_model(model, device, precision)
    reader = Reader(tokenizer.spec)
    results = []
    arrays = reader.read(list(zip(keys, listed, strict=True)))
    for key, array in options.progress(arrays, len(listed), "reconstruct"):
        try:
            back, numbers = measure(tokenizer, array)
        except Exception as error:
            if not blames_image(error):
                raise
            reader.refuse(key, error)
            continue
        write_image(back if only else picture(key, array, back, numbers), targets[key], overwrite)
        results.append({"key": key, "output": str(targets[key]), **numbers})
        if not as_json:
            options.say(f"{targets[key] or key}: {describe(numbers)}")
    if as_json:
        options.print_json(reader.summary() | {"images": results})
    if outcome := reader.outcome():
        raise outcome


def measure(tokenizer: ImageTokenizer, array: RGB) -> tuple[RGB, Numbers]:
    """Return the reconstruction of uint8 [H, W, 3], and its numbers."""
    from vqtok import streaming
    from vqtok.evaluation.metrics import bits_per_pixel, psnr

    tokens = tokenizer.tokenize(array)
    back = next(streaming.detokenize(tokenizer, tokens))
    found = psnr(array, back)
    numbers = {
        "width": array.shape[1],
        "height": array.shape[0],
        "tokens": tokens.ids.size,
        "bits_per_pixel": round(bits_per_pixel(tokens), 4),
        "bytes": math.ceil(tokens.ids.size * math.log2(tokens.vocab_size) / 8),
        "psnr": round(found, 3) if math.isfinite(found) else None,
    }
    return back, numbers


def describe(numbers: Numbers) -> str:
    """Return the numbers as one line."""
    lost = "nothing lost" if numbers["psnr"] is None else f"PSNR {numbers['psnr']:.2f} dB"
    return (
        f"{numbers['width']} x {numbers['height']} pixels, {numbers['tokens']} tokens, {numbers['bytes']} bytes, "
        f"{numbers['bits_per_pixel']:.3f} bits a pixel, {lost}"
    )


def picture(key: str, array: RGB, back: RGB, numbers: Numbers) -> RGB:
    """Return original and reconstruction side by side, the numbers under them."""
    import numpy as np

    from vqtok.evaluation.pictures import side_by_side

    panels = [(Path(key).name, array), ("from tokens", back)]
    return np.asarray(side_by_side(panels, [describe(numbers)]))
