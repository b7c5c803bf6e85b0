"""Open-MAGVIT2's image tokenizers (Luo et al. 2024): MAGVIT-v2's networks, one bit a channel, averaged weights."""

from __future__ import annotations

from vqtok.adapters.conv_backbone import AROUND, LEAF, NORM_OUT, residual
from vqtok.adapters.rules import Rename, Rule
from vqtok.adapters.taming import UNSEEN

_NET = "{net:encoder|decoder}"

RULES: tuple[Rule, ...] = (
    *residual("encoder.down.{level}.block.{block}", "encoder.levels.{level}.{block}"),
    *residual("decoder.up.{level}.block.{block}", "decoder.levels.{level}.{block}"),
    *residual(f"{_NET}.mid_block.{{block}}", f"{_NET}.middle.{{block}}"),
    Rename(f"encoder.down.{{level}}.downsample.{LEAF}", f"encoder.downsamples.{{level}}.{LEAF}"),
    Rename(f"decoder.up.{{level}}.upsample.conv1.{LEAF}", f"decoder.upsamples.{{level}}.conv.{LEAF}"),
    Rename(f"decoder.adaptive.{{level}}.gamma.{LEAF}", f"decoder.adaptive.{{level}}.scale.{LEAF}"),
    Rename(f"decoder.adaptive.{{level}}.beta.{LEAF}", f"decoder.adaptive.{{level}}.shift.{LEAF}"),
    *AROUND,
    *NORM_OUT,
    *UNSEEN,
)
