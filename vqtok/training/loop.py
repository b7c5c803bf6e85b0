"""The training loop: batches in; a log, pictures, checkpoints and a model folder out; stopped and resumed anywhere."""

from __future__ import annotations

import io
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from vqtok import images
from vqtok.dynamic import DynamicTokenizer
from vqtok.errors import ConfigError, InputError, MismatchError
from vqtok.evaluation.metrics import codebook_usage, mean_psnr
from vqtok.image_tokenizer import ImageTokenizer
from vqtok.loading import build, load
from vqtok.quantizers import EmaQuantizer
from vqtok.training.alarms import Watch
from vqtok.training.checkpoints import Checkpoints
from vqtok.training.checks import check_memory, diverged, not_finite
from vqtok.training.curves import draw_curves
from vqtok.training.data import BatchShape, TrainingData
from vqtok.training.folder import RunFolder
from vqtok.training.log import Log
from vqtok.training.pictures import draw_growth, validation_picture
from vqtok.training.processes import Strategy, any_process, launch, losses_named
from vqtok.training.progress import Progress
from vqtok.training.recipe import Recipe, read_recipe
from vqtok.training.state import TrainingState
from vqtok.training.tensorboard import Board
from vqtok.types import Tokens

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_SAMPLE = 8  # images that are cut for a trial
_PATIENCE = 1.0  # seconds: torchrun passes on what a terminal has sent to all processes already


def train(
    recipe: Recipe | str | os.PathLike[str] | Mapping[str, Any],
    output: str | os.PathLike[str],
    *,
    changes: Sequence[str] = (),
    device: str = "auto",
    strategy: Strategy = "ddp",
    overwrite: bool = False,
) -> Path:
    """Train a tokenizer, or go on with a training that was stopped: at any moment, to the same weights.

    Started by torchrun it runs in all of its processes.

    Args:
        recipe: a TOML file, what such a file holds, or a `Recipe`.
        output: the run folder; one that has checkpoints of the same recipe is continued.
        changes: ``"a.b=value"`` each, set in the recipe.
        device: ``auto``, ``cpu`` or ``cuda``.
        strategy: what several processes do with the weights: ``ddp`` has all of them everywhere, ``fsdp`` a piece of
            each, with its moments (FSDP2).
        overwrite: forget the training that is in the run folder, once nothing else stands against the new one.

    Returns:
        The model folder with the averaged weights that were best on the validation images.

    Raises:
        ConfigError: a recipe that is refused, or a training that diverged.
        InputError: no images, or a model to start from that cannot be used.
        IntegrityError: the last checkpoint is damaged.
        MismatchError: the run folder is of another recipe.
        OutputError: the disk refused, and the last checkpoint is intact; or another process trains there.
        ResourceError: too little memory, a library or device that is not there, a process that was lost.
        TooManyFailures: more images were refused than the recipe allows.
    """
    if isinstance(recipe, str | os.PathLike):
        recipe = read_recipe(recipe, changes)
    elif not isinstance(recipe, Recipe):
        recipe = Recipe.from_mapping(recipe)
    folder, fabric = RunFolder(output), launch(recipe, device, strategy)
    with losses_named(fabric), folder.held() if fabric.is_global_zero else nullcontext():
        Run(folder, recipe, fabric, overwrite=overwrite).work()
    return folder.model


