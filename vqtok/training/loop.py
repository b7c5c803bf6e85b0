"""The training loop: reconstruction by mean squared error, commitment, averaged weights; resumable at any step."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vqtok import images, streaming
from vqtok.errors import ConfigError
from vqtok.evaluation.metrics import psnr
from vqtok.image_tokenizer import Precision
from vqtok.quantizers import EmaQuantizer
from vqtok.quantizers.base import effective_latents
from vqtok.tokenizer import Tokenizer
from vqtok.training.crops import PhotoCrops


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train.

    Attributes:
        steps: optimizer steps.
        stages: (share of the steps at which the stage ends, crops a batch, side of a crop in pixels).
        learning_rate: its peak, after warm-up; falls along a cosine to a hundredth.
        warmup: steps of linear warm-up.
        continuous: first steps without quantization, so that k-means starts from latents that mean something.
        commitment: weight of the commitment loss; mean squared error of pixels in the model's range has weight 1.
        average: decay of the averaged weights, which are what is validated and saved.
        clip: largest gradient norm.
        validate_every: steps between validations; a checkpoint is written too.
        precision: of the networks while they train; validation and the saved model are float32.
    """

    steps: int
    stages: tuple[tuple[float, int, int], ...] = ((0.6, 32, 64), (1.0, 8, 128))
    learning_rate: float = 8e-4
    warmup: int = 200
    continuous: int = 400
    commitment: float = 0.1
    average: float = 0.999
    clip: float = 1.0
    validate_every: int = 500
    precision: Precision = "float32"

    def batch_shape(self, step: int) -> tuple[int, int]:
        """Return crops a batch and their side at a step."""
        return next((count, size) for end, count, size in self.stages if step < end * self.steps or end >= 1)

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * cosine


class Run:
    """The state of a training and its folder: ``last.pt``, ``metrics.jsonl``, ``best/`` (a model folder)."""

    def __init__(self, tokenizer: Tokenizer, recipe: Recipe, folder: Path) -> None:
        if not isinstance(tokenizer.quantizer, EmaQuantizer):
            raise ConfigError(f"expected a tokenizer with EmaQuantizer, got {type(tokenizer.quantizer).__name__}")
        self.tokenizer, self.quantizer, self.recipe, self.folder = tokenizer, tokenizer.quantizer, recipe, folder
        self.parameters = list(tokenizer.parameters())
        self.averaged = copy.deepcopy(tokenizer)
        self.averaged.quantizer = tokenizer.quantizer  # the codebook is an average already
        tokenizer.precision = recipe.precision
        self.optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, 0.99), weight_decay=1e-4)
        self.step, self.best = 0, -math.inf
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "last.pt").exists():
            self._restore(torch.load(folder / "last.pt", weights_only=True))

    def train_step(self, crops: PhotoCrops) -> dict[str, float]:
        """Do one step and return its losses."""
        recipe = self.recipe
        if self.step == recipe.continuous:
            self._start_codebook(crops)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(self.step)
        pixels = self._pixels(crops.batch(self.step, *recipe.batch_shape(self.step)))
        if self.step < recipe.continuous:
            vectors = effective_latents(self.tokenizer.latents(pixels), self.quantizer.metric)
            reconstructed, commitment = self.tokenizer.decode_vectors(vectors), pixels.new_zeros(())
        else:
            reconstruction = self.tokenizer(pixels)
            reconstructed, commitment = reconstruction.pixels, reconstruction.quantized.losses["commitment"]
        mse = (reconstructed - pixels).square().mean()
        self.optimizer.zero_grad()
        (mse + recipe.commitment * commitment).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, recipe.clip)
        self.optimizer.step()
        self.step += 1
        self._average()
        return {"mse": mse.item(), "commitment": commitment.item()}

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.recipe.average, (1 + self.step) / (10 + self.step))
        averages = [*self.averaged.encoder.parameters(), *self.averaged.decoder.parameters()]
        weights = [*self.tokenizer.encoder.parameters(), *self.tokenizer.decoder.parameters()]
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight, 1 - decay)

    @torch.no_grad()
    def _start_codebook(self, crops: PhotoCrops) -> None:
        """Run k-means on latents of about eight crops a code, of batches that training never sees."""
        latents, wanted = [], 8 * self.quantizer.vocab_size
        for i in range(self.recipe.steps, 2 * self.recipe.steps):
            found = self.tokenizer.latents(self._pixels(crops.batch(i, *self.recipe.batch_shape(0))))
            latents.append(found.reshape(-1, self.quantizer.dim))
            if sum(map(len, latents)) >= wanted:
                break
        self.quantizer.initialize(torch.cat(latents))

    def _pixels(self, batch: images.RGB) -> Tensor:
        pixels = np.stack([images.to_pixels(image, self.tokenizer.spec) for image in batch])
        return torch.from_numpy(pixels).to(self.tokenizer.device, memory_format=torch.channels_last)

    def validate(self, photos: Sequence[images.RGB]) -> float:
        """Return the mean PSNR in dB over photographs, and keep the averaged weights if it is the best so far."""
        found = float(
            np.mean([psnr(a, b) for a, b in zip(photos, reconstructions(self.averaged, photos), strict=True)])
        )
        if found > self.best:
            self.best = found
            self.averaged.save(self.folder / "best", overwrite=True, dtype="float16")
        return found

    def checkpoint(self) -> None:
        """Replace ``last.pt``."""
        state = {
            "step": self.step,
            "best": self.best,
            "tokenizer": self.tokenizer.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        torch.save(state, self.folder / "last.tmp")
        os.replace(self.folder / "last.tmp", self.folder / "last.pt")

    def _restore(self, state: dict) -> None:
        self.step, self.best = state["step"], state["best"]
        self.averaged.load_state_dict(state["averaged"])
        self.tokenizer.load_state_dict(state["tokenizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])


def fit(tokenizer: Tokenizer, crops: PhotoCrops, photos: Sequence[images.RGB], recipe: Recipe, folder: Path) -> Path:
    """Train a tokenizer, or go on with a training that was stopped.

    Args:
        tokenizer: with fresh weights; a resumed run brings its own.
        crops: what to train on.
        photos: what to choose the best weights on, uint8 [H, W, 3] each; never what is reported.
        recipe: how to train.
        folder: of the run; ``metrics.jsonl`` gets a line at each validation.

    Returns:
        The model folder with the best weights.
    """
    run = Run(tokenizer.to(memory_format=torch.channels_last).train(), recipe, folder)
    losses: list[dict[str, float]] = []
    started, first = time.monotonic(), run.step
    with tqdm(total=recipe.steps, initial=run.step, unit="step", mininterval=5) as bar:
        while run.step < recipe.steps:
            losses.append(run.train_step(crops))
            bar.update()
            if run.step % recipe.validate_every and run.step < recipe.steps:
                continue
            means = {name: float(np.mean([x[name] for x in losses])) for name in losses[0]}
            speed = (time.monotonic() - started) / (run.step - first)
            row = {"step": run.step, "seconds_a_step": round(speed, 3), **means, "psnr": run.validate(photos)}
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            bar.set_postfix({"psnr": f"{row['psnr']:.2f} dB", "mse": f"{means['mse']:.4f}"})
            run.checkpoint()
            losses = []
    return folder / "best"


def reconstructions(tokenizer: Tokenizer, photos: Sequence[images.RGB]) -> Iterator[images.RGB]:
    """Yield photographs uint8 [H, W, 3] after the way through tokens."""
    for photo in photos:
        yield next(streaming.detokenize(tokenizer, tokenizer.tokenize(photo)))
