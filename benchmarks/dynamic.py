"""Where the tiny dynamic tokenizer spends its tokens, and what comes back of its teacher's features.

vqtok train dynamic-tiny -o run/ --set 'data.train=[{path="corpus/train"}]' --set 'data.validate_on=["corpus/val"]'
python benchmarks/dynamic.py run/model --photos corpus/train --validate corpus/val \
    --json benchmarks/results/dynamic.json --picture docs/dynamic.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

import vqtok
from vqtok import images
from vqtok.evaluation.token_maps import kept_positions, overlay
from vqtok.losses import cosine_feature_loss

Row = dict[str, float]


def load_photos(folder: Path, side: int, limit: int | None = None) -> list[images.RGB]:
    """Return photographs of a folder, scaled down to a short side."""
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".jpg", ".png", ".webp"))
    chosen = np.random.default_rng(0).permutation(len(files))[:limit]
    found = []
    for i in tqdm(sorted(chosen), "photos", disable=None):
        photo = Image.open(files[i]).convert("RGB")
        scale = side / min(photo.size)
        size = max(side, round(photo.width * scale)), max(side, round(photo.height * scale))
        found.append(np.asarray(photo.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)))
    return found


@torch.no_grad()
def measure(tokenizer: vqtok.DynamicTokenizer, pixels: Tensor) -> Row:
    """Return what the deterministic tokenizer does on pixels [B, 3, S, S]."""
    tokenizer.eval()
    made = tokenizer(pixels)
    likely = tokenizer.keep_probability(pixels)
    runs = tokenizer.encode(pixels)
    variance = local_variance(pixels, tokenizer.factor)
    error = ((made.pixels.clamp(-1, 1) - pixels) / 2).square().mean(dim=(1, 2, 3))
    return {
        "one_minus_cosine": cosine_feature_loss(made.statistics["features"], made.statistics["target"]).item(),
        "kept": runs.lengths.float().mean().item() / tokenizer.patches,
        "fewest": runs.lengths.min().item(),
        "most": runs.lengths.max().item(),
        "usage": len(runs.ids.unique()) / tokenizer.vocab_size,
        "correlation": correlation(likely, variance),
        "correlation_of_log": correlation(likely, (variance + 1e-5).log()),
        "psnr": (-10 * error.log10()).mean().item(),
    }


@torch.no_grad()
def blind(tokenizer: vqtok.DynamicTokenizer, seen: Tensor, held: Tensor) -> float:
    """Return mean(1 - cos) of a decoder that gives every photograph the mean features of each place."""
    target = tokenizer.features(held)
    return cosine_feature_loss(tokenizer.features(seen).mean(dim=0).expand_as(target), target).item()


def local_variance(pixels: Tensor, patch: int) -> Tensor:
    """Return the variance of brightness within each patch of pixels [B, 3, S, S]: [B, N]."""
    patches = nn.functional.pixel_unshuffle(pixels.mean(dim=1, keepdim=True), patch)
    return patches.var(dim=1).flatten(1)


def correlation(a: Tensor, b: Tensor) -> float:
    """Return Pearson's correlation over all patches of all photographs."""
    return float(np.corrcoef(a.flatten().double().numpy(), b.flatten().double().numpy())[0, 1])


def draw(tokenizer: vqtok.DynamicTokenizer, photos: list[images.RGB], cell: int = 16) -> images.RGB:
    """Return photographs above what is kept of them, above what comes back from the tokens, uint8 [H, W, 3]."""
    tokens = tokenizer.eval().tokenize(photos)
    side = tokenizer.side * cell
    columns = []
    for row, back, photo in zip(tokens, tokenizer.detokenize(tokens), photos, strict=True):
        shown = [Image.fromarray(images.to_rgb(photo, tokenizer.spec)), back]
        seen, decoded = (np.asarray(x.resize((side, side), Image.Resampling.BICUBIC)) for x in shown)
        panels = seen, overlay(seen, kept_positions(row), (cell, cell)), decoded
        framed = [np.pad(x, [(0, 8), (0, 8), (0, 0)], constant_values=255) for x in panels]
        columns.append(np.concatenate(framed))
    return np.concatenate(columns, axis=1)


def main() -> None:
    """Measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs that it was trained on")
    parser.add_argument("--validate", type=Path, required=True, help="folder of others, to measure and draw")
    parser.add_argument("--limit", type=int, help="use so many photographs of the first folder")
    parser.add_argument("--json", type=Path, help="write the numbers")
    parser.add_argument("--picture", type=Path, help="draw what is kept of the first photographs to validate with")
    options = parser.parse_args()
    tokenizer = vqtok.load(options.model)
    if not isinstance(tokenizer, vqtok.DynamicTokenizer):
        raise TypeError("expected a dynamic tokenizer")
    side = (tokenizer.spec.size or 0) * 4 // 3
    photos = load_photos(options.validate, side)
    seen, held = (
        torch.cat([tokenizer.preprocess(photo) for photo in found])
        for found in (load_photos(options.photos, side, options.limit), photos)
    )
    result = {"blind": blind(tokenizer, seen, held)}
    result |= {"held_out": measure(tokenizer, held), "trained_on": measure(tokenizer, seen)}
    print(json.dumps(result, indent=1))
    if options.picture:
        Image.fromarray(draw(tokenizer, photos[:8])).save(options.picture)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
