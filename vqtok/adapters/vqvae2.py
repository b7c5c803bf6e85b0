"""rosinality's VQ-VAE-2 (Razavi et al. 2019): two levels, codebooks transposed, every layer of a stack counted."""

from __future__ import annotations

from collections.abc import Collection

from vqtok.adapters.conv_backbone import LEAF
from vqtok.adapters.rules import Drop, Rename, Reshape, Rule


def _stack(foreign: str, native: str, first: int) -> tuple[Rule, ...]:
    """Return the rows of residual blocks that the publisher counts on from the layers before them."""
    return tuple(
        Rename(f"{foreign}.{{block:{first}+}}.conv.{theirs}.{LEAF}", f"{native}.{{block}}.{ours}.{LEAF}")
        for theirs, ours in {"1": "conv3", "3": "conv1"}.items()
    )


def _layers(foreign: str, native: str, places: dict[int, int]) -> tuple[Rule, ...]:
    return tuple(Rename(f"{foreign}.{i}.{LEAF}", f"{native}.{j}.{LEAF}") for i, j in places.items())


def vqvae2_rules(names: Collection[str]) -> tuple[Rule, ...]:
    """Return the table; the layers behind a stack have numbers that depend on how many blocks it has."""
    blocks = sum(name.startswith("dec.blocks.") and name.endswith(".conv.1.weight") for name in names)
    blocks += sum(name.startswith("network.decode_both.1.") and name.endswith(".conv3.weight") for name in names)
    net = "network"
    return (
        *_layers("enc_b.blocks", f"{net}.encode_bottom", {0: 0, 2: 2, 4: 4}),
        *_stack("enc_b.blocks", f"{net}.encode_bottom.5", 5),
        *_layers("enc_t.blocks", f"{net}.encode_top", {0: 0, 2: 2}),
        *_stack("enc_t.blocks", f"{net}.encode_top.3", 3),
        *_layers("dec_t.blocks", f"{net}.decode_top", {0: 0, blocks + 2: 2}),
        *_stack("dec_t.blocks", f"{net}.decode_top.1", 1),
        *_layers("dec.blocks", f"{net}.decode_both", {0: 0, blocks + 2: 2, blocks + 4: 4}),
        *_stack("dec.blocks", f"{net}.decode_both.1", 1),
        Rename(f"quantize_conv_t.{LEAF}", f"{net}.to_top.{LEAF}"),
        Rename(f"quantize_conv_b.{LEAF}", f"{net}.to_bottom.{LEAF}"),
        Rename(f"upsample_t.{LEAF}", f"{net}.upsample_top.{LEAF}"),
        Reshape("quantize_t.embed", "quantizer.top.codebook", "transpose"),
        Reshape("quantize_b.embed", "quantizer.bottom.codebook", "transpose"),
        Drop("quantize_{level:t|b}.{average:cluster_size|embed_avg}", "averages that training goes on from"),
    )
