"""rosinality's VQ-VAE-2 (Razavi et al. 2019): two levels, codebooks transposed, every layer of a stack counted."""

from __future__ import annotations

from collections.abc import Collection

from vqtok.adapters.conv_backbone import LEAF
from vqtok.adapters.family import Facts, Family, Tensors, published
from vqtok.adapters.rules import Drop, Rename, Reshape, Rule
from vqtok.architecture import EmaQuantizerSection, HierarchicalArchitecture, Vqvae2NetworkSection
from vqtok.errors import MismatchError
from vqtok.images import PreprocessSpec

_FACTOR = 8  # pixels of a top code, each way: the publisher's strides of 4 and 2 are its class's own


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


def _architecture(tensors: Tensors, stated: Facts, spec: PreprocessSpec) -> HierarchicalArchitecture:
    dim, codebook = tensors["network.to_top.weight"][0], tensors["quantizer.top.codebook"]
    if codebook[0] == dim != codebook[-1]:
        raise MismatchError(f"expected codebooks [{dim}, codes], got {codebook[::-1]}: they are transposed")
    blocks, inner = tensors.count("network.decode_both.1."), "network.decode_both.1.0.conv3.weight"
    network = Vqvae2NetworkSection(
        channels=tensors["network.to_top.weight"][1],
        residual_blocks=blocks,
        # Without a block nothing has this width, whatever it is said to be.
        residual_channels=tensors[inner][0] if blocks else stated.get("residual_channels", 32),
    )
    averages = {"decay": stated["decay"]} if "decay" in stated else {}
    return HierarchicalArchitecture(
        network=network,
        quantizer=EmaQuantizerSection(dim=dim, vocab_size=codebook[0], **averages),
        preprocess=spec.model_copy(update={"multiple": _FACTOR}),
    )


def _facts(architecture: HierarchicalArchitecture, stated: Facts) -> Facts:
    network, quantizer = architecture.network, architecture.quantizer
    return {
        "pixel_channels": 3,
        "channels": network.channels,
        "residual_blocks": network.residual_blocks,
        "residual_channels": network.residual_channels,
        "dim": getattr(quantizer, "dim", None),
        "vocab_size": getattr(quantizer, "vocab_size", None),
    }


VQVAE2 = Family(
    name="vqvae2",
    source="rosinality/vq-vae-2-pytorch, vqvae.py, VQVAE",
    anchor="enc_b.blocks.0.weight",
    marks=("enc_t.blocks.0.weight", "quantize_t.embed", "quantize_b.embed", "upsample_t.weight"),
    rules=vqvae2_rules(()),
    variant=vqvae2_rules,
    architecture=_architecture,
    facts=_facts,
    words={
        "in_channel": "pixel_channels",
        "channel": "channels",
        "n_res_block": "residual_blocks",
        "n_res_channel": "residual_channels",
        "embed_dim": "dim",
        "n_embed": "vocab_size",
        "decay": "decay",
    },
    classes=("vqvae.VQVAE",),
    preprocess=published(filter="bilinear"),
)
