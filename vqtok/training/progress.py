"""What a person sees while a training runs: one line that lives on a terminal, and one now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

from vqtok.errors import escape
from vqtok.training.history import Row, numbers

_SECONDS_A_LINE = 30.0  # as every command of vqtok has it
_MARKS = 10  # lines over which the speed is measured: stages differ


class Progress:
    r"""Shows how far a training is, on stderr.

    Args:
        total: steps of the training.
        first: steps that were done before.
        stream: where to; the standard error stream by default.
        clock: seconds that only grow.

    >>> import io
    >>> times, stream = iter([0.0, 10.0, 40.0, 40.0]), io.StringIO()
    >>> progress = Progress(1000, 100, stream=stream, clock=lambda: next(times))
    >>> progress.show({"event": "train", "step": 200, "total": 0.0123, "usage": 0.83, "images_per_second": 55.0})
    >>> progress.show({"event": "validate", "step": 500, "psnr": 27.1})
    >>> stream.getvalue()
    'step 500 of 1,000  loss 0.0123  PSNR 27.10 dB  usage 83 %  55 img/s  0:00:50 left\n'
    >>> progress.close()
    """

    def __init__(
        self,
        total: int,
        first: int = 0,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.step = total, first
        self._stream, self._clock = stream or sys.stderr, clock
        self._facts: dict[str, float] = {}
        self._shown = clock()
        self._marks = deque([(self._shown, first)], maxlen=_MARKS)
        self._bar: Any = None
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=first, unit="step", desc="train", file=self._stream, leave=False)

    def advance(self, step: int) -> None:
        """Say that so many steps are done."""
        gained, self.step = step - self.step, step
        if self._bar is not None:
            self._bar.update(gained)
        elif (now := self._clock()) - self._shown >= _SECONDS_A_LINE:
            self._shown = now
            self._write(self._line(now))
            self._marks.append((now, step))

    def show(self, row: Row) -> None:
        """Take a row of the log: its numbers are shown from now on."""
        names = ("total", "psnr", "usage", "images_per_second")
        found = numbers(row)
        self._facts |= {name: found[name] for name in names if name in found}
        if self._bar is not None:
            self._bar.set_postfix_str(describe(self._facts), refresh=False)
        self.advance(max(self.step, int(found.get("step", 0))))

    def say(self, text: str) -> None:
        """Print a line of its own, as for an alarm; the live line stays below it."""
        if self._bar is not None:
            with suppress(OSError):
                self._bar.write(escape(text, 4000), self._stream)
        else:
            self._write(text)

    def close(self) -> None:
        """Take the live line away."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _line(self, now: float) -> str:
        then, before = self._marks[0]
        rate = (self.step - before) / max(now - then, 1e-9)
        left = f"{duration((self.total - self.step) / rate)} left" if rate > 0 else "time left not known yet"
        return "  ".join(
            part for part in (f"step {self.step:,} of {self.total:,}", describe(self._facts), left) if part
        )

    def _write(self, text: str) -> None:
        """Write a line; that nobody can read it is no reason to fail."""
        with suppress(OSError):
            self._stream.write(f"{escape(text, 4000)}\n")
            self._stream.flush()


def say(text: str) -> None:
    """Print one line on stderr; that nobody can read it is no reason to fail."""
    with suppress(OSError):
        sys.stderr.write(f"{escape(text, 4000)}\n")


_WORDS = {
    "total": lambda x: f"loss {x:.4g}",
    "psnr": lambda x: f"PSNR {x:.2f} dB",
    "usage": lambda x: f"usage {100 * x:.0f} %",
    "images_per_second": lambda x: f"{x:.3g} img/s",
}


def describe(facts: dict[str, float]) -> str:
    """Return what is known of a training in a few words.

    >>> describe({"usage": 0.834, "total": 0.01234567})
    'loss 0.01235  usage 83 %'
    """
    return "  ".join(word(facts[name]) for name, word in _WORDS.items() if name in facts)


def duration(seconds: float) -> str:
    """Return a time as people read it.

    >>> duration(59.6), duration(45296), duration(200000)
    ('0:01:00', '12:34:56', '2 d 7 h')
    """
    whole = round(seconds)
    if whole >= 2 * 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
