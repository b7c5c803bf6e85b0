"""Everything that changes while a tokenizer is trained, and the step that changes it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vqtok import images
from vqtok.dynamic import DynamicTokenizer
from vqtok.errors import ConfigError, NonFiniteLatents
from vqtok.image_tokenizer import ImageTokenizer
from vqtok.losses import Objective
from vqtok.quantizers import EmaQuantizer, GumbelQuantizer
from vqtok.tokenizer import Tokenizer
from vqtok.training.adversary import Adversary
from vqtok.training.checks import diverged
from vqtok.training.data import BatchShape, TrainingData
from vqtok.training.passes import Passed, TrainingPass, learns
from vqtok.training.recipe import PIXEL_LOSSES, QUANTIZER_LOSSES, SELECTOR_LOSSES, Recipe, Stage
from vqtok.training.schedules import cosine_ramp, value_at
from vqtok.training.sharding import like, load_optimizer, load_whole, rest, whole
from vqtok.training.tally import Tally
from vqtok.training.teacher import Filler

if TYPE_CHECKING:
    from lightning.fabric import Fabric

# So many steps without a finite gradient are no accident of one batch, nor of float16's search for a scale.
HOPELESS = 50
_LATENTS_A_CODE = 8


class TrainingState:
    """A tokenizer with its optimizer, averaged weights and discriminator, at a step.

    Args:
        tokenizer: with fresh weights, or those to go on from.
        recipe: how it is trained.
        perceptual: distance of pixels in [-1, 1], for the loss of that name.
        fabric: what spreads modules over devices and keeps precision.
    """

    def __init__(self, tokenizer: ImageTokenizer, recipe: Recipe, perceptual: nn.Module | None, fabric: Fabric) -> None:
        self.recipe, self.fabric = recipe, fabric
        filler = _filler(tokenizer, recipe)
        self.tokenizer = tokenizer.to(fabric.device)
        self.exhibit = copy.deepcopy(self.tokenizer).eval()
        self.whole = TrainingPass(self.tokenizer, frozenset(recipe.losses), perceptual, recipe.keep_ratio, filler)
        # Stages freeze parts and thaw them again, so the optimizer knows all that ever learns.
        self.tokenizer.requires_grad_(True)
        self.passing: Any = fabric.setup_module(self.whole)
        section = recipe.optimizer
        parameters = [*self.tokenizer.parameters(), *(filler.parameters() if filler else ())]
        optimizer = torch.optim.AdamW(
            parameters, lr=section.learning_rate, betas=section.betas, weight_decay=section.weight_decay
        )
        self.optimizer: Any = fabric.setup_optimizers(optimizer)
        self.average = {name: x.detach().clone() for name, x in self.tokenizer.named_parameters()}
        size = recipe.stages[-1].size
        self.adversary = None if recipe.discriminator is None else Adversary(recipe.discriminator, size, fabric)
        self.tally = Tally(self.tokenizer.vocab_size, fabric.device)
        self.game = Tally(0, fabric.device)
        self.step, self.best, self.best_step, self.averaged_since, self.skipped = 0, -math.inf, 0, 0, 0
        self.channels_last = fabric.device.type != "cpu" or not _has_group_norm(self.tokenizer)
        if recipe.compile:
            self.tokenizer.compile()

    @property
    def stage(self) -> Stage:
        """The stage of the present step."""
        return self.recipe.stage_at(self.step)

    # Stages ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rehearse(self) -> None:
        """Pass two grey images through every stage, so that what the last would refuse is refused now.

        Raises:
            ConfigError: crops of a size that a network does not take, losses that the model does not have, and so on.
        """
        self.tokenizer.eval()
        for stage in self.recipe.stages:
            set_learning(self.tokenizer, stage)
            if stage.size % self.tokenizer.factor:
                raise ConfigError(
                    f"expected crops whose size is among the multiples of {self.tokenizer.factor}, got {stage.size}"
                )
            pixels = self.to_pixels(np.full((2, stage.size, stage.size, 3), 128, np.uint8))
            passed = self.whole(pixels, quantize=stage.quantize, teacher=stage.teacher)
            Objective(self.weights(stage))(passed.losses)
            if self.adversary is not None:
                self.adversary.network.eval()(passed.pixels)
                self.adversary.network.train()
                rest(self.adversary.network)
        rest(self.whole)

    def begin_stage(self, data: TrainingData) -> None:
        """Freeze and thaw; where the way of learning changes, start averages anew; where quantizing begins, codes."""
        stage, recipe = self.stage, self.recipe
        set_learning(self.tokenizer, stage)
        if self.step and not recipe.begins(self.step):
            return
        before = recipe.stage_at(self.step - 1) if self.step else None
        first_codes = stage.quantize and not stage.teacher and not (before and before.quantize and not before.teacher)
        if stage.calibrate or (first_codes and _waiting(self.tokenizer)):
            copy_of_all = self._copy(dict(self.tokenizer.named_parameters()))
            if stage.calibrate:
                self._calibrate(copy_of_all, data)
            if first_codes and _waiting(copy_of_all):
                self._start_codebooks(copy_of_all, data)
            load_whole(self.tokenizer, {**dict(copy_of_all.named_parameters()), **dict(copy_of_all.named_buffers())})
        if before is None or _way(before) != _way(stage):
            self.average = {name: x.detach().clone() for name, x in self.tokenizer.named_parameters()}
            self.averaged_since = self.step

    @torch.no_grad()
    def _start_codebooks(self, tokenizer: ImageTokenizer, data: TrainingData) -> None:
        """Let codebooks that start by k-means see more latents than one batch has."""
        stage, found = self.recipe.stages[0], 0
        wanted = _LATENTS_A_CODE * max((quantizer.vocab_size for quantizer in _waiting(tokenizer)), default=0)
        collected: list[Tensor] = []
        while found < wanted:
            batch = data.calibration(len(collected), BatchShape(stage.images, stage.size))
            pixels = self.to_pixels(batch.images)
            latents = tokenizer.latents(pixels)
            collected.append(latents.flatten(0, -2) if isinstance(tokenizer, Tokenizer) else pixels)
            found += latents.numel() // latents.shape[-1]
        # Every process has seen the same; quantizers join what all of them give.
        share = torch.cat(collected).tensor_split(self.fabric.world_size)[self.fabric.global_rank]
        module = tokenizer.quantizer if isinstance(tokenizer, Tokenizer) else tokenizer
        module.train()(share)
        tokenizer.eval()

    def _calibrate(self, tokenizer: ImageTokenizer, data: TrainingData) -> None:
        """Calibrate on the validation images as they will be tokenized: crops are of another scale."""
        if not isinstance(tokenizer, DynamicTokenizer):
            raise ConfigError("expected a dynamic tokenizer in a stage with calibrate = true, got another")
        pixels = torch.cat([tokenizer.preprocess(photo) for photo in data.validation])
        tokenizer.calibrate(pixels.to(self.fabric.device), self.recipe.keep_ratio)

    # A step ----------------------------------------------------------------------------------------------------------

    def train_step(self, batch: images.RGB) -> None:
        """Do one step on crops uint8 [n, S, S, 3], this process's share of a batch."""
        recipe, step, stage = self.recipe, self.step, self.stage
        # What is random here is a function of the step, so a resumed training needs no generator's state.
        torch.manual_seed(np.random.SeedSequence((recipe.seed, step, self.fabric.global_rank)).generate_state(1)[0])
        self._schedule()
        self.tokenizer.train()
        for name in stage.frozen:  # an average of latents learns without gradients
            self.tokenizer.get_submodule(name).eval()
        pixels = self.to_pixels(batch)
        parts = pixels.chunk(recipe.optimizer.accumulate)
        made: list[Passed] = []
        for index, part in enumerate(parts):
            with self.fabric.no_backward_sync(self.passing, enabled=index + 1 < len(parts)):
                try:
                    passed = self.passing(part, quantize=stage.quantize, teacher=stage.teacher, weigh=self._total)
                except NonFiniteLatents:
                    raise diverged(step, "expected finite latents, got NaN or infinity") from None
                self.fabric.backward(passed.total / len(parts))
            made.append(passed)
        self._update()
        if self.adversary is not None and self.adversary.learns(step) and not stage.teacher:
            fake = torch.cat([passed.pixels for passed in made])
            self.game.add(self.adversary.learn(pixels, fake, step))
        self.step += 1

    def _total(self, passed: Passed) -> Tensor:
        """Return the weighted sum of what a pass gave, and note its parts."""
        objective = Objective(self.weights(self.stage))
        weighted = objective(passed.losses)
        total = weighted.total
        adversary = self.adversary
        if adversary is not None and adversary.minded(self.step) and not self.stage.teacher:
            names = [name for name in passed.losses if name in PIXEL_LOSSES and objective.asks_for(name)]
            nll = sum((objective.weights[name] * passed.losses[name] for name in names), total.new_zeros(()))
            loss, weight = adversary.generator_loss(passed.pixels, nll, last_layer(self.tokenizer), self.step)
            total = total + loss
            self.game.add({"generator": loss, "weight": weight})
        self.tally.add({**passed.losses, "total": total}, passed.codes)
        return total

    def weights(self, stage: Stage) -> dict[str, float]:
        """Return the weights, at the present step, of the losses that a stage has."""
        if stage.teacher:
            return {"l2": 1.0}
        absent = set() if stage.quantize else {*QUANTIZER_LOSSES}
        if not isinstance(self.tokenizer, DynamicTokenizer) or not learns(self.tokenizer.selector):
            absent |= {*SELECTOR_LOSSES}
        return {name: value_at(x, self.step) for name, x in self.recipe.losses.items() if name not in absent}

    def _update(self) -> None:
        """Move the weights, unless the gradient is not finite: then leave them, and give up when it stays so."""
        section = self.recipe.optimizer
        limit = section.clip or math.inf
        norm = self.fabric.clip_gradients(self.passing, self.optimizer, max_norm=limit, error_if_nonfinite=False)
        finite = math.isfinite(norm := float(whole(norm)))
        self.skipped = 0 if finite else self.skipped + 1
        if self.skipped >= HOPELESS:
            raise diverged(self.step, f"expected finite gradients, got none in {HOPELESS} steps")
        # Float16's scaler must see such a step too: it lowers the scale.
        if finite or self.recipe.precision == "float16":
            self.optimizer.step()
        self.optimizer.zero_grad()
        if finite:
            self.tally.add({"gradient_norm": torch.tensor(norm, device=self.fabric.device)})
            self._average()

    def _schedule(self) -> None:
        """Set learning rate and temperature of the step."""
        recipe, section, step = self.recipe, self.recipe.optimizer, self.step
        first, steps = (recipe.stage_start(step), self.stage.steps) if section.restart else (0, recipe.steps)
        share = cosine_ramp(step, start=1.0, end=section.final, steps=steps, first=first)
        warm = min(1.0, (step - first + 1) / section.warmup) if section.warmup else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = section.learning_rate * warm * share
        if recipe.temperature is not None:
            for module in self.tokenizer.modules():
                if isinstance(module, GumbelQuantizer | DynamicTokenizer):
                    module.temperature = value_at(recipe.temperature, step)

    @property
    def learning_rate(self) -> float:
        """The rate of the step that was done last."""
        return self.optimizer.param_groups[0]["lr"]

    @torch.no_grad()
    def _average(self) -> None:
        since = self.step - self.averaged_since
        decay = min(self.recipe.average, (1 + since) / (10 + since))
        for name, weight in self.tokenizer.named_parameters():
            self.average[name].lerp_(weight, 1 - decay)

    def shown(self) -> ImageTokenizer:
        """Return a tokenizer of averaged weights and of the codebooks as they are: those are averages already.

        All processes must ask together.
        """
        return self._copy(self.average)

    def _copy(self, parameters: Mapping[str, Tensor]) -> ImageTokenizer:
        """Return a tokenizer of these parameters and the present buffers; one and the same object each time."""
        load_whole(self.exhibit, whole({**parameters, **dict(self.tokenizer.named_buffers())}))
        return self.exhibit

    def to_pixels(self, batch: images.RGB) -> Tensor:
        """Return pixels float [n, 3, S, S] of crops uint8 [n, S, S, 3]."""
        pixels = np.stack([images.to_pixels(image, self.tokenizer.spec) for image in batch])
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return torch.from_numpy(pixels).to(self.fabric.device, memory_format=layout)

    # Files -----------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return everything a resumed training needs, as `restore` takes it; all processes must ask together."""
        filler = self.whole.filler
        state = {
            "step": self.step,
            "best": self.best,
            "best_step": self.best_step,
            "averaged_since": self.averaged_since,
            "skipped": self.skipped,
            "tokenizer": self.tokenizer.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "filler": {} if filler is None else filler.state_dict(),
            "adversary": {} if self.adversary is None else self.adversary.state(),
            "tally": self.tally.state(),
            "game": self.game.state(),
        }
        return whole(state)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.step, self.best, self.best_step = state["step"], state["best"], state["best_step"]
        self.averaged_since, self.skipped = state["averaged_since"], state["skipped"]
        load_whole(self.tokenizer, state["tokenizer"])
        self.average = {name: like(state["average"][name], x) for name, x in self.average.items()}
        load_optimizer(self.optimizer, state["optimizer"])
        if self.whole.filler is not None:
            load_whole(self.whole.filler, state["filler"])
        if self.adversary is not None:
            self.adversary.restore(state["adversary"])
        self.tally.restore(state["tally"])
        self.game.restore(state["game"])


