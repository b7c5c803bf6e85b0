"""TiTok (Yu et al. 2024) as 1d-tokenizer publishes it; its first models mix tokens and channels in a reshape."""

from __future__ import annotations

from collections.abc import Collection
from math import isqrt
from typing import Any

from vqtok.adapters.conv_backbone import LEAF, residual
from vqtok.adapters.family import Facts, Family, Tensors, published
from vqtok.adapters.rules import Drop, Rename, Rule
from vqtok.architecture import Architecture, TitokDecoderNetwork, TitokNetwork, VectorQuantizerSection
from vqtok.errors import ConfigError, MismatchError
from vqtok.images import PreprocessSpec

_NET = "{net:encoder|decoder}"
_THEIRS, _OURS = f"{_NET}.transformer.{{block}}", f"{_NET}.trunk.blocks.{{block}}"
_PIXELS = "decoder.to_pixels"

RULES: tuple[Rule, ...] = (
    Rename("latent_tokens", "encoder.latent_tokens"),
    Rename(f"encoder.patch_embed.{LEAF}", f"encoder.from_pixels.{LEAF}"),
    Rename(f"encoder.conv_out.{LEAF}", f"encoder.to_latents.{LEAF}"),
    Rename(f"decoder.decoder_embed.{LEAF}", f"decoder.from_latents.{LEAF}"),
    Rename("decoder.mask_token", "decoder.mask_token"),
    Rename(f"{_NET}.class_embedding", f"{_NET}.trunk.class_token"),
    Rename(f"{_NET}.positional_embedding", f"{_NET}.trunk.positions"),
    Rename(f"{_NET}.latent_token_positional_embedding", f"{_NET}.trunk.token_positions"),
    Rename(f"{_NET}.ln_pre.{LEAF}", f"{_NET}.trunk.norm_in.{LEAF}"),
    Rename(f"{_NET}.ln_post.{LEAF}", f"{_NET}.trunk.norm_out.{LEAF}"),
    Rename(f"{_THEIRS}.ln_1.{LEAF}", f"{_OURS}.norm1.{LEAF}"),
    Rename(f"{_THEIRS}.ln_2.{LEAF}", f"{_OURS}.norm2.{LEAF}"),
    Rename(f"{_THEIRS}.attn.in_proj_{LEAF}", f"{_OURS}.attention.to_qkv.{LEAF}"),
    Rename(f"{_THEIRS}.attn.out_proj.{LEAF}", f"{_OURS}.attention.to_out.{LEAF}"),
    Rename(f"{_THEIRS}.mlp.c_fc.{LEAF}", f"{_OURS}.mlp.to_hidden.{LEAF}"),
    Rename(f"{_THEIRS}.mlp.c_proj.{LEAF}", f"{_OURS}.mlp.to_out.{LEAF}"),
    Rename("quantize.embedding.weight", "quantizer.codebook"),
    # Pixels through another tokenizer's codes.
    Rename(f"decoder.ffn.{{step:0|2}}.{LEAF}", f"{_PIXELS}.to_scores.{{step:0|2}}.{LEAF}"),
    Rename("pixel_quantize.embedding.weight", f"{_PIXELS}.codebook"),
    *residual("pixel_decoder.up.{level}.block.{block}", f"{_PIXELS}.decoder.levels.{{level}}.{{block}}"),
    *residual("pixel_decoder.mid.{block}", f"{_PIXELS}.decoder.middle.{{block}}"),
    Rename(f"pixel_decoder.up.{{level}}.upsample_conv.{LEAF}", f"{_PIXELS}.decoder.upsamples.{{level}}.conv.{LEAF}"),
    Rename(
        f"pixel_decoder.{{end:conv_in|norm_out|conv_out}}.{LEAF}",
        f"{_PIXELS}.decoder.{{end:conv_in|norm_out|conv_out}}.{LEAF}",
    ),
    Drop("pixel_encoder.*", "the half of that tokenizer that made training's targets"),
)
# Later models make pixels at once: what lies under the same name is another layer.
DIRECT_RULES: tuple[Rule, ...] = (
    Rename(f"decoder.ffn.0.{LEAF}", f"{_PIXELS}.to_patch.{LEAF}"),
    Rename(f"decoder.conv_out.{LEAF}", f"{_PIXELS}.conv_out.{LEAF}"),
    *(rule for rule in RULES if not (isinstance(rule, Rename) and rule.foreign.startswith("decoder.ffn."))),
)


def _rules(names: Collection[str]) -> tuple[Rule, ...]:
    direct = "decoder.conv_out.weight" in names or f"{_PIXELS}.conv_out.weight" in names
    return DIRECT_RULES if direct else RULES


