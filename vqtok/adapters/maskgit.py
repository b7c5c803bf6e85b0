"""MaskGIT's VQGAN (Chang et al. 2022) in PyTorch, as open-muse and 1d-tokenizer publish it."""

from __future__ import annotations

from math import gcd

from vqtok.adapters.conv_backbone import AROUND, LEAF, NORM_OUT, residual
from vqtok.adapters.family import Facts, Family, Tensors, published
from vqtok.adapters.rules import Rename, Rule
from vqtok.architecture import Architecture, MaskgitNetwork, VectorQuantizerSection
from vqtok.errors import MismatchError
from vqtok.images import PreprocessSpec

_NET = "{net:encoder|decoder}"

RULES: tuple[Rule, ...] = (
    *residual("encoder.down.{level}.block.{block}", "encoder.levels.{level}.{block}"),
    *residual("decoder.up.{level}.block.{block}", "decoder.levels.{level}.{block}"),
    *residual(f"{_NET}.mid.{{block}}", f"{_NET}.middle.{{block}}"),
    Rename(f"decoder.up.{{level}}.upsample_conv.{LEAF}", f"decoder.upsamples.{{level}}.conv.{LEAF}"),
    *AROUND,
    *NORM_OUT,
)


def maskgit_network(tensors: Tensors, net: str) -> MaskgitNetwork:
    """Return the section of an encoder or decoder from the shapes of its tensors."""
    count = tensors.count(f"{net}.levels.")
    widths = [tensors[f"{net}.levels.{i}.0.conv1.weight"][0] for i in range(count)]
    stem = tensors["encoder.conv_in.weight"][0] if net == "encoder" else gcd(*widths)
    if not widths or stem < 1 or any(width % stem for width in widths):
        raise MismatchError(f"expected widths that are multiples of the first convolution's {stem}, got {widths}")
    return MaskgitNetwork(
        channels=stem,
        multipliers=tuple(width // stem for width in widths),
        residual_blocks=tensors.count(f"{net}.middle."),
    )


def _architecture(tensors: Tensors, stated: Facts, spec: PreprocessSpec) -> Architecture:
    encoder = maskgit_network(tensors, "encoder")
    dim, codebook = tensors["encoder.conv_out.weight"][0], tensors["quantizer.codebook"]
    if codebook[0] == dim != codebook[-1]:
        raise MismatchError(f"expected a codebook [codes, {dim}], got {codebook}: it is transposed")
    return Architecture(
        encoder=encoder,
        quantizer=VectorQuantizerSection(dim=dim, vocab_size=codebook[0]),
        decoder=maskgit_network(tensors, "decoder"),
        preprocess=spec.model_copy(update={"multiple": encoder.factor}),
    )


def _facts(architecture: Architecture, stated: Facts) -> Facts:
    encoder, quantizer = architecture.encoder, architecture.quantizer
    if not isinstance(encoder, MaskgitNetwork) or not isinstance(quantizer, VectorQuantizerSection):
        raise TypeError("expected MaskGIT's networks")
    return {
        "channels": encoder.channels,
        "multipliers": [*encoder.multipliers],
        "residual_blocks": encoder.residual_blocks,
        "dim": quantizer.dim,
        "vocab_size": quantizer.vocab_size,
    }


MASKGIT_VQGAN = Family(
    name="maskgit_vqgan",
    source="bytedance/1d-tokenizer, modeling/modules/maskgit_vqgan.py, PretrainedTokenizer",
    anchor="encoder.conv_in.weight",
    marks=("encoder.down.0.block.0.conv1.weight", "encoder.mid.0.conv1.weight", "quantize.embedding.weight"),
    without=("encoder.conv_in.bias", "quant_conv.weight"),
    rules=RULES,
    architecture=_architecture,
    facts=_facts,
    words={
        "hidden_channels": "channels",
        "channel_mult": "multipliers",
        "num_res_blocks": "residual_blocks",
        "z_channels": "dim",
        "num_embeddings": "vocab_size",
    },
    preprocess=published(low=0.0, high=1.0),
)
