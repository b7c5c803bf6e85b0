"""LlamaGen's VQ-16 and VQ-8 (Sun et al. 2024), and DeepSeek's Janus, which has them as ``gen_vision_model``.

Latents and codes are compared as unit vectors, and the decoder gets unit vectors. The decoder's blocks begin with the
coarsest.
"""

from __future__ import annotations

from vqtok.adapters.conv_backbone import (
    AROUND,
    LEAF,
    NORM_OUT,
    attention,
    codebook_size,
    conv_architecture,
    conv_facts,
    residual,
)
from vqtok.adapters.family import Facts, Family, Tensors, published
from vqtok.adapters.rules import Drop, Rename, Rule
from vqtok.architecture import Architecture, ConvNetwork, VectorQuantizerSection
from vqtok.images import PreprocessSpec

_UP, _OURS = "decoder.conv_blocks.{level:mirror}", "decoder.levels.{level:mirror}"

RULES: tuple[Rule, ...] = (
    *residual("encoder.conv_blocks.{depth}.res.{block}", "encoder.levels.{depth}.blocks.{block}"),
    *attention("encoder.conv_blocks.{depth}.attn.{block}", "encoder.levels.{depth}.attentions.{block}"),
    Rename(f"encoder.conv_blocks.{{depth}}.downsample.conv.{LEAF}", f"encoder.downsamples.{{depth}}.conv.{LEAF}"),
    *residual(f"{_UP}.res.{{block}}", f"{_OURS}.blocks.{{block}}"),
    *attention(f"{_UP}.attn.{{block}}", f"{_OURS}.attentions.{{block}}"),
    Rename(f"{_UP}.upsample.conv.{LEAF}", f"decoder.upsamples.{{level:mirror}}.conv.{LEAF}"),
    *(
        row
        for net in ("encoder", "decoder")
        for row in (
            *residual(f"{net}.mid.0", f"{net}.middle.0"),
            *attention(f"{net}.mid.1", f"{net}.middle.1"),
            *residual(f"{net}.mid.2", f"{net}.middle.2"),
        )
    ),
    *AROUND,
    *NORM_OUT,
    Drop("quantize.codebook_used", "which codes training has used of late"),
    Drop("loss.*", "discriminator and perceptual network"),
)


def _architecture(tensors: Tensors, stated: Facts, spec: PreprocessSpec) -> Architecture:
    unit = stated.get("unit", True)  # the publishers' only value
    quantizer = VectorQuantizerSection(**codebook_size(tensors), metric="cosine" if unit else "l2")
    return conv_architecture(tensors, spec, quantizer)


def _facts(architecture: Architecture, stated: Facts) -> Facts:
    decoder = architecture.decoder
    more = {"decoder_multipliers": [*decoder.multipliers]} if isinstance(decoder, ConvNetwork) else {}
    return conv_facts(architecture, stated) | more


LLAMAGEN_VQ = Family(
    name="llamagen_vq",
    source="FoundationVision/LlamaGen, tokenizer/tokenizer_image/vq_model.py, VQModel",
    anchor="encoder.conv_in.weight",
    marks=("encoder.conv_blocks.0.res.0.conv1.weight", "quantize.embedding.weight"),
    rules=RULES,
    architecture=_architecture,
    facts=_facts,
    words={
        "ch": "channels",
        "encoder_ch_mult": "multipliers",
        "decoder_ch_mult": "decoder_multipliers",
        "num_res_blocks": "residual_blocks",
        "z_channels": "z_channels",
        "codebook_embed_dim": "dim",
        "codebook_size": "vocab_size",
        "codebook_l2_norm": "unit",
    },
    classes=("VQ-16", "VQ-8", "multi_modality"),
    top="model",
    preprocess=published(),
)
