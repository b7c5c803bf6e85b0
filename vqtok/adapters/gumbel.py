"""taming-transformers' VQGAN with Gumbel quantization (Esser et al. 2021): codes are the greatest of projected logits.

The publisher draws codes in eval mode too; here they are those of the greatest logits, as in all of eval mode. To train
on as it did, weigh ``kl`` 1e-8 and let the temperature fall (`vqtok.training.schedules`).
"""

from __future__ import annotations

from vqtok.adapters.conv_backbone import conv_architecture, conv_channels, conv_facts
from vqtok.adapters.family import Facts, Family, Tensors, published
from vqtok.adapters.rules import Rename, Reshape, Rule
from vqtok.adapters.taming import RULES as TAMING_RULES
from vqtok.adapters.taming import WORDS
from vqtok.architecture import Architecture, GumbelQuantizerSection
from vqtok.errors import MismatchError
from vqtok.images import PreprocessSpec

RULES: tuple[Rule, ...] = (
    Rename("quantize.embed.weight", "quantizer.codebook"),
    Reshape("quantize.proj.weight", "quantizer.proj.weight", "conv-to-linear"),
    Rename("quantize.proj.bias", "quantizer.proj.bias"),
    *(rule for rule in TAMING_RULES if rule.foreign != "quantize.embedding.weight"),
)


def _architecture(tensors: Tensors, stated: Facts, spec: PreprocessSpec) -> Architecture:
    """Build the model; the projection says how many codes there are, what follows the codebook how long they are."""
    latent_dim = conv_channels(tensors, "encoder.to_latents.weight")[0]
    dim = conv_channels(tensors, "decoder.from_latents.weight")[1]
    projection, codebook = tensors["quantizer.proj.weight"], tensors["quantizer.codebook"]
    if len(projection) != 2:
        raise MismatchError(f"expected a projection by a 1x1 convolution, got one of shape {projection}")
    if codebook == (dim, projection[0]) != codebook[::-1]:
        raise MismatchError(f"expected a codebook [codes, {dim}], got {codebook}: it is transposed")
    quantizer = GumbelQuantizerSection(latent_dim=latent_dim, vocab_size=projection[0], dim=dim)
    return conv_architecture(tensors, spec, quantizer)


TAMING_GUMBEL = Family(
    name="taming_gumbel",
    source="CompVis/taming-transformers, taming/models/vqgan.py, GumbelVQ",
    anchor="encoder.conv_in.weight",
    marks=("encoder.down.0.block.0.conv1.weight", "quantize.proj.weight", "quantize.embed.weight"),
    rules=RULES,
    architecture=_architecture,
    facts=conv_facts,
    words=WORDS,
    classes=("taming.models.vqgan.GumbelVQ",),
    top="state_dict",
    preprocess=published(),
)
