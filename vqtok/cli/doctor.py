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
        for name in ("versions", "devices", "backends", "self-test"):
            click.echo("\n  ".join([name, *report[name]]))
    if report["failed"]:
        raise ReproducibilityError(f"the self-test failed: {', '.join(report['failed'])}")