class Run:
    """A run folder and the training that writes it: nothing is written before all that can be known is in order.

    Args:
        folder: of the run, held by this process or by the first of several.
        recipe: how to train.
        fabric: from `launch`.
        overwrite: whether the training that is there is forgotten.
    """

    def __init__(self, folder: RunFolder, recipe: Recipe, fabric: Fabric, *, overwrite: bool = False) -> None:
        self.folder, self.recipe, self.fabric = folder, recipe, fabric
        folder.check(recipe, overwrite=overwrite)
        self.data, self.state = prepare(recipe, fabric)
        self.checkpoints = Checkpoints(folder.checkpoints)
        saved = None if overwrite else self.checkpoints.read_last()
        if saved is not None:
            self.state.restore(saved)
        fabric.barrier()
        self.watch, self.failures = Watch(), 0
        self.board = Board(folder.board, self.state.step)
        if fabric.is_global_zero:
            folder.claim(recipe, overwrite=overwrite)
            self.log = Log(folder.path)  # the first process writes it alone
            self.log.cut(self.state.step)
            for row in self.log.rows():
                self.watch.feed(row)

    def work(self) -> None:
        """Train to the end."""
        state, recipe = self.state, self.recipe
        if state.step >= recipe.steps:
            return
        self.note(start_row(state, self.fabric))
        shape_of = lambda step: BatchShape(recipe.stage_at(step).images, recipe.stage_at(step).size)  # noqa: E731
        batches = self.data.batches(
            state.step, shape_of, rank=self.fabric.global_rank, world_size=self.fabric.world_size
        )
        clock = Clock()
        with interruptible() as interruption, self._progress() as progress, closing(batches), closing(self.board):
            state.begin_stage(self.data)
            while state.step < recipe.steps:
                with clock.waiting():
                    batch = next(batches)
                self.failures += len(batch.failures)
                for failure in batch.failures:
                    progress.say(f"left out: {failure.message}")
                state.train_step(batch.images)
                clock.images += len(batch.images) * self.fabric.world_size
                self._after_step(clock, progress)
                if any_process(self.fabric, bool(interruption)):
                    self.checkpoint()
                    progress.say(f"interrupted after step {state.step:,}: the same command goes on from there")
                    raise SystemExit(128 + (interruption or [signal.SIGTERM])[0])

    def _after_step(self, clock: Clock, progress: Progress) -> None:
        state, recipe, step = self.state, self.recipe, self.state.step
        if step % recipe.log_every == 0 or step == recipe.steps:
            row = self._train_row(clock)
            self.note(row, progress)
        progress.advance(step)
        validated = step % recipe.validate_every == 0 or step == recipe.steps
        if validated:
            with clock.paused():
                if state.recipe.stage_at(step - 1).quantize and not state.recipe.stage_at(step - 1).teacher:
                    self.validate(progress)
        if step < recipe.steps and recipe.begins(step):
            state.begin_stage(self.data)
        if validated:
            with clock.paused():
                self.checkpoint()

    def _progress(self) -> Progress:
        silent = None if self.fabric.is_global_zero else io.StringIO()
        return Progress(self.recipe.steps, self.state.step, stream=silent)

    # What a person sees ----------------------------------------------------------------------------------------------

    def note(self, row: Mapping[str, Any], progress: Progress | None = None) -> None:
        """Write a row of the log wherever it is read, and the alarms that it sets off."""
        if not self.fabric.is_global_zero:
            return
        alarms = self.watch.feed(row)
        for each in (row, *(alarm.row() for alarm in alarms)):
            self.log.append(each)
            self.board.write(each)
        if progress is not None:
            progress.show(row)
            for alarm in alarms:
                progress.say(alarm.text())

    def _train_row(self, clock: Clock) -> dict[str, Any]:
        state = self.state
        tally, game = state.tally.joined(), state.game.joined()
        means = tally.means()
        row: dict[str, Any] = {
            "event": "train",
            "step": state.step,
            **clock.facts(),
            "learning_rate": state.learning_rate,
        }
        row |= {name: means.pop(name) for name in ("total", "gradient_norm") if name in means}
        row["losses"] = means
        if (usage := tally.usage()) is not None:
            row |= {"usage": usage, "perplexity": tally.perplexity()}
        if game.sums:
            row["discriminator"] = game.means()
        if self.failures:
            row["failures"] = self.failures
        state.tally.clear()
        state.game.clear()
        return row

    def check_finite(self) -> None:
        """Raise ConfigError when weights are not finite: no step will bring them back."""
        if name := not_finite(self.state.tokenizer):
            raise diverged(self.state.step, f"expected finite weights, but {name} holds NaN or infinity")

    def validate(self, progress: Progress) -> None:
        """Reconstruct the validation images; keep the weights when they are the best so far."""
        self.check_finite()
        state, tokenizer = self.state, self.state.shown()
        if self.fabric.is_global_zero:
            photos = [images.to_rgb(photo, tokenizer.spec) for photo in self.data.validation]
            tokens, back = reconstruct(tokenizer, photos)
            row: dict[str, Any] = {"event": "validate", "step": state.step}
            if back:
                row["psnr"] = mean_psnr(photos, back)
            found = row.get("psnr", -math.inf)
            best = found > state.best or self.recipe.best == "last" or not back
            row |= {"usage": codebook_usage(tokens), "best": best}
            if best:
                state.best, state.best_step = found, state.step
                tokenizer.save(self.folder.model, overwrite=True)
            if back:
                picture = validation_picture(photos, back, [*tokens], self.folder.pictures / f"{state.step:08d}.png")
                self.board.picture(state.step, picture)
            self.note(row, progress)
            draw_growth(self.folder.path)
            draw_curves(self.folder.path, self.log.rows())
        self.fabric.barrier()

    def checkpoint(self) -> None:
        """Write everything that a resumed training needs; never what it could not go on from.

        Raises:
            ConfigError: there are weights that are not finite.
        """
        self.check_finite()
        state = self.state.state()
        if self.fabric.is_global_zero:
            self.checkpoints.write(self.state.step, state, self.state.best_step)
        self.fabric.barrier()


