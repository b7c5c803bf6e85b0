"""Whole models as data: architecture and card, and how options are set in them by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Discriminator, Field, Tag, model_validator
from typing_extensions import Self

from vqtok.architecture.networks import (
    DECODERS,
    ENCODERS,
    MergerSection,
    Network,
    TeacherSection,
    TransformerSection,
    Vqvae2NetworkSection,
)
from vqtok.architecture.quantizers import QuantizerSection
from vqtok.architecture.section import Section, read_section
from vqtok.errors import ConfigError
from vqtok.images import PreprocessSpec

FORMAT = "vqtok.model/1"


class Architecture(Section):
    """Everything that decides what a grid tokenizer computes, but for its weights.

    Attributes:
        encoder: section of the encoder.
        quantizer: section of the quantizer; its ``dim`` is the networks' too.
        decoder: section of the decoder.
        preprocess: how images become pixels and pixels images; ``multiple`` is the pixels a token, each way.
        output: what the decoder gives, see `Tokenizer`.
    """

    encoder: Network
    quantizer: QuantizerSection
    decoder: Network
    preprocess: PreprocessSpec
    output: Literal["pixels", "logit-laplace"] = "pixels"

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Refuse parts of different factors, and parts in each other's place."""
        if self.encoder.type not in ENCODERS or self.decoder.type not in DECODERS:
            raise ValueError(f"expected an encoder and a decoder, got {self.encoder.type!r} and {self.decoder.type!r}")
        factors = (self.encoder.factor, self.decoder.factor, self.preprocess.multiple)
        if len(set(factors)) > 1:
            raise ValueError(f"expected one factor, got {factors} of encoder, decoder and preprocess.multiple")
        return self


class HierarchicalArchitecture(Section):
    """Everything that decides what a `HierarchicalTokenizer` computes, but for its weights.

    Attributes:
        type: tells it from a grid tokenizer's, which names none.
        network: section of the encoders and decoders of both levels.
        quantizer: section of the quantizer that each level has.
        preprocess: as of `Architecture`.
    """

    type: Literal["hierarchical"] = "hierarchical"
    network: Vqvae2NetworkSection
    quantizer: QuantizerSection
    preprocess: PreprocessSpec

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Refuse parts of different factors."""
        if self.network.factor != self.preprocess.multiple:
            raise ValueError(f"expected preprocess.multiple {self.network.factor}, got {self.preprocess.multiple}")
        return self


class DynamicArchitecture(Section):
    """Everything that decides what a `DynamicTokenizer` computes, but for its weights.

    Attributes:
        type: tells it from a grid tokenizer's, which names none.
        features: section of the teacher; its width is that of all parts.
        merger: section of the merger.
        quantizer: section of the quantizer.
        feature_decoder: section of the decoder of codes to features.
        pixel_decoder: section of the decoder of features to pixels, or None.
        preprocess: as of `Architecture`; images have one size, and ``multiple`` is the side of a patch.
        unit_latents: whether latents are divided by their length before the quantizer.
        temperature: of the selection's relaxation while training.
    """

    type: Literal["dynamic"] = "dynamic"
    features: TeacherSection
    merger: MergerSection
    quantizer: QuantizerSection
    feature_decoder: TransformerSection
    pixel_decoder: Network | None = None
    preprocess: PreprocessSpec
    unit_latents: bool = True
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Refuse images of any size, and a pixel decoder of other patches."""
        spec, pixels = self.preprocess, self.pixel_decoder
        if spec.size is None or spec.size % spec.multiple:
            raise ValueError(f"expected images resized to a multiple of {spec.multiple}, got size {spec.size}")
        if pixels is not None and (pixels.type not in DECODERS or pixels.factor != spec.multiple):
            raise ValueError(f"expected a pixel decoder of factor {spec.multiple}, got {pixels.type!r}")
        return self


def _kind(value: object) -> str:
    """Return the tag of an architecture, as data or as what it was read into."""
    return str(value.get("type", "grid")) if isinstance(value, dict) else getattr(value, "type", "grid")


AnyArchitecture = Annotated[
    Annotated[Architecture, Tag("grid")]
    | Annotated[HierarchicalArchitecture, Tag("hierarchical")]
    | Annotated[DynamicArchitecture, Tag("dynamic")],
    Discriminator(_kind),
]


class ModelCard(Section):
    """What ``config.json`` says of a model beside its weights' checksum.

    Attributes:
        architecture: what it computes.
        provenance: where it comes from, free JSON: data, steps, commit, metrics.
        licence: SPDX name of the weights' licence, or "" when unknown.
    """

    architecture: AnyArchitecture
    provenance: dict[str, Any] = Field(default_factory=dict)
    licence: str = ""


A = TypeVar("A", bound=Section)


def override(architecture: A, options: Mapping[str, Any]) -> A:
    """Return the architecture with options set in every section that has them, however deep it lies.

    Raises:
        ConfigError: no section has an option of that name, or its value is refused.

    >>> from vqtok.presets import PRESETS
    >>> override(PRESETS["vqgan-f16-16384"].architecture, {"vocab_size": 1024}).quantizer.vocab_size
    1024
    """
    whole = architecture.model_dump(mode="json")
    # What holds other sections is no option.
    sections = [*_sections(whole)]
    for option, value in options.items():
        holders = [x for x in sections if option in x and option != "type" and not any(_sections(x[option]))]
        if not holders:
            known = sorted({key for x in sections for key in x if not any(_sections(x[key]))} - {"type"})
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known options: {', '.join(known)}"
            raise ConfigError(f"unknown option {option!r}: {hint}")
        for section in holders:
            section[option] = value
    return read_section(type(architecture), whole, "options")


def _sections(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _sections(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _sections(inner)
