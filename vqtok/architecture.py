"""What a model is, as data: the sections of ``config.json`` and the closed table from section to class.

A configuration can only name what stands in this file; nothing in it is an import path.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from vqtok.errors import ConfigError
from vqtok.images import PreprocessSpec
from vqtok.networks import ConvDecoder, ConvEncoder, SmallDecoder, SmallEncoder
from vqtok.quantizers import EmaQuantizer, Quantizer, VectorQuantizer

# Bounds that no published model comes near, so that a stranger's configuration cannot ask for endless work.
Width = Annotated[int, Field(ge=1, le=1 << 16)]
Blocks = Annotated[int, Field(ge=0, le=256)]
Codes = Annotated[int, Field(ge=1, le=1 << 32)]


class Section(BaseModel):
    """A frozen part of a configuration; unknown keys and near-miss types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SmallNetwork(Section):
    """Arguments of `SmallEncoder` and `SmallDecoder`."""

    type: Literal["small"] = "small"
    channels: Annotated[tuple[Width, ...], Field(max_length=16)]
    residual_blocks: tuple[Blocks, ...]
    residual_ratio: Annotated[float, Field(gt=0, le=4)] = 0.5

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Refuse lists of different lengths."""
        if not len(self.channels) == len(self.residual_blocks) > 0:
            raise ValueError("expected channels and residual_blocks of one length, at least 1")
        return self

    @property
    def factor(self) -> int:
        """Pixels a latent, each way."""
        return 2 ** len(self.channels)


class ConvNetwork(Section):
    """Arguments of `ConvEncoder` and `ConvDecoder`."""

    type: Literal["conv"] = "conv"
    channels: Annotated[int, Field(ge=32, le=1 << 12, multiple_of=32)] = 128
    multipliers: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(max_length=16)]
    residual_blocks: Annotated[Blocks, Field(ge=1)] = 2
    attention_levels: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=16)]
    z_channels: Width = 256

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Refuse attention where there is no level."""
        if not self.multipliers or any(level >= len(self.multipliers) for level in self.attention_levels):
            raise ValueError("expected at least one multiplier, and attention_levels below the number of multipliers")
        return self

    @property
    def factor(self) -> int:
        """Pixels a latent, each way."""
        return 2 ** (len(self.multipliers) - 1)


class VectorQuantizerSection(Section):
    """Arguments of `VectorQuantizer`."""

    type: Literal["vector"] = "vector"
    dim: Width
    vocab_size: Codes
    metric: Literal["l2", "cosine"] = "l2"


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


Network = Annotated[SmallNetwork | ConvNetwork, Field(discriminator="type")]


class Architecture(Section):
    """Everything that decides what a tokenizer computes, but for its weights.

    Attributes:
        encoder: section of the encoder.
        quantizer: section of the quantizer; its ``dim`` is the networks' too.
        decoder: section of the decoder.
        preprocess: how images become pixels and pixels images; ``multiple`` is the pixels a token, each way.
    """

    encoder: Network
    quantizer: Annotated[VectorQuantizerSection | EmaQuantizerSection, Field(discriminator="type")]
    decoder: Network
    preprocess: PreprocessSpec

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Refuse parts of different factors."""
        factors = (self.encoder.factor, self.decoder.factor, self.preprocess.multiple)
        if len(set(factors)) > 1:
            raise ValueError(f"expected one factor, got {factors} of encoder, decoder and preprocess.multiple")
        return self


class ModelCard(Section):
    """What ``config.json`` says of a model beside its weights' checksum.

    Attributes:
        architecture: what it computes.
        provenance: where it comes from, free JSON: data, steps, commit, metrics.
        licence: SPDX name of the weights' licence, or "" when unknown.
    """

    architecture: Architecture
    provenance: dict[str, Any] = {}
    licence: str = ""


FORMAT = "vqtok.model/1"

ENCODERS = {"small": SmallEncoder, "conv": ConvEncoder}
DECODERS = {"small": SmallDecoder, "conv": ConvDecoder}
QUANTIZERS: dict[str, type[Quantizer]] = {"vector": VectorQuantizer, "ema": EmaQuantizer}


S = TypeVar("S", bound=Section)


def read_section(kind: type[S], config: object, name: str) -> S:
    """Check JSON values against a section; ``name`` says in messages where they came from."""
    try:
        # As JSON: strict about types, and a list is the only way a file can write a tuple.
        return kind.model_validate_json(json.dumps(config, default=repr))
    except ValidationError as error:
        raise ConfigError(f"{name}: {explain_validation(error)}") from None


def explain_validation(error: ValidationError) -> str:
    """Return one line that names every refused key, what was expected there and what came."""
    return "; ".join(
        f"{'.'.join(map(str, e['loc']))}: {e['msg'][:1].lower()}{e['msg'][1:]}, got {e['input']!r:.60}"
        for e in error.errors()
    )


def override(architecture: Architecture, options: Mapping[str, Any]) -> Architecture:
    """Return the architecture with options set in every section that has them.

    Raises:
        ConfigError: no section has an option of that name, or its value is refused.

    >>> from vqtok.presets import PRESETS
    >>> override(PRESETS["vqgan-f16-16384"].architecture, {"vocab_size": 1024}).quantizer.vocab_size
    1024
    """
    sections = architecture.model_dump(mode="json")
    for option, value in options.items():
        holders = [section for section in sections.values() if option in section and option != "type"]
        if not holders:
            known = sorted({key for section in sections.values() for key in section} - {"type"})
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known options: {', '.join(known)}"
            raise ConfigError(f"unknown option {option!r}: {hint}")
        for section in holders:
            section[option] = value
    return read_section(Architecture, sections, "options")