def _trunk(tensors: Tensors, net: str, patch: int, stated: Facts) -> dict[str, Any]:
    """Return the arguments that encoder and decoder share; 64 is every published head's width."""
    places, width = tensors[f"{net}.trunk.positions"]
    side = isqrt(places - 1)
    if side * side != places - 1 or patch < 1:
        raise MismatchError(f"expected positions of a class token and a square grid, got {places} of them")
    heads = stated.get("heads", max(1, width // 64))
    if type(heads) is not int or heads < 1 or width % heads:
        raise ConfigError(f"expected heads that divide {width}, got {heads!r}: say how many there are (config=)")
    return {
        "width": width,
        "depth": tensors.count(f"{net}.trunk.blocks."),
        "heads": heads,
        "patch": patch,
        "size": side * patch,
        "tokens": tensors[f"{net}.trunk.token_positions"][0],
    }


def _architecture(tensors: Tensors, stated: Facts, spec: PreprocessSpec) -> Architecture:
    direct = f"{_PIXELS}.to_patch.weight" in tensors
    if stated.get("legacy", not direct) == direct:
        raise MismatchError(f"expected is_legacy {not direct}, which the decoder's layers say, got {direct}")
    patch = tensors["encoder.from_pixels.weight"][2]
    encoder = TitokNetwork(**_trunk(tensors, "encoder", patch, stated), legacy=not direct)
    dim, codebook = tensors["encoder.to_latents.weight"][0], tensors["quantizer.codebook"]
    if codebook[0] == dim != codebook[-1]:
        raise MismatchError(f"expected a codebook [codes, {dim}], got {codebook}: it is transposed")
    unit = stated.get("unit", True)  # the published models' only value
    return Architecture(
        encoder=encoder,
        quantizer=VectorQuantizerSection(dim=dim, vocab_size=codebook[0], metric="cosine" if unit else "l2"),
        decoder=_decoder(tensors, encoder.size, direct, stated),
        preprocess=spec.model_copy(update={"multiple": encoder.size, "resize": "center", "size": encoder.size}),
    )


def _decoder(tensors: Tensors, size: int, direct: bool, stated: Facts) -> TitokDecoderNetwork:
    side = isqrt(max(1, tensors["decoder.trunk.positions"][0] - 1))
    trunk = _trunk(tensors, "decoder", size // max(1, side), stated)
    if direct:
        return TitokDecoderNetwork(**trunk)
    inner = f"{_PIXELS}.decoder"
    widths = [tensors[f"{inner}.levels.{i}.0.conv1.weight"][0] for i in range(tensors.count(f"{inner}.levels."))]
    codes, dim = tensors[f"{_PIXELS}.codebook"]
    if not widths or min(widths) < 1 or any(width % min(widths) for width in widths):
        raise MismatchError(f"expected widths of the pixel decoder that are multiples of the smallest, got {widths}")
    return TitokDecoderNetwork(
        **trunk,
        pixel_codes=codes,
        pixel_dim=dim,
        pixel_channels=min(widths),
        pixel_multipliers=tuple(width // min(widths) for width in widths),
        pixel_blocks=tensors.count(f"{inner}.middle."),
    )


def _facts(architecture: Architecture, stated: Facts) -> Facts:
    encoder, decoder, quantizer = architecture.encoder, architecture.decoder, architecture.quantizer
    if not isinstance(encoder, TitokNetwork) or not isinstance(decoder, TitokDecoderNetwork):
        raise TypeError("expected TiTok's networks")
    return {
        "size": encoder.size,
        "tokens": encoder.tokens,
        "patch": encoder.patch,
        "decoder_patch": decoder.patch,
        "width": encoder.width,
        "depth": encoder.depth,
        "decoder_depth": decoder.depth,
        "dim": getattr(quantizer, "dim", None),
        "vocab_size": getattr(quantizer, "vocab_size", None),
    }


TITOK = Family(
    name="titok",
    source="bytedance/1d-tokenizer, modeling/titok.py, TiTok",
    anchor="latent_tokens",
    marks=("encoder.latent_token_positional_embedding", "quantize.embedding.weight"),
    rules=RULES,
    variant=_rules,
    architecture=_architecture,
    facts=_facts,
    words={
        f"{root}{place}": word
        for root in ("", "model.")
        for place, word in {
            "vq_model.codebook_size": "vocab_size",
            "vq_model.token_size": "dim",
            "vq_model.use_l2_norm": "unit",
            "vq_model.is_legacy": "legacy",
            "vq_model.num_latent_tokens": "tokens",
            "vq_model.vit_enc_patch_size": "patch",
            "vq_model.vit_dec_patch_size": "decoder_patch",
        }.items()
    }
    | {
        "crop_size": "size",
        "dataset.preprocessing.crop_size": "size",
        "width": "width",
        "heads": "heads",
        "layers_enc": "depth",
        "layers_dec": "decoder_depth",
    },
    preprocess=published(low=0.0, high=1.0),
)
