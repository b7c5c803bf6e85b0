"""One item to pixels: what a worker process does, and what is done in place without workers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from vqtok import images
from vqtok.dataset import remote
from vqtok.dataset.crops import Box, boxes, cut
from vqtok.dataset.items import Item
from vqtok.dataset.tables import Columns, read_cell
from vqtok.dataset.tars import read_member
from vqtok.errors import ImageError, escape
from vqtok.images import PreprocessSpec, files

_READ = {"missing", "unreadable", "empty"}
_POLICY = {"format", "too_large", "too_many_pixels", "depth", "duplicate"}
RETRYABLE = {"missing", "unreadable", "memory", "timeout", "worker_crash"}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an image is in no shard.

    Attributes:
        key: its name.
        stage: ``read``, ``policy``, ``decode`` or ``encode``.
        kind: a stable word.
        message: for people.
    """

    key: str
    stage: str
    kind: str
    message: str

    def record(self) -> dict[str, object]:
        """Return the failure as JSON; ``retryable``: it may do better without the image being changed."""
        return {**asdict(self), "retryable": self.kind in RETRYABLE}


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """An image as the model takes it.

    Attributes:
        sha256: of its file, 32 bytes, or empty.
        arrays: uint8 [H, W, 3], one a row of the shard.
        boxes: what each row shows, when it was cropped.
    """

    sha256: bytes
    arrays: list[images.RGB]
    boxes: list[Box] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How items become pixels: everything a worker needs to know.

    Attributes:
        spec: the model's.
        crop: ``none``, ``center``, ``ten`` or ``random:N``.
        size: side of a crop.
        seed: of random crops.
        source_hash: whether the files' sha256 are computed.
        limits: above which images are refused.
        columns: how tables are read.
    """

    spec: PreprocessSpec
    crop: str = "none"
    size: int = 0
    seed: int = 0
    source_hash: bool = True
    limits: images.Limits = field(default_factory=images.Limits)
    columns: Columns = field(default_factory=Columns)

    def record(self) -> dict[str, object]:
        """Return the recipe as JSON."""
        return {**asdict(self), "spec": self.spec.model_dump(mode="json")}


def parse_recipe(fields: Mapping[str, object]) -> Recipe:
    """Read a recipe that `Recipe.record` wrote."""
    known = dict(fields)
    known["spec"] = PreprocessSpec.from_config(known["spec"])  # pyright: ignore[reportArgumentType]
    known["limits"] = images.Limits(**known["limits"])  # pyright: ignore[reportCallIssue]
    known["columns"] = Columns(**known["columns"])  # pyright: ignore[reportCallIssue]
    return Recipe(**known)  # pyright: ignore[reportArgumentType]


def decode_item(item: Item, recipe: Recipe) -> Decoded | Failure:
    """Read, hash, decode, turn, cut and resize one image; whatever is wrong with it becomes a `Failure`."""
    try:
        data = read_item(item, recipe.limits, recipe.columns)
        digest = hashlib.sha256(data).digest() if recipe.source_hash else b""
        if recipe.crop == "none":
            return Decoded(digest, [images.to_rgb(data, recipe.spec, limits=recipe.limits, name=item.key)])
        spec = recipe.spec
        array = images.decode(
            data, exif=spec.exif, alpha=spec.alpha, depth16=spec.depth16, limits=recipe.limits, name=item.key
        )
        found = boxes(recipe.crop, array, recipe.seed)
        return Decoded(digest, [cut(array, box, recipe.size, spec.filter) for box in found], found)
    except ImageError as error:
        return failure(item.key, error.kind, str(error))
    except MemoryError:
        return failure(item.key, "memory", f"{escape(item.key)}: memory ran out: use a smaller image")


def failure(key: str, kind: str, message: str) -> Failure:
    """Return the failure of a kind, at the stage that the kind belongs to."""
    stage = "read" if kind in _READ else "policy" if kind in _POLICY else "encode" if kind == "latents" else "decode"
    return Failure(key, stage, kind, message)


def read_item(item: Item, limits: images.Limits, columns: Columns) -> bytes:
    """Return the bytes of an image's file; ImageError, which names the image, when they cannot be read."""
    if item.refused:
        raise ImageError(*item.refused)
    try:
        if item.offset >= 0:
            return read_member(item, limits)
        if item.row >= 0:
            cell = read_cell(item.path, item.row, columns)
            return cell if isinstance(cell, bytes) else files.read(cell, limits)
        read = remote.read_address if remote.is_remote(item.path) else files.read
        return read(item.path, limits)
    except ImageError as error:
        raise ImageError(error.kind, f"{escape(item.key)}: {error}") from error


def shapes(decoded: Decoded) -> list[list[int]]:
    """Return height and width of each array."""
    return [list(array.shape[:2]) for array in decoded.arrays]


def array_of(data: memoryview, shape: tuple[int, int]) -> images.RGB:
    """Return bytes as uint8 [H, W, 3]."""
    return np.frombuffer(data, np.uint8).reshape(*shape, 3)


def default_workers(device: str) -> int:
    """Return how many processes decode: few beside a model on the CPU, which needs the processors itself."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, max(1, cores - 1)) if device != "cpu" else min(8, max(1, cores // 8))
