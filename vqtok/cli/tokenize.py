"""``vqtok tokenize``: images to tokens."""

from __future__ import annotations

import click

from vqtok.cli import options
from vqtok.cli.inputs import expand


@click.command("tokenize")
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("-o", "--output", required=True, metavar="FILE.vqt", help="Token file to write; '-' for stdout.")
@options.model
@options.overwrite
@options.as_json
def command(
    inputs: tuple[str, ...], output: str, model: str | None, device: str, precision: str, overwrite: bool, as_json: bool
) -> None:
    """Turn images into one token file.

    INPUT is an image (JPEG, PNG, WebP, BMP, GIF), a folder, a quoted pattern, or '-' for an image on stdin.
    """
    listed = expand(inputs)
    check_output(output, overwrite, as_json)

    from vqtok import store, streaming
    from vqtok.cli.reading import Reader

    tokenizer = options.load_model(model, device, precision)
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
        raise ConfigError(f"expected -o FILE.vqt or '-o -', got {output!r}")
    options.check_file(Path(output), overwrite)
