"""transformers' JanusVQVAE and ChameleonVQVAE: taming's names, each with a turn of its own."""

from __future__ import annotations

from vqtok.adapters.conv_backbone import codebook_size, conv_architecture, conv_facts, named_levels
from vqtok.adapters.family import Facts, Family, Tensors, published
from vqtok.adapters.taming import MARKS, UNSEEN
from vqtok.adapters.taming import RULES as TAMING_RULES
from vqtok.architecture import Architecture, VectorQuantizerSection
from vqtok.images import PreprocessSpec

_WORDS = {
    "base_channels": "channels",
    "channel_multiplier": "multipliers",
    "num_res_blocks": "residual_blocks",
    "latent_channels": "z_channels",
    "embed_dim": "dim",
    "num_embeddings": "vocab_size",
}


def _janus(tensors: Tensors, stated: Facts, spec: PreprocessSpec) -> Architecture:
    """Compare raw latents with raw codes, and give the decoder unit vectors: what transformers computes.

    DeepSeek's own code compares unit vectors; with the same weights it gives other tokens (family llamagen_vq).
    """
    return conv_architecture(tensors, spec, VectorQuantizerSection(**codebook_size(tensors), unit_vectors=True))


def _chameleon(tensors: Tensors, stated: Facts, spec: PreprocessSpec) -> Architecture:
    """Build the encoder half, and the decoder where the original checkpoint has it."""
    quantizer = VectorQuantizerSection(**codebook_size(tensors))
    return conv_architecture(tensors, spec, quantizer, decoder="decoder.conv_in.weight" in tensors)


HF_JANUS_VQ = Family(
    name="hf_janus_vq",
    source="huggingface/transformers, models/janus/modeling_janus.py, JanusVQVAE",
    anchor="encoder.conv_in.weight",
    marks=(*MARKS, "decoder.up.0.upsample.conv.weight"),
    without=("quantize.proj.weight",),
    rules=(*named_levels("{level:mirror}"), *UNSEEN),
    architecture=_janus,
    facts=conv_facts,
    words=_WORDS,
    classes=("JanusForConditionalGeneration", "JanusModel", "JanusVQVAE", "janus_vqgan", "janus"),
    preprocess=published(),
)

HF_CHAMELEON_VQ = Family(
    name="hf_chameleon_vq",
    source="huggingface/transformers, models/chameleon/modeling_chameleon.py, ChameleonVQVAE",
    anchor="encoder.conv_in.weight",
    marks=("encoder.down.0.block.0.conv1.weight", "quantize.embedding.weight", "quant_conv.weight"),
    without=("decoder.up.0.upsample.conv.weight", "quantize.proj.weight"),
    rules=TAMING_RULES,
    architecture=_chameleon,
    facts=conv_facts,
    words={**_WORDS, "resolution": "resolution", "attn_resolutions": "attention_resolutions"}
    | {f"ddconfig.{key}": word for key, word in {"ch": "channels", "ch_mult": "multipliers"}.items()},
    classes=("ChameleonForConditionalGeneration", "ChameleonModel", "ChameleonVQVAE", "chameleon_vqgan", "chameleon"),
    # With a decoder the names are taming's, and only the name tells that images are scaled as Chameleon's are.
    likely=lambda shapes: "decoder.conv_in.weight" not in shapes,
    # The processor multiplies by 0.0078 and not by 2 / 255; transparent images are laid on white.
    preprocess=published(low=-1.0, high=255 * 0.0078 - 1.0, alpha="white"),
)
