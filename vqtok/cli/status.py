"""``vqtok status``: how far is a run? Needs no torch."""

from __future__ import annotations

from typing import Any

import click

from vqtok.cli import options


@click.command("status")
@click.argument("path", metavar="DIR")
@options.as_json
def command(path: str, as_json: bool) -> None:
    """Say how far a run is, what failed, and what to do next. Checks no data: that is what verify is for."""
    from vqtok.dataset.folder import RunFolder

    report = run_report(RunFolder(path))
    if as_json:
        options.print_json(report)
        return
    counts = report["counts"]
    lines = [
        f"{report['path']}: {report['shards']['done']:,} of {report['shards']['all']:,} shards, "
        f"{counts['ok']:,} images ok, {counts['failed']:,} failed, {counts['left']:,} left"
    ]
    lines += [f"  {row['kind']:16s} {row['count']:,}" for row in report["failures"]]
    lines += [f"  damaged records: {', '.join(map(str, report['damaged'][:20]))}"] if report["damaged"] else []
    lines += [f"next: {step}" for step in report["next"]] or ["complete"]
    options.write_stdout(("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))


def run_report(folder: Any) -> dict[str, Any]:
    """Return counts of a run from its records alone."""
    from vqtok.cli.running import retry_command
    from vqtok.errors import IntegrityError

    manifest = folder.manifest()
    done = ok = failed = 0
    kinds: dict[str, int] = {}
    damaged: list[int] = []
    for number in range(len(manifest.chunks)):
        try:
            record = folder.record(manifest, number)
        except IntegrityError:
            damaged.append(number)
            continue
        if record:
            done, ok, failed = done + 1, ok + record.ok, failed + record.failed
            for kind, count in record.failures.items():
                kinds[kind] = kinds.get(kind, 0) + count
    missing = len(manifest.chunks) - done - len(damaged)
    wanted = {"missing": missing, "corrupt": len(damaged), "failed": failed}
    return {
        "schema": "vqtok.status/1",
        "path": str(folder.path),
        "job": manifest.job(),
        "settings": manifest.settings.model_dump(mode="json"),
        "shards": {"all": len(manifest.chunks), "done": done},
        "counts": {"images": manifest.images, "ok": ok, "failed": failed, "left": manifest.images - ok - failed},
        "failures": [{"kind": kind, "count": count} for kind, count in sorted(kinds.items(), key=lambda x: -x[1])],
        "damaged": damaged,
        "next": [retry_command(folder, only) for only, count in wanted.items() if count],
    }
