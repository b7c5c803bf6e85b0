"""A worker process: items in on stdin, pixels out on stdout, until stdin ends.

Frames are a line of JSON, then the bytes it announces. Never pickles: what comes out of a process that decodes
strangers' files is data. Whatever a decoder prints goes nowhere.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from contextlib import suppress
from typing import BinaryIO

from vqtok.dataset.decoding import Decoded, Failure, decode_item, parse_recipe, shapes
from vqtok.dataset.items import parse_item

_PIPE_BYTES = 1 << 20


def main() -> None:
    """Serve until the parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _die_with_parent()
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", buffering=1 << 16)
    _widen(answers.fileno())
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    settings = json.loads(requests.readline() or b"{}")
    if not settings:
        return
    _limit_memory(settings.pop("memory"))
    recipe = parse_recipe(settings)
    while line := requests.readline():
        _answer(answers, decode_item(parse_item(line), recipe))


def _answer(answers: BinaryIO, outcome: Decoded | Failure) -> None:
    if isinstance(outcome, Failure):
        head: dict[str, object] = {"failure": [outcome.key, outcome.stage, outcome.kind, outcome.message]}
        arrays = []
    else:
        head = {
            "sha256": outcome.sha256.hex(),
            "shapes": shapes(outcome),
            "boxes": [[box.top, box.left, box.side, box.mirror] for box in outcome.boxes],
        }
        arrays = outcome.arrays
    answers.write(json.dumps(head).encode() + b"\n")
    for array in arrays:
        answers.write(array.data)
    answers.flush()


def _die_with_parent() -> None:
    """Ask Linux to kill this process with its parent, so that one that hangs is no orphan."""
    with suppress(OSError, AttributeError):
        parent_death = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(parent_death, signal.SIGKILL)


def _widen(descriptor: int) -> None:
    """Let the pipe hold a picture, so that the next one is decoded while the model is busy."""
    with suppress(OSError, ImportError, AttributeError):
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _limit_memory(size: int) -> None:
    if size:
        with suppress(OSError, ValueError, ImportError):
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (size, size))