def set_learning(tokenizer: ImageTokenizer, stage: Stage) -> None:
    """Let gradients into what learns in a stage: of a dynamic tokenizer the teacher alone, or all but the teacher."""
    known = dict(tokenizer.named_children())
    if unknown := [name for name in stage.frozen if name not in known]:
        raise ConfigError(f"expected frozen to name parts of the tokenizer ({', '.join(known)}), got {unknown[0]!r}")
    dynamic = isinstance(tokenizer, DynamicTokenizer)
    for name, part in known.items():
        teacher = dynamic and name == "features"
        part.requires_grad_((teacher if stage.teacher else not teacher) and name not in stage.frozen)


def last_layer(tokenizer: ImageTokenizer) -> Tensor | None:
    """Return the weight through which all reconstructed pixels go last, or None where there is none to name."""
    decoder = getattr(tokenizer, "decoder", None) or getattr(tokenizer, "pixel_decoder", None)
    weights = [] if decoder is None else [x for x in decoder.parameters() if x.ndim > 1]
    return weights[-1] if weights else None


def _waiting(module: nn.Module) -> list[EmaQuantizer]:
    """Return the quantizers that are yet to be started by k-means."""
    found = [x for x in module.modules() if isinstance(x, EmaQuantizer)]
    return [x for x in found if x.kmeans_iterations and not x.started]


def _way(stage: Stage) -> tuple[bool, bool, tuple[str, ...]]:
    return stage.quantize, stage.teacher, stage.frozen


def _has_group_norm(module: nn.Module) -> bool:
    # On CPUs torch's is wrong in channels_last.
    return any(isinstance(x, nn.GroupNorm) for x in module.modules())


def _filler(tokenizer: ImageTokenizer, recipe: Recipe) -> Filler | None:
    wanted = any(stage.teacher for stage in recipe.stages) or set(recipe.losses) & {*SELECTOR_LOSSES}
    if not wanted or not isinstance(tokenizer, DynamicTokenizer):
        return None
    return Filler(tokenizer.factor, tokenizer.merger.width)
