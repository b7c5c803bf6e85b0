"""The command ``vqtok``: one file a subcommand; each is imported when it is run, so ``--help`` needs no torch."""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from types import FrameType

import click

from vqtok.errors import VqtokError, escape, out_of_memory

# Name, and what it does: the help of the group must not import the subcommands.
COMMANDS = {
    "tokenize": "Turn images into tokens: one file, or a run folder of shards that can be resumed.",
    "detokenize": "Turn tokens back into images.",
    "reconstruct": "Show what the tokens keep of an image: a side-by-side picture with the numbers under it.",
    "status": "Say how far a run is, what failed, and what to do next.",
    "verify": "Check that a run or a token file is whole; tokenize again and compare.",
    "retry": "Do again what is missing, damaged or failed in a run.",
    "merge": "Put runs into one folder; make an index anew.",
    "convert": "Turn a run or a token file into other formats, or back; `convert model`: the same for models.",
    "inspect": "Say what is in a token file or a model folder; draw the tokens.",
    "train": "Train a tokenizer as a recipe says; stop and start it as you like.",
    "eval": "Measure what tokens keep of many images: PSNR, SSIM, ST-LPIPS, KID, codes used; a page to look at.",
    "doctor": "Check this installation; with a run folder: how its training goes, and what helps.",
    "bench": "Time vqtok beside other libraries, after checking that they give the same answers.",
}


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a subcommand; None when there is none of that name."""
        return import_module(f"vqtok.cli.{cmd_name}").command if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([*COMMANDS.items()])


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"vqtok {version('vqtok')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Print the version."
)
def group() -> None:  # a raw docstring would show click's mark, as it stands
    """Images to discrete tokens and back.

    \b
    vqtok tokenize photo.jpg -o photo.vqt
    vqtok detokenize photo.vqt -o photo.png
    vqtok reconstruct photo.jpg -o both.png

    Exit codes: 0 done, 1 bug, 2 usage, 3 some inputs failed, 4 input missing or unreadable, 5 output not writable or
    exists, 6 damaged file, 7 mismatch, 8 resources, 9 not reproducible, 130 and 143 interrupted.
    """  # noqa: D301


def main() -> None:
    """Run the command and end the process with its documented exit code."""
    _open_closed_streams()
    signal.signal(signal.SIGTERM, _terminate)
    gc.disable()  # half a million objects of imports hold no garbage; `options.load_model` switches it on again
    try:
        status = group(standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except VqtokError as error:
        status = fail(str(error), error.exit_code)
    except SystemExit as ending:
        # 1 is click's own, for a reader of its help that has gone away; ours come from `_terminate`.
        status = 141 if ending.code == 1 else ending.code
    except (click.Abort, KeyboardInterrupt):
        fail("interrupted; nothing was left half done, run it again to go on", 130)
        os._exit(130)  # Python would end by the signal if it came while a library ran code of its own
    except Exception as error:
        status = _unexpected(error)
    sys.exit(status or 0)


def fail(message: str, exit_code: int) -> int:
    """Print one line on stderr, whatever names it holds, and return the exit code."""
    with suppress(OSError):
        click.echo(f"vqtok: {escape(message, 4000)}", err=True)
    return exit_code


def _open_closed_streams() -> None:
    """Give a closed stdin or stdout a descriptor that refuses, so that no output file takes its number."""
    for name, access in (("stdin", os.O_WRONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, access)  # the lowest free number: the closed one's own
            setattr(sys, name, open(descriptor, "r" if name == "stdin" else "w", closefd=False))


def _unexpected(error: Exception) -> int:
    """Tell a machine without memory and a stdout that refuses from a bug; return the exit code."""
    if out_of_memory(error):
        return fail("out of memory: use smaller images or a machine with more memory", 8)
    if isinstance(error, OSError) and error.filename is None:  # --help and --version print for themselves
        from vqtok.cli.options import stdout_error

        ending = stdout_error(error)
        return ending.exit_code if isinstance(ending, click.exceptions.Exit) else fail(str(ending), 5)
    import traceback

    traceback.print_exc()
    return fail("this is a bug in vqtok: please report it with the lines above", 1)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)
