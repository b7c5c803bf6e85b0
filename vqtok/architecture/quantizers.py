"""Sections of quantizers, and the closed table from section to class."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from vqtok.architecture.section import Codes, Section, Width, arguments
from vqtok.quantizers import (
    EmaQuantizer,
    GumbelQuantizer,
    IndexBackpropagationQuantizer,
    ProductQuantizer,
    Quantizer,
    ResidualQuantizer,
    SimQuantizer,
    VectorQuantizer,
)

Gradient = Literal["straight-through", "rotation"]
Penalties = Annotated[tuple[Literal["entropy", "orthogonality"], ...], Field(max_length=2)]
Positive = Annotated[float, Field(gt=0)]
Parts = Annotated[tuple["QuantizerSection", ...], Field(min_length=1, max_length=64)]


class VectorQuantizerSection(Section):
    """Arguments of `VectorQuantizer`."""

    type: Literal["vector"] = "vector"
    dim: Width
    vocab_size: Codes
    metric: Literal["l2", "cosine"] = "l2"
    unit_latents: bool = False
    unit_vectors: bool = False
    gradient: Gradient = "straight-through"
    penalties: Penalties = ()
    temperature: Positive = 0.01


class EmaQuantizerSection(Section):
    """Arguments of `EmaQuantizer`."""

    type: Literal["ema"] = "ema"
    dim: Width
    vocab_size: Codes
    metric: Literal["l2", "cosine"] = "l2"
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    epsilon: Annotated[float, Field(ge=0)] = 1e-5
    revive_below: Annotated[float, Field(ge=0)] = 0.0
    kmeans_iterations: Annotated[int, Field(ge=0)] = 0
    gradient: Gradient = "straight-through"


class SimQuantizerSection(Section):
    """Arguments of `SimQuantizer`."""

    type: Literal["sim"] = "sim"
    dim: Width
    vocab_size: Codes
    gradient: Gradient = "straight-through"


class IndexBackpropagationQuantizerSection(Section):
    """Arguments of `IndexBackpropagationQuantizer`."""

    type: Literal["ibq"] = "ibq"
    dim: Width
    vocab_size: Codes
    penalties: Penalties = ()
    temperature: Positive = 0.01


class GumbelQuantizerSection(Section):
    """Arguments of `GumbelQuantizer`."""

    type: Literal["gumbel"] = "gumbel"
    latent_dim: Width
    vocab_size: Codes
    dim: Width
    projection: bool = True
    relaxed: bool = False


class ResidualQuantizerSection(Section):
    """Arguments of `ResidualQuantizer`."""

    type: Literal["residual"] = "residual"
    quantizers: Parts
    depth: Annotated[int, Field(ge=1, le=64)] | None = None
    dropout: bool = False
    gradient: Gradient = "straight-through"


class ProductQuantizerSection(Section):
    """Arguments of `ProductQuantizer`."""

    type: Literal["product"] = "product"
    quantizers: Parts


QuantizerSection = Annotated[
    VectorQuantizerSection
    | EmaQuantizerSection
    | SimQuantizerSection
    | IndexBackpropagationQuantizerSection
    | GumbelQuantizerSection
    | ResidualQuantizerSection
    | ProductQuantizerSection,
    Field(discriminator="type"),
]
ResidualQuantizerSection.model_rebuild()
ProductQuantizerSection.model_rebuild()

QUANTIZERS: dict[str, type[Quantizer]] = {
    "vector": VectorQuantizer,
    "ema": EmaQuantizer,
    "sim": SimQuantizer,
    "ibq": IndexBackpropagationQuantizer,
    "gumbel": GumbelQuantizer,
    "residual": ResidualQuantizer,
    "product": ProductQuantizer,
}


def build_quantizer(section: Any) -> Quantizer:
    """Return the quantizer that a section describes, with fresh weights; a wrapper with those that it wraps."""
    options = arguments(section)
    if "quantizers" in options:
        options["quantizers"] = [build_quantizer(inner) for inner in options["quantizers"]]
    return QUANTIZERS[section.type](**options)
