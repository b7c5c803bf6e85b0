"""What an evaluation did, as JSON: without it a number says little."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, cast

from vqtok.errors import ConfigError
from vqtok.evaluation.metric_table import METRICS
from vqtok.evaluation.scores import ImageScores, Scores
from vqtok.image_tokenizer import ImageTokenizer
from vqtok.images import PreprocessSpec

_CROP = re.compile("(center|adm|stretch):([1-9][0-9]{0,4})")


def cropped_spec(spec: PreprocessSpec, crop: str) -> PreprocessSpec:
    """Return how images are read for an evaluation: as the model's own spec has it, in the size that a crop says.

    Args:
        spec: the model's.
        crop: ``none`` is what `tokenize` does; ``center:256`` and the others are `PreprocessSpec.resize` and its size.

    Raises:
        ConfigError: there is no such crop, or the model takes images of another size only.

    >>> cropped_spec(PreprocessSpec(multiple=16), "center:256").size
    256
    """
    if crop == "none":
        return spec
    if not (found := _CROP.fullmatch(crop)):
        raise ConfigError(f"expected --crop none, center:N, adm:N or stretch:N, got {crop!r}")
    resize, size = cast(Literal["center", "adm", "stretch"], found[1]), int(found[2])
    if spec.size not in (None, size):
        raise ConfigError(f"expected a crop of {spec.size}, the only size that this model takes, got {crop!r}")
    return PreprocessSpec.from_config(spec.model_dump(mode="json") | {"resize": resize, "size": size})


def report(scores: Scores, tokenizer: ImageTokenizer, spec: PreprocessSpec, crop: str) -> dict[str, Any]:
    """Return scores and protocol as JSON; what is infinite or not known is null.

    Args:
        scores: what `evaluate` found.
        tokenizer: the model.
        spec: what `cropped_spec` gave.
        crop: what it was given.
    """
    return {
        "protocol": {
            "images": len(scores.images),
            "images_sha256": scores.images_sha256,
            "crop": crop,
            "preprocess": spec.model_dump(mode="json"),
            "reconstruction": "8-bit RGB in the size of the image that was tokenized",
            "metrics": {name: dict(record) for name, record in scores.metrics.items()},
            "model": tokenizer.record(),
        },
        "summary": {name: _summary(name, scores) for name in scores.summaries},
        "bits_per_pixel": round(scores.bits_per_pixel, 6),
        "codebooks": [
            {
                "vocab_size": usage.vocab_size,
                "tokens": int(usage.counts.sum()),
                "used": usage.used,
                "dead": usage.dead,
                "share": round(usage.share, 6),
                "perplexity": round(usage.perplexity, 2),
            }
            for usage in scores.usage
        ],
        "not_computed": dict(scores.not_computed),
        "images": [_row(row) for row in scores.images],
    }


def _summary(name: str, scores: Scores) -> dict[str, Any]:
    metric, summary = METRICS[name], scores.summaries[name]
    values = [row.values[name] for row in scores.images if name in row.values]
    lossless = sum(math.isinf(value) for value in values)
    return {
        "label": metric.label,
        "better": metric.better,
        "value": _rounded(summary.value),
        "samples": summary.samples,
        **({"lossless": lossless} if lossless else {}),
        **({"least": _rounded(min(values)), "greatest": _rounded(max(values))} if values else {}),
    }


def _row(row: ImageScores) -> dict[str, Any]:
    return {
        "key": row.key,
        "width": row.width,
        "height": row.height,
        "tokens": row.tokens,
        "bits_per_pixel": round(row.bits_per_pixel, 6),
        "sha256": row.sha256,
        **_rounded_values(row.values),
    }


def _rounded_values(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _rounded(value) for name, value in values.items()}


def _rounded(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
