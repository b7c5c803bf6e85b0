"""The log of a training, ``metrics.jsonl``: one JSON object a line, appended to, and cut when a training goes back."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqtok.errors import InputError
from vqtok.store.commit import commit, output_errors

NAME = "metrics.jsonl"

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)


class Log:
    """The log of a run folder; what a killed process left of a line is taken away.

    Args:
        folder: of the run; it must exist.

    Raises:
        InputError: the log that is there is not one.
        OutputError: it cannot be written.

    >>> import tempfile
    >>> log = Log(Path(tempfile.mkdtemp()))
    >>> log.append({"event": "train", "step": 100, "total": float("nan")})
    >>> log.append({"event": "train", "step": 200, "total": 0.5})
    >>> log.cut(100)
    >>> log.rows()
    [{'event': 'train', 'step': 100, 'total': 'nan'}]
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        if self.path.exists():
            self._keep(math.inf)

    def append(self, row: Mapping[str, object]) -> None:
        """Add a row in one write; numbers that are not finite become the strings ``nan``, ``inf`` and ``-inf``.

        Raises:
            OutputError: the operating system refuses, as on a full disk; a part of a line may be there then.
        """
        data = f"{json.dumps(writable(row), ensure_ascii=False, allow_nan=False)}\n".encode("utf-8", "backslashreplace")
        with output_errors(self.path):
            descriptor = os.open(self.path, _APPEND, 0o666)
            try:
                while data:  # one write, unless the system cuts it short
                    data = data[os.write(descriptor, data) :]
            finally:
                os.close(descriptor)

    def cut(self, step: int) -> None:
        """Drop the rows after a step, whose work is done again: the file is replaced in one move, or left alone."""
        if self.path.exists():
            self._keep(step)

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows, none when there is no log yet."""
        return read_log(self.path) if self.path.exists() else []

    def _keep(self, step: float) -> None:
        data = _read(self.path)
        kept = b"".join(line + b"\n" for line, row in _parsed(data, self.path) if row["step"] <= step)
        if kept != data:
            commit(self.path, kept, overwrite=True)


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the rows of a log; a last line that a killed process left unfinished is passed over.

    Raises:
        InputError: there is no such file, or a line is not a row: an object with ``event`` and ``step``.
    """
    return [row for _, row in _parsed(_read(Path(path)), Path(path))]


def writable(value: object) -> Any:
    """Return a value of a row as JSON can write it.

    >>> writable({"total": float("-inf"), "losses": {"l2": 0.5}, "shape": (8, 64)})
    {'total': '-inf', 'losses': {'l2': 0.5}, 'shape': [8, 64]}
    """
    if isinstance(value, Mapping):
        return {str(name): writable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [writable(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{str(path)!r}: expected the log of a training, cannot read it ({error.strerror}): give the folder that "
            f"`vqtok train -o` wrote"
        ) from None


def _parsed(data: bytes, path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Return each line with its row; empty lines and an unfinished last one are left out."""
    found = []
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        row = _row(line)
        if row is not None:
            found.append((line, row))
        elif line.strip() and number < len(lines):
            raise InputError(
                f"{str(path)!r}: expected a JSON object with event and step in line {number}, got {line[:60]!r}: "
                f"remove that line, or the file if it is not a log"
            )
    return found


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None
    whole = isinstance(row, dict) and isinstance(row.get("event"), str) and type(row.get("step")) is int
    return row if whole else None
