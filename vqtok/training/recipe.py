"""Recipes: how a tokenizer is trained, as data that a person can read."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, model_validator
from typing_extensions import Self

from vqtok.architecture import override, read_section
from vqtok.architecture.section import Section
from vqtok.errors import ConfigError, InputError
from vqtok.losses.adversarial import AdversarialKind
from vqtok.presets import find_preset
from vqtok.training.data import DataSection
from vqtok.training.schedules import Ramp

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)] | Ramp
Betas = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]

# Of the reconstruction; what a quantizer adds has names of its own (`Quantizer.forward`).
PIXEL_LOSSES = ("l1", "l2", "logit_laplace", "perceptual")
FEATURE_LOSSES = ("features", "keep_ratio")
SELECTOR_LOSSES = ("expected_ratio", "surprise")
QUANTIZER_LOSSES = ("codebook", "commitment", "index", "entropy", "diversity", "orthogonality", "kl")


class ModelSection(Section):
    """What is trained.

    Attributes:
        preset: a name of `vqtok.presets.PRESETS`, with fresh weights; or "", and ``start`` says.
        start: a model folder or a published checkpoint to go on from.
        teacher: a dynamic tokenizer, as a model folder or a published checkpoint, whose teacher the preset's is to be.
        options: of the preset, as `vqtok.build` takes them.
    """

    preset: str = ""
    start: str = ""
    teacher: str = ""
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Refuse both and neither; look the preset and its options up now, not an hour later."""
        if bool(self.preset) == bool(self.start):
            raise ValueError(f"expected either preset or start, got {self.preset!r} and {self.start!r}")
        if self.start and (self.options or self.teacher):
            raise ValueError("expected no options and no teacher with start: that model has its own")
        if self.preset:
            try:
                override(find_preset(self.preset).architecture, self.options)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return self


class Stage(Section):
    """A part of the training; stages follow each other.

    Attributes:
        steps: optimizer steps.
        images: images a batch, over all processes.
        size: side of a crop in pixels.
        quantize: whether vectors go through the quantizer. A first stage without lets k-means start from latents that
            mean something; LaVIT's selector and merger learn so.
        teacher: train the teacher of a dynamic tokenizer alone, on pictures with holes.
        frozen: parts of the tokenizer that do not learn, such as ``encoder`` or ``selector``.
        calibrate: before the stage, shift the selector's scores so that it keeps the recipe's ``keep_ratio`` of the
            validation images.
    """

    steps: Count
    images: Annotated[int, Field(ge=1, le=1 << 20)]
    size: Annotated[int, Field(ge=1, le=1 << 14)]
    quantize: bool = True
    teacher: bool = False
    frozen: tuple[str, ...] = ()
    calibrate: bool = False


class OptimizerSection(Section):
    """Adam, with decoupled weight decay where there is any.

    Attributes:
        learning_rate: its peak.
        betas: decays of the moments.
        weight_decay: decoupled (AdamW).
        warmup: steps over which the rate rises from 0 in a straight line.
        final: the rate at the end as a share of the peak: along a cosine, counted from the first step.
        restart: whether every stage has a warm-up and a cosine of its own.
        clip: largest norm of the gradient; 0 for any.
        accumulate: parts into which a batch is cut; their gradients are added up.
    """

    learning_rate: Positive
    betas: Betas = (0.9, 0.99)
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    warmup: Annotated[int, Field(ge=0)] = 0
    final: Share = 1.0
    restart: bool = False
    clip: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    accumulate: Count = 1


class PerceptualSection(Section):
    """The network whose features the loss ``perceptual`` compares.

    Attributes:
        network: ``efficientnet-lite0``, ``lpips-vgg`` or ``lpips-alex``.
        weights: their file; searched for in installed packages when empty, and never downloaded.
    """

    network: str = "efficientnet-lite0"
    weights: str = ""


