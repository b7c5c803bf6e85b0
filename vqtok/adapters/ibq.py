"""Families with taming's names and another quantizer: SEED-Voken's IBQ (Shi et al. 2024), taming's Gumbel variant.

Both are recognised, so that none of their files is taken for a plain VQGAN, whose tokens would be wrong.
"""

from __future__ import annotations

from collections.abc import Callable

from vqtok.adapters.conv_backbone import conv_facts
from vqtok.adapters.family import Facts, Family, Tensors, published
from vqtok.adapters.taming import MARKS, RULES, WORDS, four_blocks_or_averages
from vqtok.architecture import Architecture
from vqtok.errors import ConfigError
from vqtok.images import PreprocessSpec


def _awaits(name: str, lookup: str) -> Callable[[Tensors, Facts, PreprocessSpec], Architecture]:
    def refuse(tensors: Tensors, stated: Facts, spec: PreprocessSpec) -> Architecture:
        raise ConfigError(
            f"expected a checkpoint of a family that is opened here, got {name}, whose tokens are {lookup}: known, and "
            "not opened yet"
        )

    return refuse


SEED_VOKEN_IBQ = Family(
    name="seed_voken_ibq",
    source="TencentARC/SEED-Voken, src/IBQ/models/ibqgan.py, IBQ",
    anchor="encoder.conv_in.weight",
    marks=MARKS,
    without=("decoder.up.0.upsample.conv.weight", "quantize.proj.weight"),
    rules=RULES,
    architecture=_awaits("seed_voken_ibq", "those of the greatest product of latent and code"),
    facts=conv_facts,
    words=WORDS,
    classes=("src.IBQ.models.ibqgan.IBQ", "IBQ.models.ibqgan.IBQ", "OpenImageTokenizer.IBQ.models.ibqgan.IBQ"),
    likely=four_blocks_or_averages,
    averaged=True,
    preprocess=published(),
)

TAMING_GUMBEL = Family(
    name="taming_gumbel",
    source="CompVis/taming-transformers, taming/models/vqgan.py, GumbelVQ",
    anchor="encoder.conv_in.weight",
    marks=("encoder.down.0.block.0.conv1.weight", "quantize.proj.weight", "quantize.embed.weight"),
    rules=RULES,
    architecture=_awaits("taming_gumbel", "those of the greatest score of a projection"),
    facts=conv_facts,
    words=WORDS,
    classes=("taming.models.vqgan.GumbelVQ",),
    preprocess=published(),
)
