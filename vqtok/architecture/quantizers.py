"""Sections of quantizers, and the closed table from section to class."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vqtok.architecture.section import Codes, Section, Width, arguments
from vqtok.quantizers import EmaQuantizer, Quantizer, VectorQuantizer


class VectorQuantizerSection(Section):
    """Arguments of `VectorQuantizer`."""

    type: Literal["vector"] = "vector"
    dim: Width
    vocab_size: Codes
    metric: Literal["l2", "cosine"] = "l2"
    unit_latents: bool = False
    unit_vectors: bool = False


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


QuantizerSection = Annotated[VectorQuantizerSection | EmaQuantizerSection, Field(discriminator="type")]

QUANTIZERS: dict[str, type[Quantizer]] = {"vector": VectorQuantizer, "ema": EmaQuantizer}


def build_quantizer(section: QuantizerSection) -> Quantizer:
    """Return the quantizer that a section describes, with fresh weights."""
    return QUANTIZERS[section.type](**arguments(section))
