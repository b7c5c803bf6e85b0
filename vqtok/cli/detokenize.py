"""``vqtok detokenize``: tokens back to images."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

import click

from vqtok.cli import options
from vqtok.cli.inputs import read_stdin
from vqtok.errors import ConfigError, OutputError

FORMATS = {".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".jpg": "JPEG", ".jpeg": "JPEG"}
_NEVER_FOLDERS = {".gif", ".tif", ".tiff", ".avif", ".heic", ".jxl", ".vqt"}  # meant as a file, and none that we write
_WINDOWS_NAMES = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}


@click.command("detokenize")
@click.argument("input", metavar="FILE.vqt")
@click.option(
    "-o", "--output", required=True, metavar="IMAGE|DIR", help="Image to write, folder for several, '-' for stdout."
)
@options.model
@options.overwrite
@options.as_json
def command(
    input: str, output: str, model: str | None, device: str, precision: str, overwrite: bool, as_json: bool
) -> None:
    """Turn a token file ('-' for stdin) back into images of their true sizes."""
    from vqtok import store

    tokens = store.tokens_from_bytes(read_stdin()) if input == "-" else store.load_tokens(input)
    targets = plan_files(tokens.keys, output, overwrite, as_json)
    tokenizer = options.load_model(model, device, precision)
    from vqtok import streaming  # after the checks that need no torch

    arrays = options.progress(streaming.detokenize(tokenizer, tokens), len(tokens), "detokenize")
    for array, target in zip(arrays, targets, strict=True):
        write_image(array, target, overwrite)
    if as_json:
        outputs = [str(target) for target in targets]
        options.print_json({"schema": "vqtok.result/1", "ok": True, "exit_code": 0, "outputs": outputs})
    elif output != "-":
        options.say(f"{output}: {len(tokens)} image{'s' if len(tokens) != 1 else ''}")


def plan_files(keys: Sequence[str], output: str, overwrite: bool, as_json: bool) -> list[Path | None]:
    """Return the image file for each key: the output itself, or a name in it when it is a folder; None for stdout.

    Raises:
        ConfigError: several images for one file or for stdout, or a name that is no image's.
        OutputError: a file exists or cannot be made.
    """
    if output == "-":
        if len(keys) != 1 or as_json:
            raise ConfigError(f"expected one image and no --json with '-o -', got {len(keys)} images")
        return [None]
    suffix = Path(output).suffix.lower()
    if suffix in _NEVER_FOLDERS:
        raise ConfigError(f"expected -o FOLDER or a file ending in {' '.join(FORMATS)}, got {output!r}")
    if suffix in FORMATS:
        if len(keys) != 1:
            raise ConfigError(f"expected one image for -o {output!r}, got {len(keys)}: use -o FOLDER")
        options.check_file(Path(output), overwrite)
        return [Path(output)]
    targets = [Path(output, name) for name in file_names(keys)]
    for target in targets:
        options.check_free(target, overwrite)
    return [*targets]


def file_names(keys: Iterable[str]) -> list[str]:
    """Return a safe and distinct relative path for each key, ending in ``.png``.

    Leading slashes and ``..`` are dropped, other parts percent-encoded: none can leave the folder, clash by case alone,
    or be a name that Windows reserves.

    >>> file_names(["a/b.jpg", "../../etc/passwd", "A/B.jpg"])
    ['a/b.png', 'etc/passwd.png', 'A/B-2.png']
    """
    seen: set[str] = set()
    names = []
    for key in keys:
        *folders, last = [_safe(part) for part in key.split("/") if part not in ("", ".", "..")] or ["image"]
        # No folder ends like a file, so none can be the file of another key.
        folders = [f"{folder}_" if folder.casefold().endswith(".png") else folder for folder in folders]
        stem = _short("/".join([*folders, os.path.splitext(last)[0]]), 1000)
        name, n = f"{stem}.png", 1
        while name.casefold() in seen:
            n += 1
            name = f"{stem}-{n}.png"
        seen.add(name.casefold())
        names.append(name)
    return names


def _safe(part: str) -> str:
    encoded = quote(part, safe=" ()[]{}+,=@~!$&'")
    if set(encoded) == {"."}:
        return encoded.replace(".", "%2E")
    if encoded.split(".")[0].casefold() in _WINDOWS_NAMES:
        encoded = f"_{encoded}"
    return _short(encoded, 200)


def _short(name: str, limit: int) -> str:
    """Return a name that file systems take: a long one keeps its beginning and is told apart by a checksum."""
    return name if len(name) <= limit else f"{name[: limit - 20]}-{zlib.crc32(name.encode()):08x}"


def write_image(array: object, target: Path | None, overwrite: bool) -> None:
    """Encode uint8 [H, W, 3] in the format of the target's suffix and commit it, or write PNG to stdout for None."""
    from PIL import Image

    from vqtok.store.commit import commit, output_errors

    buffer = io.BytesIO()
    image = Image.fromarray(array)  # pyright: ignore[reportArgumentType]
    format = FORMATS[target.suffix.lower()] if target else "PNG"
    try:
        image.save(buffer, format, lossless=True, quality=95)
    except (OSError, ValueError) as error:  # JPEG and WebP have limits of their own
        size = f"{image.height} x {image.width}"
        raise OutputError(f"{str(target)!r}: {size} pixels cannot be {format} ({error}): use .png") from None
    if target is None:
        options.write_binary(buffer.getvalue())
        return
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    commit(target, buffer.getvalue(), overwrite=overwrite)
