"""Can each family learn one image by heart, and 64? Seeded, on the CPU, with curves.

python benchmarks/overfit.py --photos corpus/train --json benchmarks/results/overfit.json --plot docs/overfit.png
"""

# matplotlib is an extra.
# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import vqtok
from vqtok import images
from vqtok.evaluation.metrics import mean_psnr
from vqtok.losses import Objective, l2, logit_laplace
from vqtok.training.passes import continuous
from vqtok.training.schedules import cosine_ramp

PHOTO = Path(__file__).parents[1] / "examples/photo.jpg"
SIDE = 64
GOALS = {1: 35, 64: 27}  # dB of one image, and of 64 crops


@dataclass(frozen=True, slots=True)
class Trial:
    """How a preset is trained.

    Attributes:
        preset: its name.
        weights: of the losses by name.
        learning_rate: its peak.
        steps: for one image, and for 64 crops in batches of 8.
        coldest: last temperature of Gumbel quantization without noise.
        continuous: share of the steps without quantization (of Gumbel: without noise) at the beginning, so that k-means
            starts from latents that mean something, and a decoder does not learn to live without them.
    """

    preset: str
    weights: Mapping[str, float] = field(default_factory=lambda: {"l2": 1.0, "commitment": 0.06})
    learning_rate: float = 2e-3
    steps: tuple[int, int] = (1200, 2000)
    coldest: float = 1 / 16
    continuous: float = 0.0


_STATISTICS = {"l2": 16.0, "logit_laplace": 0.02}
TRIALS = (
    Trial("vqvae-tiny"),
    Trial("vqvae2-tiny"),
    Trial("rqvae-tiny"),
    Trial("vqgan-tiny", learning_rate=1e-3),
    Trial("vqgan-gumbel-tiny", {"l2": 1.0, "kl": 0.0}, learning_rate=2e-3, steps=(1200, 2500), continuous=0.2),
    Trial("dvae-tiny", {**_STATISTICS, "kl": 0.0}, learning_rate=2e-3, steps=(3000, 5000), continuous=0.2),
    Trial(
        "vit-vqgan-tiny", {**_STATISTICS, "commitment": 0.06}, learning_rate=1e-3, steps=(2000, 3000), continuous=0.5
    ),
)


def crops(folder: Path, count: int, seed: int = 0) -> list[images.RGB]:
    """Return crops uint8 [64, 64, 3] of as many photographs, or of one, scaled down to a short side of 256."""
    files = (
        sorted(p for p in folder.rglob("*") if p.suffix in (".jpg", ".png", ".webp")) if folder.is_dir() else [folder]
    )
    rng = np.random.default_rng(seed)
    found = []
    for i in rng.permutation(max(len(files), count))[:count]:
        photo = Image.open(files[i % len(files)]).convert("RGB")
        scale = 256 / min(photo.size)
        photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC)
        top, left = rng.integers(photo.height - SIDE + 1), rng.integers(photo.width - SIDE + 1)
        found.append(np.asarray(photo)[top : top + SIDE, left : left + SIDE])
    return found


def run(trial: Trial, photos: list[images.RGB], steps: int, seed: int = 0) -> list[dict[str, float]]:
    """Train and return the curve: seconds, steps, mean PSNR of what tokens give back, codes used."""
    torch.manual_seed(seed)
    tokenizer = vqtok.build(trial.preset).train()
    pixels = torch.from_numpy(np.stack([images.to_pixels(photo, tokenizer.spec) for photo in photos]))
    parameters = [*tokenizer.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0)
    objective = Objective(trial.weights)
    curve: list[dict[str, float]] = []
    started = time.monotonic()
    for step in range(steps):
        _schedule(tokenizer, trial, step, steps)
        for group in optimizer.param_groups:
            group["lr"] = (
                trial.learning_rate * min(1.0, (step + 1) / 50) * cosine_ramp(step, start=1, end=0.01, steps=steps)
            )
        batch = pixels[torch.randperm(len(pixels))[:8]]
        optimizer.zero_grad()
        if step < trial.continuous * steps:
            l2(without_quantizer(tokenizer, batch), batch).backward()
        else:
            objective(losses(tokenizer, batch)).total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) * 20 % steps < 20:
            curve.append({"step": step + 1, "seconds": time.monotonic() - started, **measure(tokenizer, photos)})
    return curve


