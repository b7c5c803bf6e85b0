"""How good a tokenizer is on a set of images: each is measured beside what its tokens give back, and all together."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from vqtok import streaming
from vqtok.errors import ConfigError
from vqtok.evaluation.metric_table import METRICS, Metrics, PairMeter, SetMeter, open_metrics
from vqtok.evaluation.metrics import bits_per_pixel
from vqtok.evaluation.usage import Usage
from vqtok.image_tokenizer import ImageTokenizer
from vqtok.images import RGB
from vqtok.types import Tokens

Refuse = Callable[[str, Exception], None]
_CHUNK_PIXELS, _CHUNK_IMAGES = 16 * 1024 * 1024, 64


@dataclass(frozen=True, slots=True)
class ImageScores:
    """One image.

    Attributes:
        key: its name.
        height: of the image that was tokenized.
        width: of the image that was tokenized.
        tokens: how many there are.
        bits_per_pixel: what they cost.
        sha256: of its pixels, 8-bit RGB row by row.
        values: by metric; PSNR is infinite where nothing was lost, and metrics that need a larger image are not here.
    """

    key: str
    height: int
    width: int
    tokens: int
    bits_per_pixel: float
    sha256: str
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Summary:
    """One metric over all images.

    Attributes:
        value: the mean over images, in PSNR without those that lost nothing; or of the whole set. NaN of none.
        samples: how many images, or samples of images, it is of.
    """

    value: float
    samples: int


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What `evaluate` finds.

    Attributes:
        images: in the order in which they came.
        summaries: by metric.
        usage: of each codebook over all images.
        bits_per_pixel: of all tokens over all pixels.
        not_computed: how to get metrics that this machine lacks, by name.
        metrics: settings and weights of each metric, for the protocol.
        images_sha256: of the images' sha256, sorted: equal for equal sets, whatever their names and order.
    """

    images: tuple[ImageScores, ...]
    summaries: Mapping[str, Summary]
    usage: tuple[Usage, ...]
    bits_per_pixel: float
    not_computed: Mapping[str, str]
    metrics: Mapping[str, Mapping[str, Any]]
    images_sha256: str


def evaluate(
    tokenizer: ImageTokenizer,
    images: Iterable[tuple[str, RGB]],
    metrics: Metrics | Sequence[str] = ("psnr",),
    *,
    refuse: Refuse | None = None,
) -> Scores:
    """Tokenize images, turn the tokens back and measure what was lost.

    Args:
        tokenizer: the model, in eval mode.
        images: key and uint8 [H, W, 3] of each, in the size in which it is tokenized; read as they are needed.
        metrics: what `open_metrics` gave, to be used again and again; or names, keys of `METRICS`.
        refuse: called with key and error of an image that the model cannot take; without it the error is raised.

    Raises:
        ConfigError: a key comes twice.
        ResourceError: a named metric cannot be computed here.

    >>> import vqtok
    >>> scores = evaluate(vqtok.load(), [("grey", np.full((64, 64, 3), 128, np.uint8))])
    >>> scores.images[0].tokens, scores.bits_per_pixel, scores.summaries["psnr"].value > 40
    (64, 0.203125, True)
    """
    if not isinstance(metrics, Metrics):
        metrics = open_metrics(metrics, device=tokenizer.device)
    collected = _Collected(metrics)
    order: dict[str, int] = {}
    for chunk in _chunks(images, order):
        originals = dict(chunk)
        for row, back in _reconstructions(tokenizer, originals, refuse):
            key = row.keys[0]
            try:
                collected.add(row, originals[key], back)
            except Exception as error:
                if refuse is None or not streaming.blames_image(error):
                    raise
                refuse(key, error)
    return collected.scores(order)


def _chunks(images: Iterable[tuple[str, RGB]], order: dict[str, int]) -> Iterator[list[tuple[str, RGB]]]:
    """Yield images some at a time, those of one shape beside each other: they share micro-batches."""
    chunk: list[tuple[str, RGB]] = []
    pixels = 0
    for key, array in images:
        if key in order:
            raise ConfigError(f"expected every image under a name of its own, got {key!r} twice")
        order[key] = len(order)
        chunk.append((key, array))
        pixels += array.shape[0] * array.shape[1]
        if pixels >= _CHUNK_PIXELS or len(chunk) >= _CHUNK_IMAGES:
            yield sorted(chunk, key=lambda pair: pair[1].shape)
            chunk, pixels = [], 0
    yield sorted(chunk, key=lambda pair: pair[1].shape)


