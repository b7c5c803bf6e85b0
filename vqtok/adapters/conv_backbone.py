"""The convolutional backbone of VQGAN, which six publishers have under other names: from shapes to a configuration."""

from __future__ import annotations

from math import gcd
from typing import TypedDict

from vqtok.adapters.family import Facts, Tensors
from vqtok.adapters.rules import Rename, Reshape, Rule
from vqtok.architecture import AbsentNetwork, Architecture, ConvNetwork
from vqtok.architecture.quantizers import QuantizerSection
from vqtok.errors import ConfigError, MismatchError
from vqtok.images import PreprocessSpec

LEAF = "{leaf:weight|bias}"
_NET = "{net:encoder|decoder}"
_PART = "{part:norm1|conv1|norm2|conv2}"


def attention(foreign: str, native: str) -> tuple[Rule, ...]:
    """Return the rows of an attention block in taming's words."""
    words = {"norm": "norm", "q": "query", "k": "key", "v": "value", "proj_out": "proj"}
    return tuple(Rename(f"{foreign}.{theirs}.{LEAF}", f"{native}.{ours}.{LEAF}") for theirs, ours in words.items())


def linear_attention(foreign: str, native: str) -> tuple[Rule, ...]:
    """Return the rows of an attention block in diffusers' words: its projections are linear layers."""
    rows: list[Rule] = [Rename(f"{foreign}.group_norm.{LEAF}", f"{native}.norm.{LEAF}")]
    for theirs, ours in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj"}.items():
        rows.append(Reshape(f"{foreign}.{theirs}.weight", f"{native}.{ours}.weight", "linear-to-conv"))
        rows.append(Rename(f"{foreign}.{theirs}.bias", f"{native}.{ours}.bias"))
    return tuple(rows)


def residual(foreign: str, native: str, shortcut: str = "nin_shortcut") -> tuple[Rule, ...]:
    """Return the rows of a residual block."""
    return (
        Rename(f"{foreign}.{_PART}.{LEAF}", f"{native}.{_PART}.{LEAF}"),
        Rename(f"{foreign}.{shortcut}.{LEAF}", f"{native}.shortcut.{LEAF}"),
    )


# What lies around the networks; the same words everywhere.
AROUND: tuple[Rule, ...] = (
    Rename("quantize.embedding.weight", "quantizer.codebook"),
    Rename(f"quant_conv.{LEAF}", f"encoder.to_latents.{LEAF}"),
    Rename(f"post_quant_conv.{LEAF}", f"decoder.from_latents.{LEAF}"),
    Rename(f"{_NET}.{{end:conv_in|conv_out}}.{LEAF}", f"{_NET}.{{end:conv_in|conv_out}}.{LEAF}"),
)
NORM_OUT: tuple[Rule, ...] = (Rename(f"{_NET}.norm_out.{LEAF}", f"{_NET}.norm_out.{LEAF}"),)


def named_levels(level: str) -> tuple[Rule, ...]:
    """Return taming's rows: ``down.0`` is the finest, and so is ``up.0`` when level is ``"{level}"``.

    Args:
        level: ``"{level}"``, or ``"{level:mirror}"`` where ``up.0`` is the coarsest.
    """
    up, ours = f"decoder.up.{level}", f"decoder.levels.{level}"
    return (
        *residual("encoder.down.{level}.block.{block}", "encoder.levels.{level}.blocks.{block}"),
        *attention("encoder.down.{level}.attn.{block}", "encoder.levels.{level}.attentions.{block}"),
        Rename(f"encoder.down.{{level}}.downsample.conv.{LEAF}", f"encoder.downsamples.{{level}}.conv.{LEAF}"),
        *residual(f"{up}.block.{{block}}", f"{ours}.blocks.{{block}}"),
        *attention(f"{up}.attn.{{block}}", f"{ours}.attentions.{{block}}"),
        Rename(f"{up}.upsample.conv.{LEAF}", f"decoder.upsamples.{level}.conv.{LEAF}"),
        *(
            row
            for net in ("encoder", "decoder")
            for row in (
                *residual(f"{net}.mid.block_1", f"{net}.middle.0"),
                *attention(f"{net}.mid.attn_1", f"{net}.middle.1"),
                *residual(f"{net}.mid.block_2", f"{net}.middle.2"),
            )
        ),
        *AROUND,
        *NORM_OUT,
    )


