"""Cosmos' discrete image tokenizers (NVIDIA 2025): finite scalars behind VQGAN's backbone over wavelets.

The publisher's files are TorchScript: the state dict of ``autoencoder.jit``, or those of ``encoder.jit`` and
``decoder.jit`` as one, is what is read here. Its own loader runs the model in bfloat16, where tokens near ties differ.
"""

from __future__ import annotations

from math import isqrt

from vqtok.adapters.conv_backbone import conv_network, named_levels
from vqtok.adapters.family import Facts, Family, Tensors, published
from vqtok.adapters.rules import Drop, Rule, Shapes
from vqtok.architecture import (
    Architecture,
    CosmosNetwork,
    FiniteScalarQuantizerSection,
    ResidualQuantizerSection,
)
from vqtok.errors import ConfigError, MismatchError
from vqtok.images import PreprocessSpec

# No tensor tells the levels; every published model has these.
_LEVELS = (8, 8, 8, 5, 5, 5)
RULES: tuple[Rule, ...] = (
    *named_levels("{level}"),
    Drop("{net:encoder|decoder}.{way:patcher|unpatcher}.*", "the wavelets, which are no weights"),
    Drop("{part:quantizer|inv_quant}.*", "constants of finite scalar quantization"),
)


def _patch(tensors: Tensors, name: str, axis: int) -> int:
    shape = tensors[name]
    patch = isqrt(shape[axis] // 3) if len(shape) == 4 else 0
    if not patch or 3 * patch**2 != shape[axis]:
        raise MismatchError(f"expected {name!r} of 3 channels times a square, a patch's pixels, got {shape}")
    return patch


def _network(tensors: Tensors, net: str, stated: Facts) -> CosmosNetwork:
    section = conv_network(tensors, net)
    way = "downsamples" if net == "encoder" else "upsamples"
    levels = range(len(section.multipliers))
    end = ("encoder.conv_in.weight", 1) if net == "encoder" else ("decoder.conv_out.weight", 0)
    return CosmosNetwork(
        channels=section.channels,
        multipliers=section.multipliers,
        residual_blocks=section.residual_blocks,
        attention_levels=section.attention_levels,
        z_channels=section.z_channels,
        patch=_patch(tensors, *end),
        patching=stated.get("patching", "haar"),
        halvings=sum(f"{net}.{way}.{level}.conv.weight" in tensors for level in levels),
    )


def _quantizer(dim: int, stated: Facts) -> FiniteScalarQuantizerSection | ResidualQuantizerSection:
    kind = stated.get("quantizer", "FSQ")
    levels = stated.get("levels", _LEVELS if dim == len(_LEVELS) else None)
    if not isinstance(levels, list | tuple) or len(levels) != dim:
        raise ConfigError(
            f"expected {dim} levels, one a channel of the latents, got {levels!r}: no tensor tells them. Give config=, "
            "a mapping as {'levels': [8, 8, 8, 5, 5, 5]}"
        )
    section = FiniteScalarQuantizerSection(levels=tuple(levels))
    if kind == "FSQ":
        return section
    if kind == "RESFSQ":
        return ResidualQuantizerSection(quantizers=(section,), shared=stated.get("codebooks", 4))
    raise ConfigError(f"expected the quantizer FSQ or RESFSQ, whose levels are no tensors, got {kind!r}")


def _architecture(tensors: Tensors, stated: Facts, spec: PreprocessSpec) -> Architecture:
    encoder = _network(tensors, "encoder", stated)
    shape = tensors["encoder.to_latents.weight"]
    return Architecture(
        encoder=encoder,
        quantizer=_quantizer(shape[0] if shape else 0, stated),
        decoder=_network(tensors, "decoder", stated),
        preprocess=spec.model_copy(update={"multiple": encoder.factor}),
    )


def _facts(architecture: Architecture, stated: Facts) -> Facts:
    encoder = architecture.encoder
    if not isinstance(encoder, CosmosNetwork):
        raise TypeError(f"expected Cosmos' network, got {encoder.type!r}")
    return {
        "pixel_channels": 3,
        "channels": encoder.channels,
        "multipliers": [*encoder.multipliers],
        "residual_blocks": encoder.residual_blocks,
        "z_channels": encoder.z_channels,
        "factor": encoder.factor,
        "patch": encoder.patch,
    }


def _six_scalars_of_patches(shapes: Shapes) -> bool:
    """Tell whether shapes are the published ones; Cosmos' continuous tokenizers and LDM's have the same names."""
    pixels, latents = shapes["encoder.conv_in.weight"], shapes["quant_conv.weight"]
    return len(pixels) == len(latents) == 4 and pixels[1] > 3 and latents[0] == len(_LEVELS)


COSMOS_FSQ = Family(
    name="cosmos_fsq",
    source="NVIDIA/Cosmos-Tokenizer, cosmos_tokenizer/networks/discrete_image.py, DiscreteImageTokenizer",
    anchor="encoder.conv_in.weight",
    marks=("quant_conv.weight", "post_quant_conv.weight", "encoder.mid.attn_1.q.weight", "decoder.conv_out.weight"),
    without=("quantize.embedding.weight", "quantizer.embedding.weight", "quantize.embed.weight"),
    rules=RULES,
    architecture=_architecture,
    facts=_facts,
    words={
        "in_channels": "pixel_channels",
        "channels": "channels",
        "channels_mult": "multipliers",
        "num_res_blocks": "residual_blocks",
        "z_channels": "z_channels",
        "spatial_compression": "factor",
        "patch_size": "patch",
        "patch_method": "patching",
        "levels": "levels",
        "quantizer": "quantizer",
        "num_quantizers": "codebooks",
    },
    likely=_six_scalars_of_patches,
    preprocess=published(),
)
