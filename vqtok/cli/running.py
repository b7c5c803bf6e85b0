"""What commands that work on run folders share: options, progress, the table at the end."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vqtok.cli import options
from vqtok.errors import ConfigError, TooManyFailures, VqtokError

if TYPE_CHECKING:
    from vqtok.dataset.documents import Manifest
    from vqtok.dataset.engine import Progress, Share
    from vqtok.dataset.folder import RunFolder

F = TypeVar("F", bound=Callable[..., Any])

_SECONDS_A_LINE = 30.0
_SHOWN_FAILURES = 20


def execution(function: F) -> F:
    """Add the options that say how a run is carried out; none of them changes a token."""
    for option in (
        click.option("--max-failures", default="0", metavar="N|P%", help="Failed images that still end in 0."),
        click.option("--log-format", type=click.Choice(["text", "json"]), default="text", help="Events on stderr."),
        click.option("--worker-mem", type=click.IntRange(0), default=0, metavar="MIB", help="Address space a worker."),
        click.option(
            "--timeout", type=click.FloatRange(0.1), default=30.0, show_default=True, help="Seconds an image."
        ),
        click.option("--workers", type=click.IntRange(0, 256), help="Processes that decode; 0: none. [default: auto]"),
    ):
        function = option(function)
    return function


def share_of(rank: int | None, world_size: int | None) -> Share:
    """Return which shards are this process's: as told, or as torchrun or a SLURM array say."""
    from vqtok.dataset.engine import Share

    if (rank is None) != (world_size is None):
        raise ConfigError("expected --rank and --world-size together, got one of them")
    if rank is not None and world_size is not None:
        return Share(rank, world_size)
    env = os.environ
    for first, count, base in (
        ("RANK", "WORLD_SIZE", None),
        ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
        ("SLURM_PROCID", "SLURM_NTASKS", None),
    ):
        if first in env and count in env:
            try:
                share = Share(int(env[first]) - int(env.get(base or "", 0)), int(env[count]))
            except ValueError:
                raise ConfigError(
                    f"expected numbers in {first} and {count}, got {env[first]!r}, {env[count]!r}"
                ) from None
            if share.world_size > 1:
                options.say(f"rank {share.rank} of {share.world_size}, from {first}")
            return share
    return Share()


def parse_allowed(text: str, images: int) -> int:
    """Return how many images may fail.

    >>> parse_allowed("1%", 250), parse_allowed("7", 250)
    (2, 7)
    """
    number = text.removesuffix("%")
    try:
        value = float(number) if text.endswith("%") else int(number)
    except ValueError:
        value = -1
    if not 0 <= value <= (100 if text.endswith("%") else 1 << 62):
        raise ConfigError(f"expected --max-failures N or P%, got {text!r}")
    return int(images * value / 100) if text.endswith("%") else int(value)