def conv_network(tensors: Tensors, net: str, groups: int = 32) -> ConvNetwork:
    """Return the section of an encoder or decoder from the shapes of its tensors.

    Args:
        tensors: shapes by our name.
        net: ``"encoder"`` or ``"decoder"``.
        groups: groups of its norms, which no shape tells.

    Raises:
        MismatchError: a tensor that decides is missing or of no convolution's shape.
        ConfigError: its widths are none that `ConvNetwork` has.
    """
    count = tensors.count(f"{net}.levels.")
    if not count:
        raise MismatchError(f"expected levels of the {net}, but the checkpoint has none: is it whole, of this family?")
    widths = [conv_channels(tensors, f"{net}.levels.{i}.blocks.0.conv1.weight")[0] for i in range(count)]
    stem = conv_channels(tensors, f"{net}.conv_in.weight")[0] if net == "encoder" else widths[0]
    base = _base([stem, *widths], groups)
    blocks = max(tensors.count(f"{net}.levels.{i}.blocks.") for i in range(count)) - (net == "decoder")
    side = "encoder.conv_out.weight" if net == "encoder" else "decoder.conv_in.weight"
    return ConvNetwork(
        channels=base,
        multipliers=tuple(width // base for width in widths),
        residual_blocks=blocks,
        attention_levels=tuple(i for i in range(count) if tensors.count(f"{net}.levels.{i}.attentions.")),
        z_channels=conv_channels(tensors, side)[net == "decoder"],
        groups=groups,
        middle_attention=f"{net}.middle.1.query.weight" in tensors,
        stem=stem // base,
    )


def conv_architecture(
    tensors: Tensors, spec: PreprocessSpec, quantizer: QuantizerSection, groups: int = 32, decoder: bool = True
) -> Architecture:
    """Return a whole model of the backbone and a quantizer."""
    encoder = conv_network(tensors, "encoder", groups)
    absent = AbsentNetwork(z_channels=conv_channels(tensors, "decoder.from_latents.weight")[0], factor=encoder.factor)
    return Architecture(
        encoder=encoder,
        quantizer=quantizer,
        decoder=conv_network(tensors, "decoder", groups) if decoder else absent,
        preprocess=spec.model_copy(update={"multiple": encoder.factor}),
    )


class CodebookSize(TypedDict):
    """How many codes there are, and how long."""

    dim: int
    vocab_size: int


def codebook_size(tensors: Tensors) -> CodebookSize:
    """Return what the codebook's shape says: the projection to latents says which side of the codebook is which."""
    dim = conv_channels(tensors, "encoder.to_latents.weight")[0]
    shape = tensors["quantizer.codebook"]
    if len(shape) == 2 and shape[0] == dim != shape[1]:
        raise MismatchError(f"expected a codebook [codes, {dim}], got {shape}: it is transposed")
    return {"dim": dim, "vocab_size": shape[0] if shape else 0}


def conv_facts(architecture: Architecture, stated: Facts) -> Facts:
    """Return what shapes say of a model, in the words that publishers' configurations are read in."""
    encoder = architecture.encoder
    if not isinstance(encoder, ConvNetwork):
        raise TypeError(f"expected the convolutional backbone, got {encoder.type!r}")
    widths = [encoder.channels * m for m in encoder.multipliers]
    stem = encoder.channels * encoder.stem
    return {
        "channels": stem,
        "multipliers": [width // stem if width % stem == 0 else width / stem for width in widths],
        "widths": widths,
        "residual_blocks": encoder.residual_blocks,
        "z_channels": encoder.z_channels,
        "dim": getattr(architecture.quantizer, "dim", None),
        "vocab_size": getattr(architecture.quantizer, "vocab_size", None),
        "groups": encoder.groups,
        "middle_attention": encoder.middle_attention,
        "attention_resolutions": _resolutions(encoder, stated),
    }


def _resolutions(encoder: ConvNetwork, stated: Facts) -> list[int] | None:
    """Return the image sizes with attention, and the stated ones that no level has; None if nothing is stated."""
    resolution, named = stated.get("resolution"), stated.get("attention_resolutions")
    if not isinstance(resolution, int) or not isinstance(named, list):
        return None
    reached = [resolution // 2**i for i in range(len(encoder.multipliers))]
    return [r for r in named if r not in reached or reached.index(r) in encoder.attention_levels] + [
        reached[i] for i in encoder.attention_levels if reached[i] not in named
    ]


def _base(widths: list[int], groups: int) -> int:
    """Return the widest base of which every width is a multiple, as `ConvNetwork` has them."""
    base = gcd(*widths)
    if base < 1 or base % groups:
        raise ConfigError(
            f"expected widths that are multiples of {groups} groups, got {widths}: "
            "give the publisher's configuration (config=) that says how many groups there are"
        )
    return base


def conv_channels(tensors: Tensors, name: str) -> tuple[int, int]:
    """Return the channels that a convolution gives and takes, from its weight's shape.

    Raises:
        MismatchError: it is missing, or of another shape.
    """
    shape = tensors[name]
    if len(shape) != 4 or 0 in shape:
        raise MismatchError(f"expected a convolution's weight for {name!r}, got one of shape {shape}")
    return shape[0], shape[1]
