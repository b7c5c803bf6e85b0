"""diffusers' VQModel, of which aMUSEd's is one: the same backbone, attention projections as linear layers."""

from __future__ import annotations

from vqtok.adapters.conv_backbone import (
    AROUND,
    LEAF,
    codebook_size,
    conv_architecture,
    conv_facts,
    linear_attention,
    residual,
)
from vqtok.adapters.family import Facts, Family, Tensors, published
from vqtok.adapters.rules import Rename, Rule
from vqtok.architecture import Architecture, VectorQuantizerSection
from vqtok.errors import ConfigError
from vqtok.images import PreprocessSpec

_UP, _OURS = "decoder.up_blocks.{level:mirror}", "decoder.levels.{level:mirror}"
_NET = "{net:encoder|decoder}"

RULES: tuple[Rule, ...] = (
    *residual("encoder.down_blocks.{depth}.resnets.{block}", "encoder.levels.{depth}.blocks.{block}", "conv_shortcut"),
    *linear_attention("encoder.down_blocks.{depth}.attentions.{block}", "encoder.levels.{depth}.attentions.{block}"),
    Rename(f"encoder.down_blocks.{{depth}}.downsamplers.0.conv.{LEAF}", f"encoder.downsamples.{{depth}}.conv.{LEAF}"),
    *residual(f"{_UP}.resnets.{{block}}", f"{_OURS}.blocks.{{block}}", "conv_shortcut"),
    *linear_attention(f"{_UP}.attentions.{{block}}", f"{_OURS}.attentions.{{block}}"),
    Rename(f"{_UP}.upsamplers.0.conv.{LEAF}", f"decoder.upsamples.{{level:mirror}}.conv.{LEAF}"),
    *(
        row
        for net in ("encoder", "decoder")
        for row in (
            *residual(f"{net}.mid_block.resnets.0", f"{net}.middle.0"),
            *linear_attention(f"{net}.mid_block.attentions.0", f"{net}.middle.1"),
            *residual(f"{net}.mid_block.resnets.1", f"{net}.middle.2"),
        )
    ),
    *AROUND,
    Rename(f"{_NET}.conv_norm_out.{LEAF}", f"{_NET}.norm_out.{LEAF}"),
)


def _architecture(tensors: Tensors, stated: Facts, spec: PreprocessSpec) -> Architecture:
    for word, only in (("activation", "silu"), ("norm_type", "group")):
        if stated.get(word, only) != only:
            raise ConfigError(f"expected a VQModel with {word} {only!r}, got {stated[word]!r}, which is not read here")
    groups = stated.get("groups", 32)
    if type(groups) is not int or groups < 1:
        raise ConfigError(f"expected norm_num_groups of at least 1, got {groups!r}")
    # aMUSEd's model, which takes pixels of [0, 1], is the one that looks up codes and has no attention in the middle.
    amused = stated.get("lookup", "encoder.middle.1.query.weight" not in tensors)
    pixels = spec.model_copy(update={"low": 0.0}) if amused else spec
    return conv_architecture(tensors, pixels, VectorQuantizerSection(**codebook_size(tensors)), groups)


DIFFUSERS_VQMODEL = Family(
    name="diffusers_vqmodel",
    source="huggingface/diffusers, models/autoencoders/vq_model.py, VQModel",
    anchor="encoder.conv_in.weight",
    marks=("encoder.down_blocks.0.resnets.0.conv1.weight", "quantize.embedding.weight"),
    rules=RULES,
    architecture=_architecture,
    facts=conv_facts,
    words={
        "block_out_channels": "widths",
        "layers_per_block": "residual_blocks",
        "latent_channels": "z_channels",
        "vq_embed_dim": "dim",
        "num_vq_embeddings": "vocab_size",
        "norm_num_groups": "groups",
        "mid_block_add_attention": "middle_attention",
        "lookup_from_codebook": "lookup",
        "act_fn": "activation",
        "norm_type": "norm_type",
    },
    classes=("VQModel",),
    preprocess=published(),
)
