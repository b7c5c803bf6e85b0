"""The ``[data]`` table of a recipe: which images, how they are cut, and who decodes them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from vqtok.architecture.section import Section

Side = Annotated[int, Field(ge=1, le=1 << 14)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Place = Annotated[str, Field(min_length=1)]


class Group(Section):
    """Images that are drawn alike.

    Attributes:
        path: a folder, a pattern, a list (``.txt``, ``.csv``, ``.jsonl``), tars (``x-{000..127}.tar``), a parquet file.
        weight: share of the samples among groups that have one; None: as many samples as it has images.
        column: of a table or list, that holds the images; "" for the usual names.
    """

    path: Place
    weight: Positive | None = None
    column: str = ""


class ScaledCrops(Section):
    """Crops of photographs that are first scaled down (bicubic) to one of several short sides.

    A large photograph in full is smooth where a small picture has detail, so a model should see both. A photograph
    takes the sides it has; one smaller than all stays as it is, and what a crop lacks is its edge repeated.

    Attributes:
        sides: short sides in pixels.
        weights: how often each is taken.
    """

    type: Literal["scaled"] = "scaled"
    sides: Annotated[tuple[Side, ...], Field(max_length=16)] = (1024, 512, 256)
    weights: tuple[Positive, ...] = (0.3, 0.5, 0.2)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if len(self.sides) != len(self.weights) or len(set(self.sides)) != len(self.sides):
            raise ValueError(f"expected different sides and a weight for each, got {self.sides} and {self.weights}")
        return self


class ResizedCrops(Section):
    """Crops of a random area and aspect, resized (bilinear, antialiased): torchvision's ``RandomResizedCrop``.

    Attributes:
        area: lowest and highest share of the photograph's area.
        aspect: lowest and highest width over height.
    """

    type: Literal["resized"] = "resized"
    area: tuple[Positive, Positive] = (0.25, 1.0)
    aspect: tuple[Positive, Positive] = (0.75, 1.3333333333333333)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if not self.area[0] <= self.area[1] <= 1 or not self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"expected rising ranges, area within 0..1, got {self.area} and {self.aspect}")
        return self


Crops = Annotated[ScaledCrops | ResizedCrops, Field(discriminator="type")]


class DataSection(Section):
    """What to train on.

    Attributes:
        train: groups of images. If none has a weight, every image comes once an epoch; otherwise all need one.
        validate_on: images to choose the best weights on, named like those of a group; never what is reported.
        validate_side: short side to which they are scaled down.
        validate_limit: how many are kept, evenly spaced in the order of their names.
        crops: how a photograph becomes a training image.
        flip: share of the crops that are mirrored.
        workers: processes that decode ahead; 0 decodes where the model trains.
        allowed_failures: share of the images that may be refused. One image is always allowed, unless this is 0.
        cache: ``none`` decodes a photograph for each crop; ``memory`` decodes it once a run and keeps its pixels in
            shared memory; a folder keeps them there, for later runs too (three bytes a pixel, every scale).

    >>> DataSection(train=(Group(path="photos"),)).crops.sides
    (1024, 512, 256)
    """

    train: Annotated[tuple[Group, ...], Field(min_length=1, max_length=1024)]
    validate_on: tuple[Place, ...] = ()
    validate_side: Side = 512
    validate_limit: Annotated[int, Field(ge=1)] = 64
    crops: Crops = ScaledCrops()
    flip: Share = 0.5
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    allowed_failures: Share = 0.01
    cache: Place = "none"

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        weighted = [group.weight is not None for group in self.train]
        if any(weighted) and not all(weighted):
            raise ValueError("expected a weight for every group, or for none")
        return self
