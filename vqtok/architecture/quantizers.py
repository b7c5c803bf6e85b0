"""Sections of quantizers, and the closed table from section to class."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from vqtok.architecture.section import Codes, Section, Width, arguments
from vqtok.quantizers import (
    BinarySphericalQuantizer,
    EmaQuantizer,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    IndexBackpropagationQuantizer,
    LookupFreeQuantizer,
    ProductQuantizer,
    Quantizer,
    ResidualQuantizer,
    SimQuantizer,
    VectorQuantizer,
)

Gradient = Literal["straight-through", "rotation"]
Penalties = Annotated[tuple[Literal["entropy", "diversity", "orthogonality"], ...], Field(max_length=3)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Bits = Annotated[int, Field(ge=1, le=62)]
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
    entropy_temperature: Positive = 0.01


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
    bias: bool = False
    gradient: Gradient = "straight-through"
    penalties: Penalties = ()
    entropy_temperature: Positive = 0.01


class IndexBackpropagationQuantizerSection(Section):
    """Arguments of `IndexBackpropagationQuantizer`."""

    type: Literal["ibq"] = "ibq"
    dim: Width
    vocab_size: Codes
    penalties: Penalties = ()
    entropy_temperature: Positive = 0.01


class GumbelQuantizerSection(Section):
    """Arguments of `GumbelQuantizer`."""

    type: Literal["gumbel"] = "gumbel"
    latent_dim: Width
    vocab_size: Codes
    dim: Width
    projection: bool = True
    hard: bool = True
    temperature: Positive = 1.0


class FiniteScalarQuantizerSection(Section):
    """Arguments of `FiniteScalarQuantizer`."""

    type: Literal["fsq"] = "fsq"
    levels: Annotated[tuple[Annotated[int, Field(ge=2, le=1 << 16)], ...], Field(min_length=1, max_length=64)]
    symmetric: bool = False


class LookupFreeQuantizerSection(Section):
    """Arguments of `LookupFreeQuantizer`."""

    type: Literal["lfq"] = "lfq"
    bits: Bits
    endian: Literal["big", "little"] = "big"
    scale: Positive = 1.0
    temperature: Positive = 0.01
    group_bits: Bits | None = None


class BinarySphericalQuantizerSection(Section):
    """Arguments of `BinarySphericalQuantizer`."""

    type: Literal["bsq"] = "bsq"
    bits: Bits
    temperature: Positive = 1.0
    group_bits: Bits = 9


class ResidualQuantizerSection(Section):
    """Arguments of `ResidualQuantizer`; a single quantizer with ``shared`` is that of so many levels."""

    type: Literal["residual"] = "residual"
    quantizers: Parts
    shared: Annotated[int, Field(ge=1, le=64)] = 1
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Refuse several quantizers that shall each be shared."""
        if self.shared > 1 and len(self.quantizers) > 1:
            raise ValueError(f"expected a single quantizer to share, got {len(self.quantizers)}")
        return self


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
    | FiniteScalarQuantizerSection
    | LookupFreeQuantizerSection
    | BinarySphericalQuantizerSection
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
    "fsq": FiniteScalarQuantizer,
    "lfq": LookupFreeQuantizer,
    "bsq": BinarySphericalQuantizer,
    "residual": ResidualQuantizer,
    "product": ProductQuantizer,
}


def build_quantizer(section: Any) -> Quantizer:
    """Return the quantizer that a section describes, with fresh weights; a wrapper with those that it wraps."""
    options = arguments(section)
    if "quantizers" in options:
        options["quantizers"] = [build_quantizer(x) for x in options["quantizers"]] * options.pop("shared", 1)
    return QUANTIZERS[section.type](**options)
