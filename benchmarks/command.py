"""What the command costs a person: start-up over ``import torch``, and images a second.

    python benchmarks/command.py [--photo FILE] [--rounds N]

Contenders are interleaved and medians are printed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

PHOTO = Path(__file__).parents[1] / "examples" / "photo.jpg"


def seconds(command: list[str]) -> float:
    """Run a command and return its wall time."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, default=PHOTO)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photo = Image.open(options.photo).convert("RGB")
        photo.resize((512, 512)).save(folder / "512.jpg", quality=90)
        (folder / "many").mkdir()
        for i in range(100):
            left, top = np.random.default_rng(i).integers(0, (photo.width - 256, photo.height - 256))
            photo.crop((left, top, left + 256, top + 256)).save(folder / "many" / f"{i:03}.jpg", quality=90)
        vqtok = [sys.executable, "-m", "vqtok", "tokenize", "-o", str(folder / "out.vqt"), "--overwrite"]
        commands = {
            'python -c "import torch"': [sys.executable, "-c", "import torch"],
            "tokenize 512x512.jpg": [*vqtok, str(folder / "512.jpg")],
            "tokenize 100 of 256x256": [*vqtok, str(folder / "many")],
        }
        times: dict[str, list[float]] = {label: [] for label in commands}
        for _ in range(options.rounds):
            for label, command in commands.items():
                times[label].append(seconds(command))
    start, one, many = (median(x) for x in times.values())
    for label, found in times.items():
        print(f"{label:26s} median {median(found):6.2f} s   (min {min(found):.2f}, max {max(found):.2f})")
    print(f"one photo above import torch  {one - start:5.2f} s")
    print(f"100 photos, whole command     {100 / many:5.1f} images/s")
    print(f"100 photos above import torch {100 / (many - start):5.1f} images/s")


if __name__ == "__main__":
    main()
