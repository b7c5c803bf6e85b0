"""Train the tiny dynamic tokenizer on photographs, seeded, on the CPU, and show where it spends its tokens.

python benchmarks/dynamic.py --photos corpus/train --validate corpus/val --json benchmarks/results/dynamic.json \
    --picture docs/dynamic.png --limit 300

First the teacher learns to fill in photographs with holes; then selector, merger and feature decoder learn without the
quantizer (stage A); then the selector is calibrated and frozen, and the rest learns with the quantizer (stage B).

In stage A the selector also learns to keep what the teacher could not have filled in. The published loss alone tells it
so only through a decoder that has learnt to put each token in its place, which takes longer than minutes on a CPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

import vqtok
from vqtok import images
from vqtok.evaluation.token_maps import kept_positions, overlay
from vqtok.losses import Objective, cosine_feature_loss, keep_ratio_loss, l2
from vqtok.training.schedules import cosine_ramp

RATIO = 1 / 3
WEIGHTS = {"features": 1.0, "keep_ratio": 4.0, "l2": 1.0}
WEIGHTS_A, WEIGHTS_B = {"expected_ratio": 4.0, "surprise": 3.0}, {"commitment": 0.25}
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


class Batches:
    """Random crops of photographs as pixels, half of them mirrored; the same for the same seed."""

    def __init__(self, tokenizer: vqtok.DynamicTokenizer, photos: list[images.RGB], count: int, seed: int = 0) -> None:
        self.spec, self.photos, self.count = tokenizer.spec, photos, count
        self.rng = np.random.default_rng(seed)

    def __call__(self) -> Tensor:
        """Return float32 [count, 3, S, S]."""
        return torch.from_numpy(np.stack([images.to_pixels(self._crop(), self.spec) for _ in range(self.count)]))

    def _crop(self) -> images.RGB:
        side, photo = self.spec.size or 0, self.photos[self.rng.integers(len(self.photos))]
        top, left = (self.rng.integers(x - side + 1) for x in photo.shape[:2])
        crop = photo[top : top + side, left : left + side]
        return crop[:, ::-1] if self.rng.random() < 0.5 else crop


def fit(
    name: str, modules: list[nn.Module], loss: Callable[[], Mapping[str, Tensor]], steps: int, rate: float
) -> Iterator[tuple[int, Row]]:
    """Minimise the loss ``total``, and yield step and losses."""
    parameters = [p for module in modules for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.01)
    for step in tqdm(range(steps), name, disable=None):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50) * cosine_ramp(step, start=1, end=0.02, steps=steps)
        optimizer.zero_grad()
        losses = loss()
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        yield step + 1, {key: x.item() for key, x in losses.items()}


class Filler(nn.Module):
    """A linear head that tells the colours of every patch's quarters from the teacher's features."""

    def __init__(self, teacher: nn.Module, patch: int, width: int) -> None:
        super().__init__()
        self.teacher, self.patch, self.head = teacher, patch, nn.Linear(width, 12)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return float [B, 3, S, S], pixels filled in, and bool [B, N], which patches were hidden: half of them."""
        side = pixels.shape[-1] // self.patch
        hidden = torch.rand(len(pixels), 1, side, side) < 0.5
        holes = pixels.masked_fill(hidden.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3), 0)
        quarters = self.head(self.teacher(holes)).transpose(1, 2).unflatten(2, (side, side))
        quarters = nn.functional.pixel_shuffle(quarters, 2)
        return nn.functional.interpolate(quarters, scale_factor=self.patch // 2), hidden.flatten(1)


def train_teacher(tokenizer: vqtok.DynamicTokenizer, batches: Batches, steps: int) -> Filler:
    """Teach the features to tell the colours of every patch's quarters, though half of the patches are not seen."""
    teacher = tokenizer.features.requires_grad_(True)
    filler = Filler(teacher, tokenizer.factor, tokenizer.merger.width)

    def loss() -> Mapping[str, Tensor]:
        pixels = batches()
        return {"total": l2(filler(pixels)[0], pixels)}

    for step, row in fit("teacher", [filler], loss, steps, 2e-3):
        if step in (1, steps):
            tqdm.write(f"teacher, step {step}: mean squared error {row['total']:.4f}")
    teacher.requires_grad_(False).eval()
    return filler.requires_grad_(False)


def surprise(tokenizer: vqtok.DynamicTokenizer, filler: Filler, pixels: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return the loss of dropping what could not be filled in, and that of keeping another share than the ratio."""
    likely = tokenizer.selector(target)[..., 0].exp()
    filled, hidden = filler(pixels)
    error = nn.functional.avg_pool2d((filled - pixels).square().mean(dim=1), tokenizer.factor).flatten(1)
    score = ((error - error[hidden].mean()) / error[hidden].std()).clamp(max=3)
    return {
        "surprise": -(likely * score)[hidden].mean(),
        "expected_ratio": keep_ratio_loss(likely, RATIO),
    }


def train(
    tokenizer: vqtok.DynamicTokenizer, batches: Batches, photos: Tensor, filler: Filler | None, steps: int
) -> list[Row]:
    """Train a stage, without the quantizer where there is a filler, else with it; return the curve."""
    tokenizer.quantize = filler is None
    objective = Objective(WEIGHTS | (WEIGHTS_A if filler else WEIGHTS_B))

    def loss() -> Mapping[str, Tensor]:
        pixels = batches()
        made = tokenizer(pixels)
        losses = {
            "features": cosine_feature_loss(made.statistics["features"], made.statistics["target"]),
            "keep_ratio": keep_ratio_loss(made.statistics["keep"], RATIO),
            "l2": l2(made.pixels, pixels),
            **made.quantized.losses,
        }
        if filler is not None:
            losses |= surprise(tokenizer, filler, pixels, made.statistics["target"])
        return {"total": objective(losses).total, **losses}

    curve: list[Row] = []
    stage, frozen = ("A", {"features"}) if filler else ("B", {"features", "selector"})
    learnt = [x for name, x in tokenizer.named_children() if name not in frozen]
    tokenizer.train()
    for step, row in fit(stage, learnt, loss, steps, 2e-3):
        if step % 50 == 0:
            curve.append({"stage": float(filler is None), "step": step, **row, **measure(tokenizer, photos)})
            tqdm.write(json.dumps({key: round(value, 3) for key, value in curve[-1].items()}))
            tokenizer.train()
    return curve


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
    """Train, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs to train on")
    parser.add_argument("--validate", type=Path, required=True, help="folder of others, to measure and draw")
    parser.add_argument("--steps", type=int, nargs=3, default=(300, 900, 1000), help="of teacher, stage A, stage B")
    parser.add_argument("--limit", type=int, help="use so many photographs to train on")
    parser.add_argument("--save", type=Path, help="write the model folder")
    parser.add_argument("--json", type=Path, help="write the curve")
    parser.add_argument("--picture", type=Path, help="draw what is kept of the first photographs to validate with")
    options = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = vqtok.build("dynamic-tiny")
    if not isinstance(tokenizer, vqtok.DynamicTokenizer):
        raise TypeError("expected the preset to be dynamic")
    started = time.monotonic()
    trained = load_photos(options.photos, 160, options.limit)
    batches = Batches(tokenizer, trained, 8)
    photos = load_photos(options.validate, 128)
    held = torch.cat([tokenizer.preprocess(photo) for photo in photos])
    filler = train_teacher(tokenizer, batches, options.steps[0])
    curve = train(tokenizer, batches, held, filler, options.steps[1])
    seen = torch.cat([tokenizer.preprocess(photo) for photo in trained])
    tokenizer.calibrate(seen, RATIO)
    tokenizer.selector.requires_grad_(False)
    tokenizer.quantize = True
    with torch.no_grad():  # k-means wants more latents than one batch has
        tokenizer.train()(torch.cat([batches() for _ in range(8)]))
    curve += train(tokenizer, batches, held, None, options.steps[2])
    result = {"seconds": time.monotonic() - started, "blind": blind(tokenizer, seen, held), "curve": curve}
    result |= {"held_out": measure(tokenizer, held), "trained_on": measure(tokenizer, seen)}
    print(json.dumps({key: value for key, value in result.items() if key != "curve"}, indent=1))
    if options.save:
        tokenizer.eval().save(options.save, overwrite=True)
    if options.picture:
        Image.fromarray(draw(tokenizer, photos[:8])).save(options.picture)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
