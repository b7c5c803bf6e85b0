"""What the training loop costs: over the bare step, and beside the same model with vector-quantize-pytorch's quantizer.

python benchmarks/training_step.py --json benchmarks/results/training-step.json

Every contender trains the same network on the same batch, in turns; times are medians. Rivals: extra ``bench``.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vqtok import EmaQuantizer, Tokenizer
from vqtok.losses import Objective, l1, l2
from vqtok.training.loop import launch, start_tokenizer
from vqtok.training.recipe import Recipe, read_recipe
from vqtok.training.schedules import value_at
from vqtok.training.state import TrainingState

RECIPES = Path(__file__).parents[1] / "examples/recipes"
NAMES = ("vqvae-tiny", "vqgan-tiny")
Call = Callable[[], object]


class Rival(nn.Module):
    """A tokenizer's encoder and decoder around vector-quantize-pytorch's quantizer, with the settings of ours.

    Codes that die are left, and k-means is over: neither is timed on either side.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        from vector_quantize_pytorch import VectorQuantize

        super().__init__()
        ours = tokenizer.quantizer
        if not isinstance(ours, EmaQuantizer):
            raise TypeError(f"expected a tokenizer with an EmaQuantizer, got {type(ours).__name__}")
        self.encoder, self.decoder = tokenizer.encoder, tokenizer.decoder
        self.quantizer = VectorQuantize(
            ours.dim,
            ours.vocab_size,
            use_cosine_sim=ours.metric == "cosine",
            decay=ours.decay,
            eps=ours.epsilon,
            commitment_weight=1.0,
            threshold_ema_dead_code=0,
            rotation_trick=ours.gradient == "rotation",
        )
        for name in ("embed", "embed_avg"):
            getattr(self.quantizer._codebook, name).copy_(ours.codebook)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return reconstructed pixels and the commitment loss."""
        latents = self.encoder(pixels)
        height, width = latents.shape[2:]
        vectors, _, loss = self.quantizer(latents.flatten(2).transpose(1, 2))
        return self.decoder(vectors.transpose(1, 2).unflatten(2, (height, width))), loss.sum()


def make(recipe: Recipe) -> Tokenizer:
    """Return the recipe's tokenizer, in training, with a codebook that k-means need not start."""
    torch.manual_seed(recipe.seed)
    tokenizer = start_tokenizer(recipe)
    if not isinstance(tokenizer, Tokenizer) or not isinstance(tokenizer.quantizer, EmaQuantizer):
        raise TypeError("expected a recipe of a grid tokenizer with an EmaQuantizer")
    tokenizer.quantizer.adopt_codebook()
    return tokenizer.train()


def loop_step(recipe: Recipe, crops: np.ndarray[Any, Any]) -> Call:
    """Prepare a step of the loop, with everything that it does at each."""
    state = TrainingState(make(recipe), recipe, None, launch(recipe, "cpu"))
    first = recipe.stage_start(recipe.steps - 1)

    def run() -> None:
        state.step = first
        state.train_step(crops)

    return run


def bare_step(
    recipe: Recipe, crops: np.ndarray[Any, Any], wrap: Callable[[Tokenizer], nn.Module] | None = None
) -> Call:
    """Prepare forward, backward and the optimizer's step and nothing else; of ours, or of a rival's model."""
    tokenizer = make(recipe)
    model = wrap(tokenizer) if wrap else tokenizer
    objective = Objective({name: value_at(weight, recipe.steps) for name, weight in recipe.losses.items()})
    pixels = TrainingState(make(recipe), recipe, None, launch(recipe, "cpu")).to_pixels(crops)
    section = recipe.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(), section.learning_rate, section.betas, weight_decay=section.weight_decay
    )
    every = {"l1": l1, "l2": l2}

    def run() -> None:
        if wrap:
            made, commitment = model(pixels)
        else:
            out = model(pixels)
            made, commitment = out.pixels, out.quantized.losses["commitment"]
        losses = {name: loss(made, pixels) for name, loss in every.items() if name in recipe.losses}
        objective({**losses, "commitment": commitment}).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), section.clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()

    return run


def measure(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each call in each round, in turns and in another order each time."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name in calls:
        for _ in range(3):
            calls[name]()
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for name in order.permutation([*calls]):
            begin = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - begin)
    return times


def compare(name: str, rounds: int) -> dict[str, Any]:
    """Time a recipe's step in every way; the loop without its discriminator, which bare steps do not have."""
    recipe = read_recipe(RECIPES / f"{name}.toml").model_copy(update={"discriminator": None})
    stage = recipe.stage_at(recipe.steps - 1)
    crops = np.random.default_rng(0).integers(0, 256, (stage.images, stage.size, stage.size, 3), np.uint8)
    times = measure(
        {
            "loop": loop_step(recipe, crops),
            "bare": bare_step(recipe, crops),
            "vector-quantize-pytorch": bare_step(recipe, crops, Rival),
        },
        rounds,
    )
    median = {who: statistics.median(found) for who, found in times.items()}
    # Of pairs of the same round, which met the same moment of the machine.
    overhead = statistics.median(a / b for a, b in zip(times["loop"], times["bare"], strict=True)) - 1
    faster = statistics.median(a / b for a, b in zip(times["vector-quantize-pytorch"], times["loop"], strict=True))
    return {
        "rounds": rounds,
        "seconds": {who: round(x, 5) for who, x in median.items()},
        "images_per_second": {who: round(stage.images / x, 1) for who, x in median.items()},
        "loop_overhead": round(overhead, 4),
        "loop_over_vector_quantize_pytorch": round(faster, 3),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path, help="write the numbers")
    options = parser.parse_args()
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }
    for name in NAMES:
        result[name] = compare(name, options.rounds)
        print(name, json.dumps(result[name]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
