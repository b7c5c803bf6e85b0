"""What opening a checkpoint takes, in time and memory: VQGAN f16-16384, 72 M parameters with random weights.

python -m vqtok.benchmarks.load_checkpoint --json benchmarks/results/load_checkpoint.json

The same weights as a model folder and as a publisher's .ckpt. Every round is a process of its own, in which torch and
vqtok are imported before the clock starts: seconds of `vqtok.load`, seconds of only reading the file's bytes just
before, and how far the resident memory rises over what it was, file pages that are mapped included.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

import vqtok

from .machine import commit, machine, pin_threads, versions

PRESET, FAMILY = "vqgan-f16-16384", "taming_vqgan"
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def written(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Write the checkpoints; return by name what is loaded and the file that holds its weights."""
    torch.manual_seed(0)
    tokenizer = vqtok.build(PRESET)
    tokenizer.save(folder / "model")
    vqtok.export(tokenizer, checkpoint := folder / "last.ckpt", FAMILY)
    return {
        "model folder": (folder / "model", folder / "model" / "model.safetensors"),
        f"{FAMILY} .ckpt": (checkpoint, checkpoint),
    }


def in_this_process(model: Path, file: Path, threads: int) -> dict[str, float]:
    """Load once; return seconds and bytes. The file is read first, so both clocks find it in the cache."""
    pin_threads(threads)
    vqtok.load()  # the embedded tokenizer: modules that are imported on first use are there by now
    reading = _reading(file)
    _CLEAR.write_text("5")  # the peak starts anew from here
    before, begin = _resident("VmRSS"), time.perf_counter()
    tokenizer = vqtok.load(model)
    seconds = time.perf_counter() - begin
    peak = _resident("VmHWM")
    return {
        "parameters": sum(p.numel() for p in tokenizer.parameters()),
        "file bytes": file.stat().st_size,
        "load seconds": seconds,
        "read seconds": reading,
        "peak bytes": peak - before,
        "process peak bytes": peak,
    }


def _reading(file: Path) -> float:
    """Return the seconds of reading a file once it is in the system's cache, into memory that was there."""
    seconds, memory = 0.0, bytearray(1 << 24)
    for _ in range(2):
        begin = time.perf_counter()
        with open(file, "rb", buffering=0) as stream:
            while stream.readinto(memory):
                pass
        seconds = time.perf_counter() - begin
    return seconds


def _resident(what: str) -> int:
    found = re.search(rf"^{what}:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def in_fresh_process(model: Path, file: Path, threads: int) -> dict[str, float]:
    """Load once in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, "--child", str(model), str(file), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def said(name: str, rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Print and return the medians of a checkpoint's rounds."""
    size = rounds[0]["file bytes"]
    beyond = median(r["load seconds"] - r["read seconds"] for r in rounds)
    times = max(r["peak bytes"] for r in rounds) / size
    print(
        f"{name}: {rounds[0]['parameters'] / 1e6:.1f} M parameters, {size / 1e6:.0f} MB; {beyond:.2f} s beyond reading "
        f"({median(r['read seconds'] for r in rounds):.2f} s), peak {times:.2f}x the file",
        flush=True,
    )
    return {"checkpoint": name, "seconds beyond reading": beyond, "largest peak over file": times, "rounds": rounds}


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write every round")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        model, file = options.child
        print(json.dumps(in_this_process(model, file, options.threads)))
        return
    state = {"machine": machine("cpu"), "versions": versions(), "commit": commit(), "threads": options.threads}
    state["load"] = os.getloadavg()
    print(json.dumps(state, indent=1))
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            said(name, [in_fresh_process(*paths, options.threads) for _ in range(options.rounds)])
            for name, paths in written(Path(folder)).items()
        ]
    if options.json:
        options.json.write_text(json.dumps({**state, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
