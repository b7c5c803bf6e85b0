"""taming-transformers' VQGAN (Esser et al. 2021), and latent-diffusion's first stages, which have the same layout.

The publisher's ``legacy`` puts beta on the codebook term: to train on as it did, weigh ``codebook`` 0.25 and
``commitment`` 1.
"""

from __future__ import annotations

from vqtok.adapters.conv_backbone import codebook_size, conv_architecture, conv_facts, named_levels
from vqtok.adapters.family import Facts, Family, Tensors, published
from vqtok.adapters.rules import Drop, Rule, Shapes
from vqtok.architecture import Architecture, VectorQuantizerSection
from vqtok.images import PreprocessSpec

UNSEEN: tuple[Rule, ...] = (
    Drop("loss.*", "discriminator and perceptual network"),
    Drop("colorize", "colours in which logs show segmentations"),
    Drop("model_ema.*", "averages, which take the place of the raw weights where the family says so"),
)
WORDS = {
    "ddconfig.ch": "channels",
    "ddconfig.ch_mult": "multipliers",
    "ddconfig.num_res_blocks": "residual_blocks",
    "ddconfig.z_channels": "z_channels",
    "ddconfig.resolution": "resolution",
    "ddconfig.attn_resolutions": "attention_resolutions",
    "embed_dim": "dim",
    "n_embed": "vocab_size",
}
MARKS = (
    "encoder.down.0.block.0.conv1.weight",
    "decoder.up.0.block.0.conv1.weight",
    "quantize.embedding.weight",
    "quant_conv.weight",
)
RULES: tuple[Rule, ...] = (*named_levels("{level}"), *UNSEEN)


def _architecture(tensors: Tensors, stated: Facts, spec: PreprocessSpec) -> Architecture:
    return conv_architecture(tensors, spec, VectorQuantizerSection(**codebook_size(tensors)))


def four_blocks_or_averages(shapes: Shapes) -> bool:
    """Tell whether names and shapes could be IBQ's as well: its models have four blocks, and averaged weights."""
    blocks = max((int(name.split(".")[4]) for name in shapes if name.startswith("encoder.down.0.block.")), default=0)
    return blocks == 3 or any(name.startswith("model_ema.") for name in shapes)


TAMING_VQGAN = Family(
    name="taming_vqgan",
    source="CompVis/taming-transformers, taming/models/vqgan.py, VQModel",
    anchor="encoder.conv_in.weight",
    marks=MARKS,
    without=("decoder.up.0.upsample.conv.weight", "quantize.proj.weight"),
    rules=RULES,
    architecture=_architecture,
    facts=conv_facts,
    words=WORDS,
    classes=(
        "taming.models.vqgan.VQModel",
        "ldm.models.autoencoder.VQModel",
        "ldm.models.autoencoder.VQModelInterface",
        "VQModelInterface",
    ),
    top="state_dict",
    preprocess=published(),
)