@dataclass(slots=True)
class Reporter:
    """Shows how a run goes: a bar on a terminal, a line now and then elsewhere, or events as JSON.

    Attributes:
        shards: number of shards to make.
        as_json: whether stderr gets NDJSON.
    """

    shards: int
    as_json: bool
    _shown: float = field(default_factory=time.monotonic)
    _failures: int = 0
    _bar: Any = None

    def watch(self, event: str, progress: Progress, facts: Mapping[str, object]) -> None:
        """Take an event of `vqtok.dataset.engine.run_shards`."""
        if self.as_json:
            self._event(event, progress, facts)
            return
        if event == "failure":
            self._failures += 1
            if self._failures <= _SHOWN_FAILURES:
                self._say(f"vqtok: {facts['message']}")
            elif self._failures == _SHOWN_FAILURES + 1:
                self._say("vqtok: more failures are in the folder 'failures' of the run only")
        if event == "image" and sys.stderr.isatty():
            self._draw(progress)
        elif (now := time.monotonic()) - self._shown >= _SECONDS_A_LINE:
            self._shown = now
            options.say(self._line(progress))

    def _event(self, event: str, progress: Progress, facts: Mapping[str, object]) -> None:
        now = time.monotonic()
        if event == "image":
            if now - self._shown < _SECONDS_A_LINE:
                return
            event, facts = "progress", {}
        self._shown = now
        counts = {"ok": progress.ok, "failed": progress.failed, "images": progress.images}
        self.emit(event, {**facts, "done": counts, "img_per_s": round(progress.rate(), 2)})

    def emit(self, event: str, facts: Mapping[str, object]) -> None:
        """Write one event, when they are asked for."""
        if self.as_json:
            with suppress(OSError):
                click.echo(json.dumps({"event": event, **facts}), err=True)

    def _line(self, progress: Progress) -> str:
        done = progress.ok + progress.failed
        left = (progress.images - done) / max(progress.rate(), 1e-9)
        eta = time.strftime("%H:%M:%S", time.gmtime(left)) if done and left < 86400 else "more than a day"
        return (
            f"shard {progress.shards}/{self.shards}  img {progress.ok:,} ok {progress.failed:,} failed  "
            f"{progress.rate():.1f} img/s  ETA {eta}"
        )

    def _draw(self, progress: Progress) -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=progress.images, unit="img", leave=False, desc="tokenize")
        self._bar.update(1)
        self._bar.set_postfix_str(f"shard {progress.shards}/{self.shards}, {progress.failed} failed", refresh=False)

    def _say(self, text: str) -> None:
        from tqdm import tqdm

        with suppress(OSError):
            tqdm.write(text, sys.stderr)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended.

    Attributes:
        folder: the run.
        manifest: of the run.
        progress: what this process did.
        mine: the shards of this process, those that were there before included.
        allowed: failures that still end in 0.
        log_json: whether stderr gets NDJSON.
    """

    folder: RunFolder
    manifest: Manifest
    progress: Progress
    mine: range
    allowed: str
    log_json: bool = False

    def finish(self, as_json: bool) -> None:
        """Print the table at the end, and raise if more images failed than were allowed."""
        counts, kinds, rows = self._counts()
        allowed = parse_allowed(self.allowed, counts["seen"])
        outcome: VqtokError | None = None
        if counts["failed"] > allowed:
            outcome = TooManyFailures(
                f"{counts['failed']} of {counts['seen']} images failed, the others are done: "
                f"{retry_command(self.folder, 'failed')}"
            )
        result = {
            "schema": "vqtok.result/1",
            "ok": outcome is None,
            "exit_code": outcome.exit_code if outcome else 0,
            "counts": counts,
            "shards": len(self.mine),
            "rows": rows,
            "seconds": round(self.progress.seconds, 3),
            "img_per_s": round(self.progress.rate(), 2),
            "fingerprints": {"job": self.manifest.job(), "model": self.manifest.settings.model},
            "failures": [{"kind": kind, "count": count} for kind, count in sorted(kinds.items())],
            "outputs": [str(self.folder.path)],
            **({"retry": retry_command(self.folder, "failed")} if kinds else {}),
        }
        if as_json:
            options.print_json(result)
        if self.log_json:
            with suppress(OSError):
                click.echo(json.dumps({"event": "end", **result}), err=True)
        elif not as_json:
            self._table(counts, kinds, rows)
        if outcome:
            raise outcome

    def _counts(self) -> tuple[dict[str, int], dict[str, int], int]:
        kinds: dict[str, int] = {}
        ok = failed = rows = 0
        for number in self.mine:
            record = self.folder.record(self.manifest, number)
            if record is not None:
                ok, failed, rows = ok + record.ok, failed + record.failed, rows + record.rows
                for kind, count in record.failures.items():
                    kinds[kind] = kinds.get(kind, 0) + count
        made = self.progress.ok + self.progress.failed
        counts = {"seen": ok + failed, "ok": ok, "failed": failed, "resumed": ok + failed - made}
        return counts, kinds, rows

    def _table(self, counts: dict[str, int], kinds: dict[str, int], rows: int) -> None:
        again = f", {counts['resumed']:,} of them before" if counts["resumed"] > 0 else ""
        rate = f"{self.progress.rate():.1f} images/s" if self.progress.seconds else "nothing was left to do"
        options.say(
            f"{self.folder.path}: {counts['ok']:,} images in {len(self.mine):,} shards{again}, "
            f"{counts['failed']:,} failed, {rows:,} rows, {rate}"
        )
        for kind, count in sorted(kinds.items(), key=lambda row: -row[1])[:_SHOWN_FAILURES]:
            options.say(f"  {kind:16s} {count:,}")


def retry_command(folder: RunFolder, only: str) -> str:
    """Return the command that does again what failed.

    >>> from vqtok.dataset.folder import RunFolder
    >>> retry_command(RunFolder("my run"), "failed")
    "vqtok retry 'my run' --only failed"
    """
    return f"vqtok retry {shlex.quote(str(folder.path))} --only {only}"
