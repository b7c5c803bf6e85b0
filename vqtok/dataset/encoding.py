"""Decoded images to a shard: the model's part of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch

from vqtok import images, streaming
from vqtok.dataset.decoding import Decoded, Failure, Recipe, failure
from vqtok.dataset.documents import Settings
from vqtok.dataset.folder import Shard
from vqtok.dataset.items import Item
from vqtok.dataset.ledger import Ties
from vqtok.dataset.pool import Outcome
from vqtok.dataset.ties import SHARE, Ledger, can_note
from vqtok.errors import ConfigError, NonFiniteLatents, escape
from vqtok.grid import GridTokenizer
from vqtok.image_tokenizer import ImageTokenizer
from vqtok.store import mapping_fingerprint
from vqtok.types import Tokens


def settings_of(tokenizer: ImageTokenizer, recipe: Recipe, repro: str, shard_size: int) -> Settings:
    """Return what decides the shards of a run.

    Raises:
        ConfigError: a level that the model's precision cannot keep, or crops without a size.
    """
    if tokenizer.precision != "float32" and repro != "fast":
        raise ConfigError(f"expected float32 with --repro {repro}, got {tokenizer.precision}: use --repro fast")
    if recipe.crop != "none" and (recipe.size < 1 or recipe.size % tokenizer.factor):
        raise ConfigError(f"expected --size, a multiple of {tokenizer.factor}, with --crop, got {recipe.size}")
    prints = tokenizer.record()["fingerprints"]
    if not isinstance(prints, Mapping):
        raise ConfigError("expected fingerprints in the tokenizer's record")
    return Settings(
        model=tokenizer.fingerprint,
        codebook=str(prints["codebook"]),
        preprocess=_preprocess(str(prints["preprocess"]), recipe),
        vocab_size=tokenizer.vocab_size,
        precision=tokenizer.precision,
        repro=repro,  # pyright: ignore[reportArgumentType]
        crop=recipe.crop,
        size=recipe.size,
        seed=recipe.seed,
        source_hash=recipe.source_hash,
        limits={name: getattr(recipe.limits, name) for name in ("max_bytes", "max_pixels", "max_side")},
        shard_size=shard_size,
        tile=tokenizer.tile or 0 if isinstance(tokenizer, GridTokenizer) else 0,
    )


def _preprocess(spec: str, recipe: Recipe) -> str:
    if recipe.crop == "none":
        return spec
    return mapping_fingerprint({"spec": spec, "crop": recipe.crop, "size": recipe.size, "seed": recipe.seed})


@contextmanager
def level(repro: str) -> Iterator[None]:
    """Let torch compute as a level demands: ``exact`` sums in one thread, so no split of a sum depends on their number.

    >>> with level("exact"):
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    if repro == "exact":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def execution_of(tokenizer: ImageTokenizer, repro: str) -> dict[str, object]:
    """Return what the bits of a shard depend on beside its job, as shards record it."""
    with level(repro):
        execution = tokenizer.record()["execution"]
    return {**execution, "repro": repro} if isinstance(execution, Mapping) else {"repro": repro}


@dataclass(slots=True)
class _Rows:
    """What becomes of the images of one shard, while they stream through the model."""

    items: list[Item] = field(default_factory=list)
    keys: dict[str, list[str]] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    sources: dict[str, bytes] = field(default_factory=dict)
    about: dict[str, dict[str, object]] = field(default_factory=dict)
    owner: dict[str, str] = field(default_factory=dict)

    def arrays(self, outcomes: Iterable[tuple[Item, Outcome]]) -> Iterator[tuple[str, images.RGB]]:
        """Yield the rows of the images that could be decoded."""
        for item, outcome in outcomes:
            self.items.append(item)
            if isinstance(outcome, Failure):
                self.failures[item.key] = outcome
                continue
            yield from self._accept(item, outcome)

    def _accept(self, item: Item, decoded: Decoded) -> Iterator[tuple[str, images.RGB]]:
        many = len(decoded.arrays) > 1
        keys = [f"{item.key}#{i}" for i in range(len(decoded.arrays))] if many else [item.key]
        if any(key in self.owner for key in keys):
            words = f"{escape(item.key)}: expected names that come once, but {keys[0]!r} comes again: rename the image"
            self.failures[item.key] = failure(item.key, "duplicate", words)
            return
        self.keys[item.key] = keys
        self.owner |= dict.fromkeys(keys, item.key)
        boxes = decoded.boxes or [None] * len(keys)
        for key, array, box in zip(keys, decoded.arrays, boxes, strict=True):
            self.sources[key] = decoded.sha256
            self.about[key] = {**item.about, **({"crop": box.record()} if box else {})}
            yield key, array

    def refuse(self, key: str, error: Exception) -> None:
        """Note an image that the model could not take."""
        name = self.owner[key]
        if isinstance(error, NonFiniteLatents):
            self.failures[name] = failure(name, "latents", f"{escape(name)}: {error}")
        else:
            self.failures[name] = Failure(name, "encode", "memory", f"{escape(name)}: memory ran out: scale it down")


def encode_shard(
    tokenizer: ImageTokenizer,
    outcomes: Iterable[tuple[Item, Outcome]],
    settings: Settings,
) -> Shard:
    """Return the shard of decoded images: in the order of the items, an image with all its rows or not at all.

    Args:
        tokenizer: the model.
        outcomes: every image of the shard.
        settings: of the run.
    """
    rows = _Rows()
    # What is promised to be reproducible notes where rounding could show on another machine.
    ledger = Ledger(tokenizer) if settings.repro != "fast" and can_note(tokenizer) else None
    model = cast(ImageTokenizer, ledger) if ledger else tokenizer  # all that streaming asks of one
    found: dict[str, Tokens] = {}
    near: dict[str, list[int]] = {}
    for row in streaming.tokenize(model, rows.arrays(outcomes), rows.refuse):
        found[row.keys[0]] = row
        if ledger:
            near[row.keys[0]] = ledger.take()
    keys = [key for item in rows.items if item.key not in rows.failures for key in rows.keys[item.key]]
    tokens = streaming.collect(tokenizer, found.values(), keys)
    record = tokenizer.record()
    prints, execution = record["fingerprints"], record["execution"]
    if isinstance(prints, Mapping) and isinstance(execution, Mapping):
        record = {
            "fingerprints": {**prints, "preprocess": settings.preprocess, "settings": settings.fingerprint()},
            "execution": {**execution, "repro": settings.repro},
            "created_by": record["created_by"],
        }
    tokens = replace(tokens, record=record)
    about = [{"key": key, **rows.about[key]} for key in keys]
    return Shard(
        tokens=tokens,
        source_sha256=_digests([rows.sources[key] for key in keys]) if settings.source_hash else None,
        failures=[rows.failures[item.key] for item in rows.items if item.key in rows.failures],
        rows=about if any(len(row) > 1 for row in about) else [],
        ties=Ties(SHARE, near) if ledger else None,
    )


def _digests(sources: Sequence[bytes]) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    return np.frombuffer(b"".join(sources), np.uint8).reshape(len(sources), hashlib.sha256().digest_size)
