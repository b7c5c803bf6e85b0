"""``vqtok verify``: is a run (or a token file) whole, and does tokenizing again give the same?"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from vqtok.cli import options
from vqtok.errors import ConfigError, InputError, IntegrityError, ReproducibilityError, VqtokError

if TYPE_CHECKING:
    from vqtok.dataset.checking import Comparison, Report
    from vqtok.dataset.documents import Manifest
    from vqtok.dataset.folder import RunFolder

_SHOWN = 20


@click.command("verify")
@click.argument("path", metavar="DIR|FILE.vqt")
@click.option(
    "--recompute", metavar="N|all", help="Tokenize N images again (of as many shards as can be), and compare."
)
@options.model
@options.as_json
def command(path: str, recompute: str | None, model: str | None, device: str, precision: str, as_json: bool) -> None:
    """Check every checksum of a run, and that each listed image is in it once; exit 6 if not.

    With --recompute also exit 9 when tokens differ: at all where the run was made on a machine like this one; elsewhere
    when they are more than 20 in a million, or were no near ties.
    """
    if not os.path.isdir(path):
        if recompute:
            raise ConfigError("expected a run folder with --recompute, got a file")
        verify_file(path, as_json)
        return
    from vqtok.dataset.checking import check_all
    from vqtok.dataset.folder import RunFolder

    count = parse_count(recompute)
    folder = RunFolder(path)
    manifest = folder.manifest()
    report = check_all(folder, manifest)
    comparison = None
    if count and not report.problems:
        tokenizer = options.load_model(model or manifest.model or None, device, precision)
        from vqtok.cli.recomputing import recompute_run

        comparison = recompute_run(folder, manifest, tokenizer, count)
    finish(folder, manifest, report, comparison, as_json)


def parse_count(text: str | None) -> int:
    """Return how many images are to be tokenized again.

    >>> parse_count(None), parse_count("7"), parse_count("all") > 1 << 60
    (0, 7, True)
    """
    if text is None:
        return 0
    if text == "all":
        return 1 << 62
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"expected --recompute N or all, got {text!r}")
    return int(text)


def verify_file(path: str, as_json: bool) -> None:
    """Check one token file."""
    from vqtok.store import read_token_file

    content = read_token_file(path)
    if as_json:
        counts = {"images": len(content.tokens), "tokens": int(content.tokens.ids.size)}
        options.print_json({"schema": "vqtok.verify/1", "ok": True, "exit_code": 0, **counts, "problems": []})
    else:
        options.say(f"{path}: sound, {len(content.tokens):,} images, {content.tokens.ids.size:,} tokens")


def finish(folder: RunFolder, manifest: Manifest, report: Report, comparison: Comparison | None, as_json: bool) -> None:
    """Print what was found and raise what follows from it."""
    outcome = outcome_of(folder, report, comparison)
    if as_json:
        result: dict[str, Any] = {
            "schema": "vqtok.verify/1",
            "ok": outcome is None,
            "exit_code": outcome.exit_code if outcome else 0,
            "job": manifest.job(),
            "shards": report.shards,
            "images": report.images,
            "ok_images": report.ok,
            "failed_images": report.failed,
            "problems": [problem.record() for problem in report.problems],
        }
        if comparison:
            result["recomputed"] = {
                "images": comparison.images,
                "tokens": comparison.tokens,
                "different": comparison.different,
                "near_ties": comparison.near,
                "ledger": comparison.ledger,
                "lost": comparison.lost[:_SHOWN],
                "same_machine": comparison.same_machine,
            }
        options.print_json(result)
    else:
        for problem in report.problems[:_SHOWN]:
            options.say(f"vqtok: {problem.kind}: {problem.message}")
        if outcome is None:
            again = f", {differences(comparison)}" if comparison else ""
            options.say(
                f"{folder.path}: sound, {report.shards:,} shards, {report.ok:,} images, {report.failed:,} failed{again}"
            )
    if outcome:
        raise outcome


def differences(comparison: Comparison) -> str:
    """Return in words how many tokens differ, and how many of those were near ties."""
    near = f" ({comparison.near} of them near ties)" if comparison.different and comparison.ledger else ""
    return f"{comparison.different} of {comparison.tokens:,} tokens made again differ{near}"


def outcome_of(folder: RunFolder, report: Report, comparison: Comparison | None) -> VqtokError | None:
    """Return the error with which the command ends, if there is one."""
    from vqtok.cli.running import retry_command

    if report.problems:
        kinds = sorted({problem.kind for problem in report.problems if problem.shard >= 0})
        hint = "; ".join(retry_command(folder, kind) for kind in kinds)
        return IntegrityError(
            f"expected {report.shards} sound shards, but {len(report.problems)} problems were found"
            f"{f': {hint}' if hint else ''}"
        )
    if comparison is None or comparison.passed():
        return None
    if not comparison.images:
        return InputError("expected images to tokenize again, but none of them could be read")
    return ReproducibilityError(
        f"expected the tokens of the run, but {differences(comparison)} and {len(comparison.lost)} images have another "
        "size: was an image, the machine or a library changed?"
    )
