"""Open-MAGVIT2's image tokenizers (Luo et al. 2024): MAGVIT-v2's networks, one bit a channel, averaged weights.

The first channel is the least bit of a code. To train on as the publisher did, weigh ``commitment`` 0.25, ``entropy``
and ``diversity`` 0.1 each. What `export` writes are the weights themselves, without averages of them: read them with
``use_ema: false``.
"""

from __future__ import annotations

from vqtok.adapters.conv_backbone import AROUND, LEAF, NORM_OUT, conv_channels, residual
from vqtok.adapters.family import Facts, Family, Tensors, published
from vqtok.adapters.ibq import SEED_VOKEN_UNSEEN
from vqtok.adapters.rules import Rename, Rule
from vqtok.architecture import Architecture, LookupFreeQuantizerSection, Magvit2Network
from vqtok.errors import MismatchError
from vqtok.images import PreprocessSpec

_NET = "{net:encoder|decoder}"

RULES: tuple[Rule, ...] = (
    *residual("encoder.down.{level}.block.{block}", "encoder.levels.{level}.{block}"),
    *residual("decoder.up.{level}.block.{block}", "decoder.levels.{level}.{block}"),
    *residual(f"{_NET}.mid_block.{{block}}", f"{_NET}.middle.{{block}}"),
    Rename(f"encoder.down.{{level}}.downsample.{LEAF}", f"encoder.downsamples.{{level}}.{LEAF}"),
    Rename(f"decoder.up.{{level}}.upsample.conv1.{LEAF}", f"decoder.upsamples.{{level}}.conv.{LEAF}"),
    Rename(f"decoder.adaptive.{{level}}.gamma.{LEAF}", f"decoder.adaptive.{{level}}.scale.{LEAF}"),
    Rename(f"decoder.adaptive.{{level}}.beta.{LEAF}", f"decoder.adaptive.{{level}}.shift.{LEAF}"),
    *(rule for rule in AROUND if "quant" not in rule.foreign),
    *NORM_OUT,
    *SEED_VOKEN_UNSEEN,
)


def _network(tensors: Tensors, net: str) -> Magvit2Network:
    """Return the section of an encoder or decoder from the shapes of its tensors."""
    count, stem = tensors.count(f"{net}.levels."), conv_channels(tensors, "encoder.conv_in.weight")[0]
    widths = [conv_channels(tensors, f"{net}.levels.{i}.0.conv1.weight")[0] for i in range(count)]
    if not widths or any(width % stem for width in widths):
        raise MismatchError(f"expected widths that are multiples of the first convolution's {stem}, got {widths}")
    return Magvit2Network(
        channels=stem,
        multipliers=tuple(width // stem for width in widths),
        residual_blocks=tensors.count(f"{net}.middle."),
    )


def _architecture(tensors: Tensors, stated: Facts, spec: PreprocessSpec) -> Architecture:
    encoder = _network(tensors, "encoder")
    bits = conv_channels(tensors, "encoder.conv_out.weight")[0]
    return Architecture(
        encoder=encoder,
        quantizer=LookupFreeQuantizerSection(bits=bits, endian="little"),
        decoder=_network(tensors, "decoder"),
        preprocess=spec.model_copy(update={"multiple": encoder.factor}),
    )


def _facts(architecture: Architecture, stated: Facts) -> Facts:
    encoder, quantizer = architecture.encoder, architecture.quantizer
    if not isinstance(encoder, Magvit2Network) or not isinstance(quantizer, LookupFreeQuantizerSection):
        raise TypeError("expected Open-MAGVIT2's networks")
    return {
        "channels": encoder.channels,
        "multipliers": [*encoder.multipliers],
        "residual_blocks": encoder.residual_blocks,
        "z_channels": quantizer.bits,
        "dim": quantizer.bits,
        "vocab_size": 1 << quantizer.bits,
    }


OPEN_MAGVIT2_LFQ = Family(
    name="open_magvit2_lfq",
    source="TencentARC/SEED-Voken, src/Open_MAGVIT2/models/lfqgan.py, VQModel",
    anchor="encoder.conv_in.weight",
    marks=(
        "encoder.down.0.block.0.conv1.weight",
        "encoder.mid_block.0.conv1.weight",
        "decoder.adaptive.0.gamma.weight",
    ),
    rules=RULES,
    architecture=_architecture,
    facts=_facts,
    words={
        "ddconfig.ch": "channels",
        "ddconfig.ch_mult": "multipliers",
        "ddconfig.num_res_blocks": "residual_blocks",
        "ddconfig.z_channels": "z_channels",
        "embed_dim": "dim",
        "n_embed": "vocab_size",
        "use_ema": "averaged",
    },
    classes=tuple(
        f"{root}Open_MAGVIT2.models.{module}.VQModel"
        for root in ("src.", "", "OpenImageTokenizer.")
        for module in ("lfqgan", "lfqgan_pretrain")
    ),
    averaged=True,
    top="state_dict",
    preprocess=published(),
)
