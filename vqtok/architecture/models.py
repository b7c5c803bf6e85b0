"""Whole models as data: architecture and card, and how options are set in them by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, model_validator
from typing_extensions import Self

from vqtok.architecture.networks import DECODERS, ENCODERS, Network
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
    """

    encoder: Network
    quantizer: QuantizerSection
    decoder: Network
    preprocess: PreprocessSpec

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Refuse parts of different factors, and parts in each other's place."""
        if self.encoder.type not in ENCODERS or self.decoder.type not in DECODERS:
            raise ValueError(f"expected an encoder and a decoder, got {self.encoder.type!r} and {self.decoder.type!r}")
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
    provenance: dict[str, Any] = Field(default_factory=dict)
    licence: str = ""


def override(architecture: Architecture, options: Mapping[str, Any]) -> Architecture:
    """Return the architecture with options set in every section that has them, however deep it lies.

    Raises:
        ConfigError: no section has an option of that name, or its value is refused.

    >>> from vqtok.presets import PRESETS
    >>> override(PRESETS["vqgan-f16-16384"].architecture, {"vocab_size": 1024}).quantizer.vocab_size
    1024
    """
    whole = architecture.model_dump(mode="json")
    sections = [section for part in whole.values() for section in _sections(part)]
    for option, value in options.items():
        holders = [section for section in sections if option in section and option != "type"]
        if not holders:
            known = sorted({key for section in sections for key in section} - {"type"})
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
