"""``vqtok doctor``: is this installation sound?"""

from __future__ import annotations

import click

from vqtok.cli import options
from vqtok.errors import ReproducibilityError


@click.command("doctor")
@options.as_json
def command(as_json: bool) -> None:
    """Print versions, devices, and why each backend runs or not; then test that the parts agree."""
    from vqtok.evaluation.doctor import examine

    report = examine()
    if as_json:
        options.print_json(report)
    else:
        lines = ["\n  ".join([name, *report[name]]) for name in ("versions", "devices", "backends", "self-test")]
        options.write_stdout(("\n".join(lines) + "\n").encode())
    if report["failed"]:
        raise ReproducibilityError(f"the self-test failed: {', '.join(report['failed'])}")
