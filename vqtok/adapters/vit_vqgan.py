"""enhancing-transformers' ViT-VQGAN (after Yu et al. 2021): tanh in every block, stored positions, one image size."""

from __future__ import annotations

from math import isqrt
from typing import Any

from vqtok.adapters.conv_backbone import LEAF
from vqtok.adapters.family import Facts, Family, Tensors, published
from vqtok.adapters.rules import Drop, Rename, Reshape, Rule
from vqtok.architecture import Architecture, VectorQuantizerSection, VitNetwork
from vqtok.errors import ConfigError, MismatchError
from vqtok.images import PreprocessSpec

_NET = "{net:encoder|decoder}"
_THEIRS, _OURS = f"{_NET}.transformer.layers.{{block}}", f"{_NET}.blocks.{{block}}"

RULES: tuple[Rule, ...] = (
    Rename(f"encoder.to_patch_embedding.0.{LEAF}", f"encoder.from_pixels.{LEAF}"),
    Reshape("encoder.en_pos_embedding", "encoder.positions.table", "first"),
    Reshape("decoder.de_pos_embedding", "decoder.positions.table", "first"),
    Rename(f"{_THEIRS}.0.norm.{LEAF}", f"{_OURS}.norm1.{LEAF}"),
    Rename(f"{_THEIRS}.0.fn.to_qkv.weight", f"{_OURS}.attention.to_qkv.weight"),
    Rename(f"{_THEIRS}.0.fn.to_out.{LEAF}", f"{_OURS}.attention.to_out.{LEAF}"),
    Rename(f"{_THEIRS}.1.norm.{LEAF}", f"{_OURS}.norm2.{LEAF}"),
    Rename(f"{_THEIRS}.1.fn.net.0.{LEAF}", f"{_OURS}.mlp.to_hidden.{LEAF}"),
    Rename(f"{_THEIRS}.1.fn.net.2.{LEAF}", f"{_OURS}.mlp.to_out.{LEAF}"),
    Rename(f"{_NET}.transformer.norm.{LEAF}", f"{_NET}.norm.{LEAF}"),
    Rename(f"decoder.to_pixel.1.{LEAF}", f"decoder.to_pixels.{LEAF}"),
    Rename("quantizer.embedding.weight", "quantizer.codebook"),
    Rename(f"pre_quant.{LEAF}", f"encoder.to_latents.{LEAF}"),
    Rename(f"post_quant.{LEAF}", f"decoder.from_latents.{LEAF}"),
    Drop("loss.*", "discriminator and perceptual network"),
)


def _network(tensors: Tensors, net: str, stated: Facts) -> VitNetwork:
    """Return a section; of attention the shapes give heads times head_dim, and 64 is every published head's width."""
    pixels = tensors["encoder.from_pixels.weight"] if net == "encoder" else tensors["decoder.to_pixels.weight"]
    positions, hidden = tensors[f"{net}.positions.table"], tensors[f"{net}.blocks.0.mlp.to_hidden.weight"]
    inner = tensors[f"{net}.blocks.0.attention.to_qkv.weight"][0] // 3
    side = isqrt(positions[0])
    if len(pixels) != 4 or len(positions) != 2 or side * side != positions[0]:
        raise MismatchError(f"expected square patches and a square grid, got {pixels} and positions {positions}")
    heads = stated.get(f"{net}.heads", max(1, inner // 64))
    if type(heads) is not int or heads < 1 or inner % heads:
        raise ConfigError(f"expected heads that divide {inner}, got {heads!r}: say how many there are (config=)")
    return VitNetwork(
        width=pixels[0],
        depth=tensors.count(f"{net}.blocks."),
        heads=heads,
        mlp_width=hidden[0],
        patch=pixels[2],
        head_dim=inner // heads,
        positions="stored",
        grid=(side, side),
    )


def _architecture(tensors: Tensors, stated: Facts, spec: PreprocessSpec) -> Architecture:
    encoder = _network(tensors, "encoder", stated)
    codebook = tensors["quantizer.codebook"]
    dim = tensors["encoder.to_latents.weight"][0]
    if codebook[0] == dim != codebook[-1]:
        raise MismatchError(f"expected a codebook [codes, {dim}], got {codebook}: it is transposed")
    size = encoder.patch * tensors["encoder.positions.table"][0] ** 0.5
    return Architecture(
        encoder=encoder,
        quantizer=VectorQuantizerSection(dim=dim, vocab_size=codebook[0], metric="cosine"),
        decoder=_network(tensors, "decoder", stated),
        preprocess=spec.model_copy(update={"multiple": encoder.patch, "resize": "center", "size": int(size)}),
    )


def _facts(architecture: Architecture, stated: Facts) -> Facts:
    facts: dict[str, Any] = {"size": architecture.preprocess.size, "patch": architecture.preprocess.multiple}
    for net in ("encoder", "decoder"):
        section = getattr(architecture, net)
        facts |= {f"{net}.{word}": getattr(section, word) for word in ("width", "depth", "heads", "mlp_width")}
    quantizer = architecture.quantizer
    return facts | {"dim": getattr(quantizer, "dim", None), "vocab_size": getattr(quantizer, "vocab_size", None)}


VIT_VQGAN = Family(
    name="vit_vqgan",
    source="thuanz123/enhancing-transformers, enhancing/modules/stage1/vitvqgan.py, ViTVQ",
    anchor="encoder.en_pos_embedding",
    marks=("pre_quant.weight", "quantizer.embedding.weight", "decoder.de_pos_embedding"),
    rules=RULES,
    architecture=_architecture,
    facts=_facts,
    words={
        "image_size": "size",
        "patch_size": "patch",
        **{
            f"{net}.{theirs}": f"{net}.{ours}"
            for net in ("encoder", "decoder")
            for theirs, ours in {"dim": "width", "depth": "depth", "heads": "heads", "mlp_dim": "mlp_width"}.items()
        },
        "quantizer.embed_dim": "dim",
        "quantizer.n_embed": "vocab_size",
    },
    classes=("enhancing.modules.stage1.vitvqgan.ViTVQ",),
    top="state_dict",
    preprocess=published(low=0.0, high=1.0, filter="bilinear"),
)
