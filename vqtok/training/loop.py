"""The training loop: batches in; a log, pictures, checkpoints and a model folder out; stopped and resumed anywhere."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from vqtok import images
from vqtok.dynamic import DynamicTokenizer
from vqtok.errors import ConfigError, MismatchError, ResourceError
from vqtok.evaluation.metrics import psnr
from vqtok.image_tokenizer import ImageTokenizer
from vqtok.loading import build, load
from vqtok.quantizers import EmaQuantizer
from vqtok.training.alarms import Watch
from vqtok.training.checkpoints import Checkpoints
from vqtok.training.curves import draw_curves
from vqtok.training.data import BatchShape, TrainingData
from vqtok.training.folder import RunFolder
from vqtok.training.log import Log
from vqtok.training.pictures import draw_growth, validation_picture
from vqtok.training.progress import Progress
from vqtok.training.recipe import Recipe, read_recipe
from vqtok.training.sharding import shard
from vqtok.training.state import TrainingState
from vqtok.training.tensorboard import Board
from vqtok.types import Tokens

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Strategy: TypeAlias = Literal["ddp", "fsdp"]
_PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


def train(
    recipe: Recipe | str | os.PathLike[str] | Mapping[str, Any],
    output: str | os.PathLike[str],
    *,
    changes: Sequence[str] = (),
    device: str = "auto",
    strategy: Strategy = "ddp",
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

    Returns:
        The model folder with the averaged weights that were best on the validation images.

    Raises:
        ConfigError: a recipe that is refused, or a training that diverged.
        InputError: no images.
        MismatchError: the run folder is of another recipe.
        OutputError: the disk refused; the last checkpoint is intact.
        TooManyFailures: more images were refused than the recipe allows.
    """
    if isinstance(recipe, str | os.PathLike):
        recipe = read_recipe(recipe, changes)
    elif not isinstance(recipe, Recipe):
        recipe = Recipe.from_mapping(recipe)
    folder = RunFolder(output)
    Run(folder, recipe, launch(recipe, device, strategy)).work()
    return folder.model


def launch(recipe: Recipe, device: str = "auto", strategy: Strategy = "ddp") -> Fabric:
    """Return the Fabric of this process, or of this one among torchrun's.

    Raises:
        ResourceError: Lightning is not installed.
    """
    try:
        from lightning.fabric import Fabric
        from lightning.fabric.strategies.ddp import DDPStrategy
        from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
    except ImportError:
        raise ResourceError("expected Lightning for training: pip install 'vqtok[train]'") from None
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    # DDP must know whether some weights get no gradient at a step, as those of frozen parts.
    idle = any(stage.teacher or stage.frozen or not stage.quantize for stage in recipe.stages)
    several = {
        "ddp": lambda: DDPStrategy(find_unused_parameters=idle),
        "fsdp": lambda: ModelParallelStrategy(shard, data_parallel_size=world, tensor_parallel_size=1),
    }
    fabric = Fabric(
        accelerator="auto" if device == "auto" else device,
        devices=local,
        num_nodes=max(1, world // local),
        strategy=several[strategy]() if world > 1 else "auto",
        precision=_PRECISIONS[recipe.precision],  # pyright: ignore[reportArgumentType]
    )
    fabric.launch()
    return fabric


class Run:
    """A run folder and the training that writes it.

    Args:
        folder: of the run; made when it is not there.
        recipe: how to train.
        fabric: from `launch`.
    """

    def __init__(self, folder: RunFolder, recipe: Recipe, fabric: Fabric) -> None:
        self.folder, self.recipe, self.fabric = folder, recipe, fabric
        if fabric.is_global_zero:
            folder.claim(recipe)
        fabric.barrier()
        self.data = TrainingData(recipe.data, recipe.seed, Path())
        torch.manual_seed(recipe.seed)  # of the weights, the same in all processes
        self.state = TrainingState(start_tokenizer(recipe), recipe, perceptual_loss(recipe), fabric)
        self.state.rehearse()
        self.checkpoints = Checkpoints(folder.checkpoints)
        if (saved := self.checkpoints.read_last()) is not None:
            self.state.restore(saved)
        self.log, self.watch, self.failures = Log(folder.path), Watch(), 0
        if fabric.is_global_zero:
            self.log.cut(self.state.step)
        for row in self.log.rows():
            self.watch.feed(row)
        self.board = Board(folder.board, self.state.step)

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
                if interruption:
                    self.checkpoint()
                    raise SystemExit(128 + interruption[0])

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
        state.tally = type(tally)(len(tally.histogram), tally.histogram.device)
        state.game = type(game)(0, game.histogram.device)
        return row

    def validate(self, progress: Progress) -> None:
        """Reconstruct the validation images; keep the weights when they are the best so far."""
        state, tokenizer = self.state, self.state.shown()
        if self.fabric.is_global_zero:
            photos = [images.to_rgb(photo, tokenizer.spec) for photo in self.data.validation]
            tokens, back = reconstruct(tokenizer, photos)
            found = float(np.mean([psnr(a, b) for a, b in zip(photos, back, strict=True)]))
            usage = len(np.unique(tokens.ids)) / tokens.vocab_size
            best = found > state.best or self.recipe.best == "last"
            if best:
                state.best, state.best_step = found, state.step
                tokenizer.save(self.folder.model, overwrite=True)
            os.makedirs(self.folder.pictures, exist_ok=True)
            picture = validation_picture(photos, back, [*tokens], self.folder.pictures / f"{state.step:08d}.png")
            self.board.picture(state.step, picture)
            self.note({"event": "validate", "step": state.step, "psnr": found, "usage": usage, "best": best}, progress)
            draw_growth(self.folder.path)
            draw_curves(self.folder.path, self.log.rows())
        self.fabric.barrier()

    def checkpoint(self) -> None:
        """Write everything that a resumed training needs."""
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


def start_tokenizer(recipe: Recipe) -> ImageTokenizer:
    """Return the tokenizer that a recipe starts from."""
    model = recipe.model
    if model.start:
        tokenizer = load(model.start)
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
    """Return the tokens of photographs, and what these give back."""
    tokens = tokenizer.tokenize(photos)
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
    """Collect SIGINT and SIGTERM in a list, so that a step is finished first; a second one ends at once."""
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
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