def without_quantizer(tokenizer: vqtok.ImageTokenizer, pixels: Tensor) -> Tensor:
    """Return pixels after the networks alone."""
    if not isinstance(tokenizer, vqtok.Tokenizer):
        raise TypeError("expected a tokenizer of one encoder and one decoder")
    return tokenizer.decode_vectors(continuous(tokenizer.quantizer, tokenizer.latents(pixels)))


def losses(tokenizer: vqtok.ImageTokenizer, pixels: Tensor) -> dict[str, Tensor]:
    """Return the losses of a batch by name."""
    made = tokenizer(pixels)
    found = {"l2": l2(made.pixels, pixels), **made.quantized.losses}
    if made.statistics:
        parameters = torch.cat([made.statistics["mean"], made.statistics["log_scale"]], dim=1)
        found["logit_laplace"] = logit_laplace(parameters, pixels)
    return found


def _schedule(tokenizer: vqtok.ImageTokenizer, trial: Trial, step: int, steps: int) -> None:
    """Set Gumbel's temperature: falling without noise at first, then 1 again, with logits that are as sharp."""
    if not (isinstance(tokenizer, vqtok.Tokenizer) and isinstance(tokenizer.quantizer, vqtok.GumbelQuantizer)):
        return
    first = int(trial.continuous * steps)
    if step == first:
        logits = tokenizer.quantizer.proj or tokenizer.encoder.conv_out
        for parameter in logits.parameters():  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
            parameter.data /= trial.coldest
    cold = cosine_ramp(step, start=1.0, end=trial.coldest, steps=max(1, first))
    warm = cosine_ramp(step, start=1.0, end=0.25, steps=steps - first, first=first)
    tokenizer.quantizer.temperature = cold if step < first else warm


def measure(tokenizer: vqtok.ImageTokenizer, photos: list[images.RGB]) -> dict[str, float]:
    """Return the mean PSNR of photographs after the way through tokens, and how many codes they use."""
    tokenizer.eval()
    tokens = tokenizer.tokenize(photos)
    back = [np.asarray(image) for image in tokenizer.detokenize(tokens)]
    tokenizer.train()
    return {
        "psnr": mean_psnr(photos, back),
        "codes": len(np.unique(tokens.ids)),
    }


def main() -> None:
    """Run all trials, or those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", help="run these alone")
    parser.add_argument("--photos", type=Path, default=PHOTO, help="folder of photographs, or one of them")
    parser.add_argument("--images", type=int, choices=[*GOALS], help="run the trials of so many alone")
    parser.add_argument("--json", type=Path, help="write the curves")
    parser.add_argument("--plot", type=Path, help="draw the curves")
    options = parser.parse_args()
    chosen = [trial for trial in TRIALS if not options.presets or trial.preset in options.presets]
    results = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    for trial in chosen:
        for count, steps in zip(GOALS, trial.steps, strict=True):
            if options.images not in (None, count):
                continue
            curve = run(trial, crops(options.photos, count), steps)
            results.setdefault(trial.preset, {})[str(count)] = curve
            last, there = curve[-1], [point for point in curve if point["psnr"] >= GOALS[count]]
            print(
                f"{trial.preset:18} {count:2} images: {last['psnr']:.2f} dB after {last['seconds']:.0f} s, "
                f"{last['step']:.0f} steps, {last['codes']:.0f} codes; {GOALS[count]} dB "
                + (f"after {there[0]['seconds']:.0f} s" if there else "not reached"),
                flush=True,
            )
            if options.json:
                options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.plot:
        draw(results, options.plot)


def draw(results: Mapping[str, Mapping[str, list[dict[str, float]]]], target: Path) -> None:
    """Draw PSNR over steps, one panel for one image and one for 64."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    for panel, (count, goal) in zip(axes, GOALS.items(), strict=True):
        for preset, curves in results.items():
            curve = curves[str(count)]
            panel.plot([p["step"] for p in curve], [p["psnr"] for p in curve], label=preset)
        panel.axhline(goal, color="0.6", linestyle=":", linewidth=1)
        panel.set_title("one image" if count == 1 else "64 crops of 64 photographs", loc="left")
        panel.set_xlabel("steps")
        panel.set_ylabel("PSNR of what the tokens give back, dB")
        panel.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False, fontsize=8)
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main()
