"""Options that several commands share."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vqtok.errors import ConfigError, OutputError, escape

if TYPE_CHECKING:
    from vqtok.image_tokenizer import ImageTokenizer

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_SECONDS_A_LINE = 30.0

overwrite = click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")


def model(function: F) -> F:
    """Add the options that choose a model and where it runs."""
    for option in (
        click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ..."),
        click.option("-m", "--model", metavar="DIR", help="Model folder.  [default: the embedded photo-f8]"),
    ):
        function = option(function)
    return function


def load_model(model: str | None, device: str, precision: str) -> ImageTokenizer:
    """Load the model that the options name."""
    import torch

    from vqtok.loading import load

    # What was imported stays for ever: out of the collector's sight it costs nothing, at exit least of all.
    gc.freeze()
    gc.enable()
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return load(model, device=chosen, precision=precision)  # pyright: ignore[reportArgumentType]


def check_file(path: Path, overwrite: bool) -> None:
    """Refuse a file that cannot be written before any work is done; sweep what a killed command left beside it.

    Raises:
        OutputError: it exists already, its folder does not, or the file system refuses the name.
    """
    from vqtok.store import remove_stale_temporaries
    from vqtok.store.commit import output_errors

    with output_errors(path):
        os.stat(path.absolute().parent)
    check_free(path, overwrite)
    remove_stale_temporaries(path.absolute().parent)


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse a name that is taken, or that no file can have; its folder need not exist yet."""
    from vqtok.store.commit import output_errors

    with output_errors(path), suppress(FileNotFoundError):
        os.lstat(path)
        if not overwrite:
            raise OutputError(f"{str(path)!r}: it exists already: choose another name, or use --overwrite")


def say(text: str) -> None:
    """Print one line on stderr; that nobody can read it is no reason to fail."""
    with suppress(OSError):
        click.echo(escape(text, 4000), err=True)


def progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yield items with a bar on a terminal, and a line on stderr every half minute elsewhere."""
    if sys.stderr.isatty() and total > 1:
        from tqdm import tqdm

        yield from tqdm(items, what, total, unit="img", leave=False)
        return
    started = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - shown >= _SECONDS_A_LINE:
            shown, rate = now, done / (now - started)
            say(f"{what}: {done} of {total}, {rate:.1f} img/s, {(total - done) / rate:.0f} s left")


def print_json(result: Mapping[str, object]) -> None:
    """Print one JSON object on stdout."""
    write_stdout(f"{json.dumps(result, ensure_ascii=False)}\n".encode("utf-8", "backslashreplace"))


def write_stdout(data: bytes) -> None:
    """Write to stdout; when its reader has gone away, as ``| head`` does, end quietly with 141."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    except OSError as error:
        raise stdout_error(error) from None


def stdout_error(error: OSError) -> Exception:
    """Return what a failed write to stdout ends with: a reader that has gone away is none of our business."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # no second error when Python exits
    if isinstance(error, BrokenPipeError):
        return click.exceptions.Exit(141)
    return OutputError(f"cannot write to stdout: {error.strerror}: check where it leads")


def write_binary(data: bytes) -> None:
    """Write to stdout what only programs can read."""
    if sys.stdout.isatty():
        raise ConfigError("expected '-o -' with stdout in a pipe or a file, got a terminal: use -o FILE")
    write_stdout(data)