@dataclass(slots=True)
class Clock:
    """How long it takes: seconds since the start, images a second and the share of time that data kept us waiting."""

    started: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)
    waited: float = 0.0
    away: float = 0.0
    images: int = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as waiting for data."""
        begun = time.monotonic()
        yield
        self.waited += time.monotonic() - begun

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the block out of images a second."""
        begun = time.monotonic()
        yield
        self.away += time.monotonic() - begun

    def facts(self) -> dict[str, float]:
        """Return the facts since the last call."""
        now = time.monotonic()
        spent = max(now - self.last - self.away, 1e-9)
        facts = {
            "seconds": round(now - self.started, 3),
            "images_per_second": round(self.images / spent, 3),
            "data_wait": round(self.waited / spent, 4),
        }
        self.last, self.waited, self.away, self.images = now, 0.0, 0.0, 0
        return facts


def prepare(recipe: Recipe, fabric: Fabric) -> tuple[TrainingData, TrainingState]:
    """Return a recipe's images and the state that it starts from, and try what can be tried of them.

    Raises:
        ConfigError: a stage that the model does not take.
        InputError: no images, or a model to start from that cannot be used.
        ResourceError: batches that no machine like this can hold.
        TooManyFailures: of the first images more are refused than the recipe allows.
    """
    check_memory(recipe, fabric.world_size)
    data = TrainingData(recipe.data, recipe.seed, Path())
    data.calibration(0, BatchShape(min(_SAMPLE, recipe.stages[0].images), recipe.stages[0].size))
    _ = data.validation
    torch.manual_seed(recipe.seed)  # of the weights, the same in all processes
    state = TrainingState(start_tokenizer(recipe), recipe, perceptual_loss(recipe), fabric)
    state.rehearse()
    return data, state


def start_tokenizer(recipe: Recipe) -> ImageTokenizer:
    """Return the tokenizer that a recipe starts from."""
    model = recipe.model
    if model.start:
        tokenizer = load(model.start)
        if name := not_finite(tokenizer):
            raise InputError(
                f"{model.start!r}: expected a model with finite weights, but {name} holds NaN or infinity: start from "
                "another"
            )
        for module in tokenizer.modules():
            if isinstance(module, EmaQuantizer):
                module.adopt_codebook()
        return tokenizer
    tokenizer = build(model.preset, **model.options)
    if model.teacher:
        teacher = load(model.teacher)
        if not (isinstance(teacher, DynamicTokenizer) and isinstance(tokenizer, DynamicTokenizer)):
            raise ConfigError(f"expected two dynamic tokenizers, {model.preset!r} and model.teacher: {model.teacher!r}")
        if mismatched(teacher.features, tokenizer.features):
            raise MismatchError(
                f"expected model.teacher with the preset's architecture, got another: {model.teacher!r}"
            )
        tokenizer.features.load_state_dict(teacher.features.state_dict())
    return tokenizer


def mismatched(a: nn.Module, b: nn.Module) -> bool:
    """Tell whether two modules have other tensors by name or shape."""
    shapes = [{name: x.shape for name, x in module.state_dict().items()} for module in (a, b)]
    return shapes[0] != shapes[1]


def perceptual_loss(recipe: Recipe) -> nn.Module | None:
    """Return the loss ``perceptual``, if the recipe asks for it."""
    if "perceptual" not in recipe.losses:
        return None
    from vqtok.adapters.perceptual_networks import perceptual_network

    return perceptual_network(recipe.perceptual.network, recipe.perceptual.weights or None).loss()


def reconstruct(tokenizer: ImageTokenizer, photos: Sequence[images.RGB]) -> tuple[Tokens, list[images.RGB]]:
    """Return the tokens of photographs, and what these give back: nothing where a model decodes to features only."""
    tokens = tokenizer.tokenize(photos)
    if isinstance(tokenizer, DynamicTokenizer) and tokenizer.pixel_decoder is None:
        return tokens, []
    return tokens, [np.asarray(image) for image in tokenizer.detokenize(tokens)]


def start_row(state: TrainingState, fabric: Fabric) -> dict[str, Any]:
    """Return the log's row of a start."""
    return {
        "event": "start",
        "step": state.step,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": fabric.device.type,
        "world_size": fabric.world_size,
        "parameters": sum(x.numel() for x in state.tokenizer.parameters()),
    }


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, so that a step is finished first; one a second later ends at once."""
    came: list[int] = []
    first = 0.0

    def note(number: int, _: FrameType | None) -> None:
        nonlocal first
        if came and time.monotonic() - first > _PATIENCE:
            raise KeyboardInterrupt
        first = first or time.monotonic()
        came.append(number)

    kinds = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(kind, note) for kind in kinds]
    except ValueError:  # not the main thread: whoever runs it there handles signals
        yield came
        return
    try:
        yield came
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
