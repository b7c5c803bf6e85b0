"""OpenAI's discrete VAE of DALL-E (Ramesh et al. 2021): two files, whole modules or their state dicts.

Behind ``encoder.`` and ``decoder.``, which the files' places give. The decoder's first convolution is of a one-hot map:
its weight is the codebook. Pixels lie in 0.1..0.9, where a logit-Laplace distribution has them.
"""

from __future__ import annotations

from vqtok.adapters.conv_backbone import conv_channels
from vqtok.adapters.family import Facts, Family, Tensors, published
from vqtok.adapters.rules import Rename, Reshape, Rule
from vqtok.architecture import Architecture, DvaeNetwork, GumbelQuantizerSection
from vqtok.errors import MismatchError
from vqtok.images import PreprocessSpec

_NET = "{net:encoder|decoder}"
_THEIRS, _OURS = f"{_NET}.blocks.group_{{group:1+}}.block_{{block:1+}}", f"{_NET}.groups.{{group}}.{{block}}"
_LETTERS = {"w": "weight", "b": "bias"}

RULES: tuple[Rule, ...] = (
    *(
        row
        for letter, word in _LETTERS.items()
        for row in (
            Rename(f"encoder.blocks.input.{letter}", f"encoder.conv_in.{word}"),
            Rename(f"{_NET}.blocks.output.conv.{letter}", f"{_NET}.conv_out.{word}"),
            Rename(f"{_THEIRS}.id_path.{letter}", f"{_OURS}.shortcut.{word}"),
            Rename(f"{_THEIRS}.res_path.conv_{{conv:1+}}.{letter}", f"{_OURS}.convs.{{conv}}.{word}"),
        )
    ),
    Reshape("decoder.blocks.input.w", "quantizer.codebook", "one-hot"),
    Rename("decoder.blocks.input.b", "decoder.bias"),
)
PARTS = (
    {"encoder.pkl": "encoder.", "decoder.pkl": "decoder."},
    {"encoder_state_dict.pt": "encoder.", "decoder_state_dict.pt": "decoder."},
)


def _network(tensors: Tensors, net: str) -> DvaeNetwork:
    """Return the section of an encoder or decoder; the decoder's groups begin with the coarsest."""
    count = tensors.count(f"{net}.groups.")
    widths = [conv_channels(tensors, f"{net}.groups.{i}.0.convs.3.weight")[0] for i in range(count)]
    finest_first = widths if net == "encoder" else widths[::-1]
    if not widths or any(width % finest_first[0] for width in widths):
        raise MismatchError(f"expected groups of widths that are multiples of the finest one's, got {finest_first}")
    return DvaeNetwork(
        channels=finest_first[0],
        multipliers=tuple(width // finest_first[0] for width in finest_first),
        residual_blocks=tensors.count(f"{net}.groups.0."),
    )


def _architecture(tensors: Tensors, stated: Facts, spec: PreprocessSpec) -> Architecture:
    encoder = _network(tensors, "encoder")
    codes, codebook = conv_channels(tensors, "encoder.conv_out.weight")[0], tensors["quantizer.codebook"]
    if len(codebook) != 2:
        raise MismatchError(f"expected a 1x1 convolution of one-hot maps, got one of shape {codebook}")
    # The publisher trained with mixtures of vectors, and its tokens are those of the greatest logits.
    quantizer = GumbelQuantizerSection(
        latent_dim=codes, vocab_size=codes, dim=codebook[1], projection=False, hard=False
    )
    return Architecture(
        encoder=encoder,
        quantizer=quantizer,
        decoder=_network(tensors, "decoder"),
        preprocess=spec.model_copy(update={"multiple": encoder.factor}),
        output="logit-laplace",
    )


def _facts(architecture: Architecture, stated: Facts) -> Facts:
    encoder, quantizer = architecture.encoder, architecture.quantizer
    if not isinstance(encoder, DvaeNetwork) or not isinstance(quantizer, GumbelQuantizerSection):
        raise TypeError("expected the dVAE's networks")
    return {
        "channels": encoder.channels,
        "residual_blocks": encoder.residual_blocks,
        "vocab_size": quantizer.vocab_size,
        "dim": quantizer.dim,
    }


OPENAI_DVAE = Family(
    name="openai_dvae",
    source="openai/DALL-E, dall_e/encoder.py, Encoder, and dall_e/decoder.py, Decoder",
    anchor="encoder.blocks.input.w",
    marks=("encoder.blocks.group_1.block_1.res_path.conv_1.w", "decoder.blocks.input.w"),
    rules=RULES,
    architecture=_architecture,
    facts=_facts,
    words={"n_hid": "channels", "n_blk_per_group": "residual_blocks", "vocab_size": "vocab_size", "n_init": "dim"},
    preprocess=published(low=0.1, high=0.9),
    parts=PARTS,
)
