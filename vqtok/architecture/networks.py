"""Sections of encoders and decoders, and the closed table from section to class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import nn
from typing_extensions import Self

from vqtok.architecture.section import Blocks, Heads, Section, Width
from vqtok.networks import (
    AbsentDecoder,
    ConvDecoder,
    ConvEncoder,
    CosmosDecoder,
    CosmosEncoder,
    DvaeDecoder,
    DvaeEncoder,
    Emu3Decoder,
    Emu3Encoder,
    Magvit2Decoder,
    Magvit2Encoder,
    MaskgitDecoder,
    MaskgitEncoder,
    SmallDecoder,
    SmallEncoder,
    TitokDecoder,
    TitokEncoder,
    VitDecoder,
    VitEncoder,
)


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
    channels: Annotated[int, Field(ge=1, le=1 << 12)] = 128
    multipliers: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(max_length=16)]
    residual_blocks: Annotated[Blocks, Field(ge=1)] = 2
    attention_levels: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=16)]
    z_channels: Width = 256
    groups: Width = 32
    middle_attention: bool = True
    stem: Annotated[int, Field(ge=1, le=64)] = 1

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Refuse attention where there is no level, and widths that cannot be cut into groups."""
        if self.channels % self.groups:
            raise ValueError(f"expected channels to be a multiple of groups ({self.groups}), got {self.channels}")
        if not self.multipliers or any(level >= len(self.multipliers) for level in self.attention_levels):
            raise ValueError("expected at least one multiplier, and attention_levels below the number of multipliers")
        return self

    @property
    def factor(self) -> int:
        """Pixels a latent, each way."""
        return 2 ** (len(self.multipliers) - 1)


class CosmosNetwork(Section):
    """Arguments of `CosmosEncoder` and `CosmosDecoder`."""

    type: Literal["cosmos"] = "cosmos"
    channels: Annotated[int, Field(ge=32, le=1 << 12, multiple_of=32)] = 128
    multipliers: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=16)]
    residual_blocks: Annotated[Blocks, Field(ge=1)] = 2
    attention_levels: Annotated[tuple[Annotated[int, Field(ge=0, lt=16)], ...], Field(max_length=16)]
    z_channels: Width = 256
    patch: Annotated[int, Field(ge=1, le=1 << 10)] = 4
    patching: Literal["haar", "rearrange"] = "haar"
    halvings: Annotated[int, Field(ge=0, le=16)]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Refuse wavelets of other patches than powers of 2, and more halvings than levels."""
        if self.patching == "haar" and self.patch & (self.patch - 1):
            raise ValueError(f"expected a patch that is a power of 2 with patching 'haar', got {self.patch}")
        if self.halvings > len(self.multipliers):
            raise ValueError(f"expected at most {len(self.multipliers)} halvings, one a level, got {self.halvings}")
        return self

    @property
    def factor(self) -> int:
        """Pixels a latent, each way."""
        return self.patch * 2**self.halvings


class AbsentNetwork(Section):
    """Arguments of `AbsentDecoder`."""

    type: Literal["absent"] = "absent"
    z_channels: Width
    factor: Width


class MaskgitNetwork(Section):
    """Arguments of `MaskgitEncoder` and `MaskgitDecoder`."""

    type: Literal["maskgit"] = "maskgit"
    channels: Annotated[int, Field(ge=1, le=1 << 12)] = 128
    multipliers: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=16)]
    residual_blocks: Annotated[Blocks, Field(ge=1)] = 2

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Refuse widths that cannot be cut into 32 groups."""
        if any(self.channels * multiplier % 32 for multiplier in (1, *self.multipliers)):
            raise ValueError("expected widths that are multiples of 32")
        return self

    @property
    def factor(self) -> int:
        """Pixels a latent, each way."""
        return 2 ** (len(self.multipliers) - 1)


class Magvit2Network(Section):
    """Arguments of `Magvit2Encoder` and `Magvit2Decoder`."""

    type: Literal["magvit2"] = "magvit2"
    channels: Annotated[int, Field(ge=32, le=1 << 12, multiple_of=32)] = 128
    multipliers: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=16)]
    residual_blocks: Annotated[Blocks, Field(ge=1)] = 4

    @property
    def factor(self) -> int:
        """Pixels a latent, each way."""
        return 2 ** (len(self.multipliers) - 1)


class Emu3Network(Section):
    """Arguments of `Emu3Encoder` and `Emu3Decoder`."""

    type: Literal["emu3"] = "emu3"
    channels: Annotated[int, Field(ge=32, le=1 << 12, multiple_of=32)] = 256
    multipliers: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=16)]
    residual_blocks: Annotated[Blocks, Field(ge=1)] = 2
    attention_levels: Annotated[tuple[Annotated[int, Field(ge=0, lt=16)], ...], Field(max_length=16)]
    z_channels: Width = 4
    heads: Heads = 1
    frames: Annotated[int, Field(ge=1, le=64)] = 4

    @property
    def factor(self) -> int:
        """Pixels a latent, each way."""
        return 2 ** (len(self.multipliers) - 1)


