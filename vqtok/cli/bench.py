"""``vqtok bench``: how fast, beside whom, and whether all give the same answer."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from vqtok.cli import options
from vqtok.errors import ConfigError, ReproducibilityError, ResourceError


@click.command("bench")
@click.argument("cases", nargs=-1, metavar="[CASE]...")
@click.option("--quick", is_flag=True, help="Three rounds of small shapes: does everything run?")
@click.option("--shape", "shapes", multiple=True, metavar="N,K,D", help="Instead of a case's own; may be repeated.")
@click.option("--rounds", type=click.IntRange(min=1), help="[default: what fits, at least 7]")
@click.option("--threads", type=click.IntRange(min=1), help="For every contender.  [default: torch's number]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--contender", "contenders", multiple=True, metavar="NAME", help="Only this one; may be repeated.")
@click.option("--json", "json_file", metavar="FILE|-", help="Write all rounds of all contenders; '-' for stdout.")
@click.option("--plot", metavar="FILE.png", help="Draw the result (needs matplotlib).")
@click.option("--list", "wants_list", is_flag=True, help="List cases, shapes and contenders, and stop.")
@options.overwrite
def command(
    cases: tuple[str, ...],
    quick: bool,
    shapes: tuple[str, ...],
    rounds: int | None,
    threads: int | None,
    device: str,
    contenders: tuple[str, ...],
    json_file: str | None,
    plot: str | None,
    wants_list: bool,
    overwrite: bool,
) -> None:
    """Time vqtok beside other libraries, after checking that they give the same answers.

    Libraries that are not installed are listed with the way to get them: pip install 'vqtok[bench]'.
    """
    sizes = tuple(map(parse_shape, shapes))
    check_outputs(json_file, plot, overwrite)
    suite = _suite()
    if wants_list:
        options.write_stdout(f"{suite.listing(device)}\n".encode())
        return
    request = suite.Request(cases, sizes, contenders, quick, rounds or 0, threads or 0, device)
    with stdout_kept_clean():
        report = suite.run(request, options.say)
    write(report, json_file, plot, overwrite)
    if bugs := report.bugs():
        raise ReproducibilityError("; ".join(bugs))


def parse_shape(text: str) -> tuple[int, int, int]:
    """Return the three numbers of a shape.

    >>> parse_shape("4096,1024,8")
    (4096, 1024, 8)
    """
    numbers = [int(part) for part in text.split(",") if part.isascii() and part.isdigit()]
    if len(numbers) != 3 or text.count(",") != 2 or not all(numbers):
        raise ConfigError(f"expected --shape with three whole numbers above 0, as 4096,1024,8, got {text!r}")
    return numbers[0], numbers[1], numbers[2]


def check_outputs(json_file: str | None, plot: str | None, overwrite: bool) -> None:
    """Refuse what cannot be written before minutes are spent on it."""
    if json_file and json_file != "-":
        options.check_file(Path(json_file), overwrite)
    if plot:
        if Path(plot).suffix.lower() != ".png":
            raise ConfigError(f"expected --plot FILE.png, got {plot!r}")
        options.check_file(Path(plot), overwrite)
        from importlib.util import find_spec

        if find_spec("matplotlib") is None:
            raise ResourceError("expected matplotlib for --plot, found none: pip install 'vqtok[bench]'")


@contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """Lead what libraries and their compilers print to stderr: stdout is for the result alone."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def write(report: Any, json_file: str | None, plot: str | None, overwrite: bool) -> None:
    """Print the table and write the files; with JSON on stdout the table goes to stderr."""
    from vqtok.store.commit import commit

    if plot:
        commit(plot, import_module("vqtok.benchmarks.plot").picture(report), overwrite=overwrite)
    if json_file == "-":
        for line in report.table().splitlines():
            options.say(line)
        options.write_stdout(report.to_json().encode())
        return
    if json_file:
        commit(json_file, report.to_json().encode(), overwrite=overwrite)
    options.write_stdout(f"{report.table()}\n".encode())


def _suite() -> Any:
    """Import the suite, by name: it lies beside vqtok in a checkout, and inside it only where it is installed."""
    try:
        suite = import_module("vqtok.benchmarks.suite")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("vqtok.benchmarks"):
            raise
        raise ResourceError(
            "expected the benchmarks to be installed with vqtok: reinstall it (pip install .)"
        ) from None
    gc.freeze()  # as in `options.load_model`: the imports stay, but what contenders leave behind must go
    gc.enable()
    return suite
