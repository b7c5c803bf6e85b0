"""SEED-Voken's IBQ (Shi et al. 2024): taming's names, codes of the greatest product, averaged weights.

To train on as the publisher did, weigh ``index`` and ``commitment`` 1, ``codebook`` 0.25, and ``entropy`` and
``diversity`` 0.05 each. What `export` writes are the weights themselves, without averages of them: read them with
``use_ema: false``.
"""

from __future__ import annotations

from typing import Any

from vqtok.adapters.conv_backbone import codebook_size, conv_architecture, conv_facts, named_levels
from vqtok.adapters.family import Facts, Family, Tensors, published
from vqtok.adapters.rules import Drop, Rule
from vqtok.adapters.taming import MARKS, WORDS, four_blocks_or_averages
from vqtok.architecture import Architecture, IndexBackpropagationQuantizerSection
from vqtok.errors import ConfigError
from vqtok.images import PreprocessSpec

# Beside the weights in SEED-Voken's checkpoints, of IBQ and of Open-MAGVIT2. Averages lie there as well, and are taken
# in place of the tensors that they are of: any that is of none is left over.
SEED_VOKEN_UNSEEN: tuple[Rule, ...] = (
    Drop("loss.*", "discriminator and perceptual network"),
    Drop("model_ema.loss*", "averages of those"),
    Drop("model_ema.{about:decay|num_updates}", "how averages are taken"),
    Drop("colorize", "colours in which logs show segmentations"),
)
RULES: tuple[Rule, ...] = (*named_levels("{level}"), *SEED_VOKEN_UNSEEN)


def _architecture(tensors: Tensors, stated: Facts, spec: PreprocessSpec) -> Architecture:
    options: dict[str, Any] = {"penalties": ("entropy", "diversity") if stated.get("penalised", True) else ()}
    if "entropy_temperature" in stated:
        options["entropy_temperature"] = _positive(stated["entropy_temperature"])
    quantizer = IndexBackpropagationQuantizerSection(**codebook_size(tensors), **options)
    return conv_architecture(tensors, spec, quantizer)


def _positive(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigError(f"expected entropy_temperature above 0, got {value!r}")
    return float(value)


SEED_VOKEN_IBQ = Family(
    name="seed_voken_ibq",
    source="TencentARC/SEED-Voken, src/IBQ/models/ibqgan.py, IBQ",
    anchor="encoder.conv_in.weight",
    marks=MARKS,
    without=("decoder.up.0.upsample.conv.weight", "quantize.proj.weight"),
    rules=RULES,
    architecture=_architecture,
    facts=conv_facts,
    words={
        **WORDS,
        "use_ema": "averaged",
        "use_entropy_loss": "penalised",
        "entropy_temperature": "entropy_temperature",
    },
    classes=tuple(
        f"{root}IBQ.models.{module}.IBQ"
        for root in ("src.", "", "OpenImageTokenizer.")
        for module in ("ibqgan", "ibqgan_pretrain")
    ),
    likely=four_blocks_or_averages,
    averaged=True,
    top="state_dict",
    preprocess=published(),
)
