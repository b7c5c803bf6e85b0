"""What a run costs beside the model: ``vqtok tokenize`` of a folder, the model alone, and LlamaGen-style extraction.

    python benchmarks/tokenize_dataset.py [--images N] [--size N] [--rounds N] [--plan N] [--folder DIR]

Contenders take turns, and medians are printed: the model on pixels that are in memory already (what no pipeline can
beat), the command's pipeline (decoding, hashing, sorting, shards, checksums, fsync, record), and the script that
everybody writes: one image after the other, one ``.npy`` of int64 each. ``--plan`` also lists so many empty files.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

import vqtok

PHOTO = Path(__file__).parents[1] / "examples" / "photo.jpg"


def make_photos(folder: Path, count: int, size: int) -> None:
    """Write JPEGs: different cuts of a photograph, enlarged."""
    photo = Image.open(PHOTO).convert("RGB")
    for i in range(count):
        rng = np.random.default_rng(i)
        side = int(rng.integers(200, min(photo.size)))
        left, top = (int(x) for x in rng.integers(0, (photo.width - side + 1, photo.height - side + 1)))
        cut = photo.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
        cut.save(folder / f"{i:06d}.jpg", quality=90)


def command_seconds(folder: Path, target: Path, model: str | None) -> float:
    """Run the command and return the seconds between the first image and the last commit, as it says itself."""
    command = [sys.executable, "-m", "vqtok", "tokenize", str(folder), "-o", f"{target}/", "--json", "--device", "cpu"]
    done = subprocess.run([*command, *(["-m", model] if model else [])], check=True, capture_output=True)
    return float(json.loads(done.stdout)["seconds"])


def model_seconds(tokenizer: vqtok.ImageTokenizer, pixels: list[torch.Tensor]) -> float:
    """Return the seconds that the model alone takes for pixels in memory."""
    start = time.perf_counter()
    for batch in pixels:
        tokenizer.encode(batch)
    return time.perf_counter() - start


def one_by_one_seconds(tokenizer: vqtok.ImageTokenizer, paths: list[Path], target: Path) -> float:
    """Return the seconds of a script as LlamaGen's: load, encode, save an int64 array an image."""
    target.mkdir()
    start = time.perf_counter()
    for i, path in enumerate(paths):
        image = Image.open(path).convert("RGB")
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            latents = tokenizer.latents(pixels)
            codes = torch.cdist(latents.flatten(0, 2), embedding(tokenizer)).argmin(dim=1)
        np.save(target / f"{i}.npy", codes.numpy().astype(np.int64)[None])
        np.save(target / f"{i}_label.npy", np.array([0]))
    return time.perf_counter() - start


def embedding(tokenizer: vqtok.ImageTokenizer) -> torch.Tensor:
    """Return the codebook [K, D]."""
    return tokenizer.quantizer.decode(torch.arange(tokenizer.vocab_size))


def plan_seconds(count: int, place: Path) -> tuple[float, float]:
    """Return seconds and MiB of a dry run over so many empty files."""
    for i in range(count):
        sub = place / f"{i // 10_000:05d}"
        if i % 10_000 == 0:
            sub.mkdir()
        os.close(os.open(sub / f"n{i:08d}.jpg", os.O_CREAT))
    code = (
        "import sys, time, resource; from vqtok.dataset.folder import RunFolder; from vqtok.dataset.planning import *;"
        "from vqtok.dataset.documents import Settings; from vqtok.dataset.tables import Columns;"
        "s = Settings(model='0'*64, codebook='0'*64, preprocess='0'*64, vocab_size=2, precision='float32',"
        "repro='stable', crop='none', size=0, seed=0, source_hash=True, limits={}, shard_size=10000);"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; start = time.time();"
        "f = RunFolder(sys.argv[2]);\n"
        "with f.locked(): m = prepare(f, Request((sys.argv[1],), Columns(), s, '', {}, ''))\n"
        "print(m.images, time.time() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)"
    )
    with tempfile.TemporaryDirectory() as target:
        command = [sys.executable, "-c", code, str(place), f"{target}/run"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    _, seconds, memory = done.stdout.split()
    return float(seconds), float(memory)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plan", type=int, default=0)
    parser.add_argument("--one-by-one", type=int, default=100, help="images that the script takes; it is slow")
    parser.add_argument("--folder", default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        place = Path(name)
        if options.plan:
            (place / "names").mkdir()
            seconds, memory = plan_seconds(options.plan, place / "names")
            print(f"plan of {options.plan:,} names     {seconds:6.2f} s, {memory:.0f} MiB above start")
        if options.images:
            measure(place, options)


def measure(place: Path, options: argparse.Namespace) -> None:
    """Time the contenders in turns."""
    (place / "in").mkdir()
    make_photos(place / "in", options.images, options.size)
    paths = sorted((place / "in").iterdir())
    tokenizer = vqtok.load()
    pixels = [tokenizer.preprocess(path) for path in paths[: min(200, options.images)]]
    few = paths[: options.one_by_one]
    runs: dict[str, Callable[[int], float]] = {
        "model alone": lambda i: options.images / len(pixels) * model_seconds(tokenizer, pixels),
        "vqtok tokenize": lambda i: command_seconds(place / "in", place / f"run{i}", None),
        "one by one": lambda i: options.images / len(few) * one_by_one_seconds(tokenizer, few, place / f"npy{i}"),
    }
    model_seconds(tokenizer, pixels[:10])
    times: dict[str, list[float]] = {label: [] for label in runs}
    for i in range(options.rounds):
        for label, run in runs.items():
            times[label].append(run(i))
    for label, found in times.items():
        rate = options.images / median(found)
        print(f"{label:16s} median {median(found):7.2f} s, {rate:6.1f} images/s  (min {min(found):.2f})")
    ratios = [a / b for a, b in zip(times["model alone"], times["vqtok tokenize"], strict=True)]
    print(f"the command reaches {100 * median(ratios):.1f} % of the model's own speed")
    print(f"and is {median(times['one by one']) / median(times['vqtok tokenize']):.2f} times as fast as one by one")
    size = sum(path.stat().st_size for path in (place / "run0" / "shards").glob("*.vqt"))
    print(f"bytes an image in shards: {size / options.images:.0f}")
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
