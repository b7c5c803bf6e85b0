"""The memory that a contender needs on top of its inputs, in a process of its own.

    python -m vqtok.benchmarks.memory CASE CONTENDER N,K,D THREADS

What stays after the preparation (an index, a packed codebook), and the peak of a second call above what was there
before it: compilers and allocators have done by then what they do once.
"""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from .protocol import Case, Contender, Shape

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_WARM_UP = 64
# Large blocks go back to the system as soon as they are free, so that they are seen when they are taken again.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def extra_bytes(case: Case, contender: Contender, shape: Shape, threads: int) -> int | None:
    """Return the extra memory of one contender in bytes, or None where it cannot be measured (needs Linux)."""
    if not _CLEAR.exists():
        return None
    size = ",".join(map(str, shape))
    command = [sys.executable, "-m", __name__, case.name, contender.name, size, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **_ALLOCATOR}, check=False)
    return int(json.loads(done.stdout.splitlines()[-1])) if done.returncode == 0 else None


def measured(case: Case, contender: Contender, shape: Shape) -> int:
    """Return the extra memory of a contender in this process, in bytes."""
    contender.prepare(case.inputs((_WARM_UP, _WARM_UP, shape[2]), "cpu"))()  # libraries are loaded by now
    inputs = case.inputs(shape, "cpu")
    gc.collect()
    before = _resident("VmRSS")
    call = contender.prepare(inputs)
    kept = _resident("VmRSS") - before
    call()
    gc.collect()
    _CLEAR.write_text("5")  # the peak starts anew from here
    before = _resident("VmRSS")
    call()
    return max(0, kept) + max(0, _resident("VmHWM") - before)


def _resident(what: str) -> int:
    found = re.search(rf"^{what}:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def main() -> None:
    """Measure in this process and print the bytes."""
    name, wanted, size, threads = sys.argv[1:]
    suite = import_module(f"{__package__}.suite")
    suite.pin_threads(int(threads))
    rows, vocab_size, dim = map(int, size.split(","))
    case = suite.CASES[name]
    (contender,) = (c for c in case.contenders("cpu") if c.name == wanted)
    print(json.dumps(measured(case, contender, (rows, vocab_size, dim))))


if __name__ == "__main__":
    main()