def _reconstructions(
    tokenizer: ImageTokenizer, originals: Mapping[str, RGB], refuse: Refuse | None
) -> Iterator[tuple[Tokens, RGB]]:
    """Yield the tokens of each image and what they give back."""
    rows = streaming.tokenize(tokenizer, originals.items(), refuse)
    yield from _decoded(tokenizer, streaming.collect(tokenizer, rows, originals), refuse)


def _decoded(tokenizer: ImageTokenizer, tokens: Tokens, refuse: Refuse | None) -> list[tuple[Tokens, RGB]]:
    try:
        return [*zip(tokens, streaming.detokenize(tokenizer, tokens), strict=True)]
    except Exception as error:
        if refuse is None or not streaming.blames_image(error):
            raise
        if len(tokens) == 1:
            refuse(tokens.keys[0], error)
            return []
    return [pair for row in tokens for pair in _decoded(tokenizer, row, refuse)]


@dataclass(slots=True)
class _Collected:
    """What is known so far; memory grows with the images' features, never with their pixels."""

    metrics: Metrics
    rows: list[ImageScores] = field(default_factory=list)
    features: dict[str, dict[str, tuple[npt.NDArray[np.float32], ...]]] = field(default_factory=dict)
    counts: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)
    vocab_size: int = 0

    def add(self, tokens: Tokens, original: RGB, back: RGB) -> None:
        """Measure one image; nothing of it is kept when that fails."""
        values, features = {}, {}
        for name, opened in self.metrics.opened.items():
            if min(original.shape[:2]) < METRICS[name].least:
                continue
            if METRICS[name].whole:
                meter = cast(SetMeter, opened.meter)
                features[name] = meter.features(original), meter.features(back)
            else:
                values[name] = cast(PairMeter, opened.meter)(original, back)
        for name, pair in features.items():
            self.features.setdefault(name, {})[tokens.keys[0]] = pair
        self._count(tokens)
        height, width = original.shape[:2]
        digest = hashlib.sha256(original.tobytes()).hexdigest()
        cost = bits_per_pixel(tokens)
        self.rows.append(ImageScores(tokens.keys[0], height, width, tokens.ids.size, cost, digest, values))

    def _count(self, tokens: Tokens) -> None:
        self.vocab_size = tokens.vocab_size
        for k, ids in enumerate(tokens.ids.reshape(-1, int(tokens.grids[0, 0])).T):
            found = self.counts.setdefault(k, np.zeros(tokens.vocab_size, np.int64))
            found += np.bincount(ids, minlength=tokens.vocab_size)

    def scores(self, order: Mapping[str, int]) -> Scores:
        """Return the result, images in their order: sums are rounded alike however they were grouped."""
        places = np.argsort([order[row.key] for row in self.rows], kind="stable").tolist()
        rows = tuple(self.rows[i] for i in places)
        pixels = sum(row.height * row.width for row in rows)
        hashes = sorted(bytes.fromhex(row.sha256) for row in rows)
        return Scores(
            images=rows,
            summaries={name: self._summary(name, rows) for name in self.metrics.opened},
            usage=tuple(Usage(-np.sort(-x[x > 0]), self.vocab_size) for _, x in sorted(self.counts.items())),
            bits_per_pixel=math.fsum(row.bits_per_pixel * row.height * row.width for row in rows) / max(1, pixels),
            not_computed=self.metrics.not_computed,
            metrics={name: opened.record for name, opened in self.metrics.opened.items()},
            images_sha256=hashlib.sha256(b"".join(hashes)).hexdigest(),
        )

    def _summary(self, name: str, rows: Sequence[ImageScores]) -> Summary:
        if METRICS[name].whole:
            found = self.features.get(name, {})
            pairs = [found[row.key] for row in rows if row.key in found]
            samples = sum(len(original) for original, _ in pairs)
            if samples < 2:
                return Summary(math.nan, samples)
            originals, others = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
            return Summary(cast(SetMeter, self.metrics.opened[name].meter).distance(originals, others), samples)
        values = [row.values[name] for row in rows if math.isfinite(row.values.get(name, math.nan))]
        return Summary(math.fsum(values) / len(values) if values else math.nan, len(values))
