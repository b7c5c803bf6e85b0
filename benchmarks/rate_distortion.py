"""Quality at a fixed rate: the default tokenizer beside JPEG, WebP and AVIF at the nearest file size.

    python benchmarks/rate_distortion.py KODAK_DIR [--usage DIR] [--model DIR] [--json FILE]

The tokenizer spends the same 13 bits on every 8 x 8 block; the codecs spend theirs where they like. For each image and
codec the quality is chosen whose file is nearest in size to the tokens.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, features

import vqtok
from vqtok import images
from vqtok.evaluation.metrics import bits_per_pixel, psnr

CODECS = {"JPEG": {"optimize": True}, "WEBP": {"method": 6}, "AVIF": {"speed": 4}}


def photos(folder: Path, spec: images.PreprocessSpec) -> list[images.RGB]:
    """Return the images of a folder as uint8 [H, W, 3], sorted by name."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    return [images.to_rgb(path, spec) for path in files]


def nearest_size(photo: images.RGB, codec: str, wanted: float) -> tuple[int, float]:
    """Return (bytes, PSNR) of the quality whose file is nearest in size; size grows with quality, so bisect."""
    low, high, best = 0, 100, (1 << 62, 0.0)
    while low <= high:
        quality = (low + high) // 2
        buffer = io.BytesIO()
        Image.fromarray(photo).save(buffer, codec, quality=quality, **CODECS[codec])
        size = buffer.tell()
        if abs(size - wanted) < abs(best[0] - wanted):
            best = size, psnr(photo, np.asarray(Image.open(buffer).convert("RGB")))
        low, high = (quality + 1, high) if size < wanted else (low, quality - 1)
    return best


def mean(values: Iterable[float]) -> float:
    """Return the mean."""
    return float(np.mean([*values]))


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the images to report on, the 24 of Kodak for the table in README")
    parser.add_argument("--usage", type=Path, help="further images that count for the codebook's usage")
    parser.add_argument("--model", help="model folder (default: the embedded one)")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()

    tokenizer = vqtok.load(options.model)
    shown = photos(options.folder, tokenizer.spec)
    tokens = tokenizer.tokenize(shown)
    back = [np.asarray(image) for image in tokenizer.detokenize(tokens)]
    rows = {"vqtok": (bits_per_pixel(tokens), mean(map(psnr, shown, back)))}
    wanted = [len(ids) * np.log2(tokens.vocab_size) / 8 for ids in tokens.sequences()]
    for codec in CODECS:
        if codec == "AVIF" and not features.check("avif"):
            continue
        found = [nearest_size(photo, codec, size) for photo, size in zip(shown, wanted, strict=True)]
        pixels = sum(photo.shape[0] * photo.shape[1] for photo in shown)
        rows[codec] = (8 * sum(size for size, _ in found) / pixels, mean(db for _, db in found))
    counted = [tokens.ids] + ([tokenizer.tokenize(photos(options.usage, tokenizer.spec)).ids] if options.usage else [])
    usage = len(np.unique(np.concatenate(counted))) / tokens.vocab_size

    print(f"{len(shown)} images of {options.folder.name}, mean PSNR over RGB")
    for name, (bits, db) in rows.items():
        print(f"{name:8s} {bits:6.3f} bits a pixel  {db:6.2f} dB")
    print(f"codes used: {100 * usage:.1f} % of {tokens.vocab_size}")
    if options.json:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
        result = {
            "images": len(shown),
            "rows": {name: {"bits_per_pixel": bits, "psnr": db} for name, (bits, db) in rows.items()},
            "codes_used": usage,
            "fingerprint": tokenizer.fingerprint,
            "commit": commit,
            "versions": {"torch": torch.__version__, "pillow": PIL.__version__},
            "machine": platform.processor() or platform.machine(),
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
