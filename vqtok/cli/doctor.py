"""``vqtok doctor``: is this installation sound? And a training: does it go well?"""

from __future__ import annotations

from pathlib import Path

import click

from vqtok.cli import options
from vqtok.errors import ConfigError, ReproducibilityError, escape


@click.command("doctor")
@click.argument("run", required=False, metavar="[RUN]")
@click.option("--picture", metavar="IMAGE", help="Draw the curves of RUN, with its alarms.")
@options.overwrite
@options.as_json
def command(run: str | None, picture: str | None, overwrite: bool, as_json: bool) -> None:
    """Check this installation; or, given the folder of a training, say how it goes and what helps.

    Without RUN: print versions, devices, and why each backend runs or not; then test that the parts agree. With RUN,
    the exit code is 0 whatever goes wrong there: scripts read "ok" and "alarms" of --json.
    """
    if run is not None:
        examine_run(Path(run), picture, overwrite, as_json)
    elif picture is not None:
        raise ConfigError(
            "expected the folder of a training with --picture, got none: vqtok doctor RUN --picture IMAGE"
        )
    else:
        examine_installation(as_json)


def examine_installation(as_json: bool) -> None:
    """Print what this installation is and raise if a part of it does not work."""
    from vqtok.evaluation.doctor import examine

    report = examine()
    if as_json:
        options.print_json(report)
    else:
        lines = ["\n  ".join([name, *report[name]]) for name in ("versions", "devices", "backends", "self-test")]
        options.write_stdout(("\n".join(lines) + "\n").encode())
    if report["failed"]:
        raise ReproducibilityError(f"the self-test failed: {', '.join(report['failed'])}")


def examine_run(run: Path, picture: str | None, overwrite: bool, as_json: bool) -> None:
    """Print how a training goes; draw its curves when asked to."""
    from vqtok.cli.inspect import check_target
    from vqtok.training.diagnosis import diagnose, read_rows, render

    target = check_target(picture, overwrite)
    report = diagnose(run)
    if target:
        from vqtok.cli.detokenize import write_image
        from vqtok.training.curves import curves_picture

        write_image(curves_picture(read_rows(run), str(run)), target, overwrite)
    if as_json:
        options.print_json(report)
    else:
        lines = [escape(line, 4000) for line in render(report)]
        options.write_stdout(("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))