class TitokNetwork(Section):
    """Arguments of `TitokEncoder`."""

    type: Literal["titok"] = "titok"
    width: Width
    depth: Blocks
    heads: Heads
    patch: Annotated[int, Field(ge=1, le=1 << 10)]
    size: Annotated[int, Field(ge=1, le=1 << 12)]
    tokens: Width
    legacy: bool = False

    @property
    def factor(self) -> int:
        """Pixels, each way, of the one size that images have."""
        return self.size


class TitokDecoderNetwork(Section):
    """Arguments of `TitokDecoder`."""

    type: Literal["titok-decoder"] = "titok-decoder"
    width: Width
    depth: Blocks
    heads: Heads
    patch: Annotated[int, Field(ge=1, le=1 << 10)]
    size: Annotated[int, Field(ge=1, le=1 << 12)]
    tokens: Width
    pixel_codes: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    pixel_dim: Width = 256
    pixel_channels: Annotated[int, Field(ge=32, le=1 << 12, multiple_of=32)] = 128
    pixel_multipliers: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=16)] = (
        1, 1, 2, 2, 4,
    )  # fmt: skip
    pixel_blocks: Annotated[Blocks, Field(ge=1)] = 2

    @property
    def factor(self) -> int:
        """Pixels, each way, of the one size that images have."""
        return self.size


class DvaeNetwork(Section):
    """Arguments of `DvaeEncoder` and `DvaeDecoder`."""

    type: Literal["dvae"] = "dvae"
    channels: Annotated[int, Field(ge=4, le=1 << 12, multiple_of=4)] = 256
    multipliers: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=16)]
    residual_blocks: Annotated[Blocks, Field(ge=1)] = 2

    @property
    def factor(self) -> int:
        """Pixels a latent, each way."""
        return 2 ** (len(self.multipliers) - 1)


class Vqvae2NetworkSection(Section):
    """Arguments of `Vqvae2Network`."""

    type: Literal["vqvae2"] = "vqvae2"
    channels: Annotated[int, Field(ge=2, le=1 << 16)] = 128
    residual_blocks: Blocks = 2
    residual_channels: Width = 32

    @property
    def factor(self) -> int:
        """Pixels a top latent, each way."""
        return 8


class VitNetwork(Section):
    """Arguments of `VitEncoder` and `VitDecoder`."""

    type: Literal["vit"] = "vit"
    width: Annotated[Width, Field(multiple_of=4)]
    depth: Blocks
    heads: Heads
    mlp_width: Width
    patch: Annotated[int, Field(ge=1, le=1 << 10)]
    head_dim: Width = 64
    activation: Literal["tanh", "gelu"] = "tanh"
    tanh_head: Width | None = None
    positions: Literal["sincos", "stored"] = "sincos"
    grid: tuple[Width, Width] | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Refuse a stored table of no grid, and a grid of no table."""
        if (self.positions == "stored") != (self.grid is not None):
            raise ValueError("expected a grid exactly where positions are 'stored'")
        return self

    @property
    def factor(self) -> int:
        """Pixels a latent, each way."""
        return self.patch


class TeacherSection(Section):
    """Arguments of `EvaVit`, but for the image's size: a dynamic tokenizer's features."""

    type: Literal["eva"] = "eva"
    width: Annotated[Width, Field(multiple_of=4)]
    depth: Blocks
    heads: Heads
    mlp_width: Width
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 1e-6


class TransformerSection(Section):
    """Arguments of `FeatureDecoder`; its own width and its features' are the teacher's where none is given."""

    depth: Blocks
    heads: Heads
    mlp_width: Width
    decoder_width: Width | None = None
    feature_width: Width | None = None


class MergerSection(Section):
    """Arguments of `Merger`, but for the width, which is the teacher's."""

    depth: Blocks
    heads: Heads
    mlp_width: Width
    leak: Annotated[float, Field(ge=0, le=1)] = 0.0


Network = Annotated[
    SmallNetwork
    | ConvNetwork
    | CosmosNetwork
    | MaskgitNetwork
    | Magvit2Network
    | Emu3Network
    | TitokNetwork
    | TitokDecoderNetwork
    | DvaeNetwork
    | VitNetwork
    | AbsentNetwork,
    Field(discriminator="type"),
]

ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "small": SmallEncoder,
    "conv": ConvEncoder,
    "cosmos": CosmosEncoder,
    "maskgit": MaskgitEncoder,
    "magvit2": Magvit2Encoder,
    "emu3": Emu3Encoder,
    "titok": TitokEncoder,
    "dvae": DvaeEncoder,
    "vit": VitEncoder,
}
DECODERS: dict[str, Callable[..., nn.Module]] = {
    "small": SmallDecoder,
    "conv": ConvDecoder,
    "cosmos": CosmosDecoder,
    "maskgit": MaskgitDecoder,
    "magvit2": Magvit2Decoder,
    "emu3": Emu3Decoder,
    "titok-decoder": TitokDecoder,
    "dvae": DvaeDecoder,
    "vit": VitDecoder,
    "absent": AbsentDecoder,
}