class DiscriminatorSection(Section):
    """The other player.

    Attributes:
        kind: ``patch`` (Isola et al. 2017; VQGAN) or ``style`` (Karras et al. 2020; ViT-VQGAN).
        start: step from which the tokenizer minds it.
        warmup: steps before ``start`` in which it learns already, so that it knows something when it is minded.
        loss: ``hinge`` or ``softplus``.
        weight: of the generator's loss; with ``adaptive`` times VQGAN's adaptive weight.
        adaptive: whether the weight follows the gradients at the decoder's last layer (Esser et al. 2021, equation 7).
        ramp: steps over which the weight grows from 0 after ``start``.
        channels: of its first layer.
        layers: halvings of ``patch``.
        learning_rate: its own.
        betas: of its Adam.
        r1: gamma of the R1 penalty, 0 for none.
        r1_every: steps between two penalties, each so many times as heavy.
        lecam: weight of the LeCam penalty.
    """

    kind: Literal["patch", "style"] = "patch"
    start: Annotated[int, Field(ge=0)] = 0
    warmup: Annotated[int, Field(ge=0)] = 0
    loss: AdversarialKind = "hinge"
    weight: Positive = 1.0
    adaptive: bool = False
    ramp: Annotated[int, Field(ge=0)] = 0
    channels: Count = 64
    layers: Annotated[int, Field(ge=1, le=8)] = 3
    learning_rate: Positive
    betas: Betas = (0.5, 0.9)
    r1: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    r1_every: Count = 16
    lecam: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class Recipe(Section):
    """How to train a tokenizer.

    Attributes:
        model: what.
        data: on what.
        stages: for how long, in which batches.
        losses: weight of each loss by name; a number, or a ramp over steps.
        optimizer: of the tokenizer.
        discriminator: the other player, or None.
        perceptual: network of the loss ``perceptual``.
        temperature: of Gumbel quantization and of the dynamic tokenizer's selection, over steps.
        keep_ratio: share of patches that a dynamic tokenizer shall keep: rho of its losses.
        average: decay of the averaged weights, which are validated and saved; 0 for the weights as they are.
        precision: of the networks; ``float16`` scales its losses. Validation and the saved model are float32.
        compile: whether torch compiles the networks.
        seed: of weights, batches and everything else.
        log_every: steps between two rows of ``metrics.jsonl``.
        validate_every: steps between two validations, each with a checkpoint and a picture.
        best: which weights the run's model folder holds: those of the highest PSNR, or the last ones.

    >>> recipe = Recipe.from_mapping({
    ...     "model": {"preset": "vqvae-tiny"}, "data": {"train": [{"path": "photos"}], "validate_on": ["held-out"]},
    ...     "stages": [{"steps": 100, "images": 8, "size": 64}], "losses": {"l2": 1.0, "commitment": 0.1},
    ...     "optimizer": {"learning_rate": 1e-3}})
    >>> recipe.steps, recipe.stage_at(99).size
    (100, 64)
    """

    model: ModelSection
    data: DataSection
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=64)]
    losses: dict[str, Weight]
    optimizer: OptimizerSection
    discriminator: DiscriminatorSection | None = None
    perceptual: PerceptualSection = PerceptualSection()
    temperature: Positive | Ramp | None = None
    keep_ratio: Share = 1 / 3
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    log_every: Count = 50
    validate_every: Count = 500
    best: Literal["psnr", "last"] = "psnr"

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Refuse losses that nothing computes, and those of which nothing learns."""
        if not self.data.validate_on:
            raise ValueError("data.validate_on: expected images to choose the best weights on, got none")
        known = (*PIXEL_LOSSES, *FEATURE_LOSSES, *SELECTOR_LOSSES, *QUANTIZER_LOSSES)
        for name in self.losses:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise ValueError(f"losses.{name}: {f'did you mean {near[0]!r}?' if near else ', '.join(known)}")
        if not set(self.losses) & {*PIXEL_LOSSES, "features"}:
            raise ValueError(f"losses: expected one of {', '.join(PIXEL_LOSSES)}, features: got {list(self.losses)}")
        return self

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_index(self, step: int) -> int:
        """Return the index of the stage of a step; the last one's from the end on."""
        for index, stage in enumerate(self.stages):
            if step < stage.steps:
                return index
            step -= stage.steps
        return len(self.stages) - 1

    def stage_at(self, step: int) -> Stage:
        """Return the stage of a step."""
        return self.stages[self.stage_index(step)]

    def stage_start(self, step: int) -> int:
        """Return the first step of the stage of a step."""
        return sum(stage.steps for stage in self.stages[: self.stage_index(step)])

    def begins(self, step: int) -> bool:
        """Tell whether a stage begins with a step."""
        return step == 0 or self.stage_index(step) != self.stage_index(step - 1)

    @classmethod
    def from_mapping(cls, recipe: Mapping[str, Any], name: str = "recipe") -> Recipe:
        """Check a mapping as TOML gives it.

        Raises:
            ConfigError: an unknown key (with the nearest known one), a value that is refused; one line names them all.
        """
        refuse_unknown(cls, recipe, name)
        return read_section(cls, recipe, name)


def read_recipe(path: str | os.PathLike[str], changes: Iterable[str] = ()) -> Recipe:
    """Read a recipe from a TOML file.

    Args:
        path: the file, or the name of a recipe that comes with vqtok: those of examples/recipes.
        changes: ``"a.b=value"``, set after reading: values as in TOML, or else strings; ``stages.0.steps`` counts
            stages from 0.

    Raises:
        InputError: the file is missing or cannot be read.
        ConfigError: it is not TOML, or not a recipe.
    """
    shipped = shipped_recipes()
    try:
        text = (Path(path) if os.path.lexists(path) else shipped.get(os.fspath(path), Path(path))).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        near = difflib.get_close_matches(Path(path).stem, shipped, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"recipes: {', '.join(shipped)}"
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"{os.fspath(path)!r}: expected a recipe in TOML, cannot read it ({reason}); {hint}") from None
    try:
        recipe = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{os.fspath(path)!r}: expected TOML: {error}") from None
    for change in changes:
        set_key(recipe, change)
    return Recipe.from_mapping(recipe, os.fspath(path))


def refuse_unknown(kind: type[Section], value: object, name: str, path: str = "") -> None:
    """Raise ConfigError for a key that a section does not have, with the nearest that it has."""
    if not isinstance(value, Mapping):
        return
    for key, inner in value.items():
        if key not in kind.model_fields:
            near = difflib.get_close_matches(str(key), kind.model_fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(kind.model_fields)}"
            raise ConfigError(f"{name}: unknown key {path + str(key)!r}: {hint}")
        sections = _sections(kind.model_fields[key].annotation)
        for number, item in enumerate(inner if isinstance(inner, list) else [inner]):
            if len(sections) == 1:
                place = f"{path}{key}.{number}." if isinstance(inner, list) else f"{path}{key}."
                refuse_unknown(sections[0], item, name, place)


def _sections(annotation: Any) -> list[type[Section]]:
    """Return the kinds of section that a type is made of, but for those in dictionaries."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [] if get_origin(annotation) is dict else [x for arg in get_args(annotation) for x in _sections(arg)]


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with vqtok, by name.

    >>> "vqvae-tiny" in shipped_recipes()
    True
    """
    package = find_spec("vqtok.recipes")
    folders = package.submodule_search_locations or [] if package else []
    return {path.stem: path for folder in folders for path in sorted(Path(folder).glob("*.toml"))}


def set_key(recipe: dict[str, Any], change: str) -> None:
    """Set one value in place.

    >>> recipe = {"stages": [{"steps": 5}]}
    >>> set_key(recipe, "stages.0.steps=9"), set_key(recipe, "model.preset=vqgan-tiny")
    (None, None)
    >>> recipe
    {'stages': [{'steps': 9}], 'model': {'preset': 'vqgan-tiny'}}
    """
    path, equals, text = change.partition("=")
    *parents, last = path.strip().split(".")
    if not equals or not all([*parents, last]):
        raise ConfigError(f"expected --set KEY.KEY=VALUE, got {change!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    here: Any = recipe
    try:
        for key in parents:
            here = here[int(key)] if isinstance(here, list) else here.setdefault(key, {})
        here[int(last) if isinstance(here, list) else last] = value
    except (ValueError, IndexError, TypeError, AttributeError):
        raise ConfigError(f"expected --set to name a key of the recipe, got {path!r}") from None


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe as TOML with every default written out; what `read_recipe` reads back equal.

    >>> read_back = tomllib.loads(recipe_text(Recipe.from_mapping({
    ...     "model": {"preset": "vqvae-tiny"}, "data": {"train": [{"path": "photos"}], "validate_on": ["held-out"]},
    ...     "stages": [{"steps": 100, "images": 8, "size": 64}], "losses": {"l2": 1.0, "commitment": 0.1},
    ...     "optimizer": {"learning_rate": 1e-3}})))
    >>> read_back["stages"][0]["quantize"], read_back["optimizer"]["learning_rate"]
    (True, 0.001)
    """
    whole = recipe.model_dump(mode="json", exclude_none=True)
    tables = {key: value for key, value in whole.items() if isinstance(value, dict)}
    lines = [f"{key} = {_inline(value)}" for key, value in whole.items() if key not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_inline(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _inline(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_inline(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    # JSON's strings, integers, booleans and floats are TOML's, but for escapes of what lies beyond 16 bits.
    return json.dumps(value, ensure_ascii=False)
