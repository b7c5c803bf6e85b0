"""transformers' Emu3VQVAE (Wang et al. 2024), for images. A video's tokens are beyond this package."""

from __future__ import annotations

from math import gcd

from vqtok.adapters.conv_backbone import LEAF
from vqtok.adapters.family import Facts, Family, Tensors, published
from vqtok.adapters.rules import Drop, Rename, Rule
from vqtok.architecture import Architecture, Emu3Network, VectorQuantizerSection
from vqtok.errors import ConfigError, MismatchError
from vqtok.images import PreprocessSpec

_NET = "{net:encoder|decoder}"
_CONVS = "{part:conv1|conv2}"
_NORMS = "{part:norm1|norm2}"
_STATISTICS = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "variance"}


def _norm(foreign: str, native: str, decoder: bool) -> tuple[Rule, ...]:
    if not decoder:
        return (Rename(f"{foreign}.{LEAF}", f"{native}.norm.{LEAF}"),)
    words = {"norm_layer": "norm", "conv_y": "scale", "conv_b": "shift"}
    return tuple(Rename(f"{foreign}.{theirs}.{LEAF}", f"{native}.{ours}.{LEAF}") for theirs, ours in words.items())


def _residual(foreign: str, native: str, decoder: bool) -> tuple[Rule, ...]:
    return (
        Rename(f"{foreign}.{_CONVS}.{LEAF}", f"{native}.{_CONVS}.{LEAF}"),
        Rename(f"{foreign}.nin_shortcut.{LEAF}", f"{native}.shortcut.{LEAF}"),
        *_norm(f"{foreign}.{_NORMS}", f"{native}.{_NORMS}", decoder),
    )


def _attention(foreign: str, norm: str, native: str, decoder: bool) -> tuple[Rule, ...]:
    words = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "proj"}
    rows = (Rename(f"{foreign}.{theirs}.{LEAF}", f"{native}.{ours}.{LEAF}") for theirs, ours in words.items())
    return (*rows, *_norm(norm, f"{native}.norm", decoder))


def _net(net: str, side: str, decoder: bool) -> tuple[Rule, ...]:
    level, ours, middle = f"{net}.{side}.{{level}}", f"{net}.levels.{{level}}", f"{net}.middle_block"
    return (
        *_residual(f"{level}.block.{{block}}", f"{ours}.blocks.{{block}}", decoder),
        *_attention(
            f"{level}.attn.{{block}}", f"{level}.attn_norms.{{block}}", f"{ours}.attentions.{{block}}", decoder
        ),
        *_residual(f"{middle}.block_1", f"{net}.middle.0", decoder),
        *_attention(f"{middle}.attn_1", f"{middle}.attn_norm", f"{net}.middle.1", decoder),
        *_residual(f"{middle}.block_2", f"{net}.middle.2", decoder),
    )


RULES: tuple[Rule, ...] = (
    *_net("encoder", "down_block.down", decoder=False),
    *_net("decoder", "up_block.up", decoder=True),
    Rename(f"encoder.down_block.down.{{level}}.downsample.conv.{LEAF}", f"encoder.downsamples.{{level}}.conv.{LEAF}"),
    Rename(f"decoder.up_block.up.{{level}}.upsample.conv.{LEAF}", f"decoder.upsamples.{{level}}.conv.{LEAF}"),
    Rename(f"encoder.norm_out.{LEAF}", f"encoder.norm_out.{LEAF}"),
    *_norm("decoder.norm_out", "decoder.norm_out", decoder=True),
    Rename(f"{_NET}.{{end:conv_in|conv_out}}.{LEAF}", f"{_NET}.{{end:conv_in|conv_out}}.{LEAF}"),
    Rename(f"encoder.time_conv.{{step}}.conv.conv.{LEAF}", f"encoder.joins.{{step}}.{LEAF}"),
    Rename(f"decoder.time_conv.{{step}}.conv.conv.{LEAF}", f"decoder.splits.{{step}}.{LEAF}"),
    Rename(f"{_NET}.time_res_stack.{{block}}.{_CONVS}.conv.{LEAF}", f"{_NET}.over_frames.{{block}}.{_CONVS}.{LEAF}"),
    *(
        Rename(f"{_NET}.time_res_stack.{{block}}.{_NORMS}.{theirs}", f"{_NET}.over_frames.{{block}}.{_NORMS}.{ours}")
        for theirs, ours in _STATISTICS.items()
    ),
    Rename(f"quant_conv.conv.{LEAF}", f"encoder.to_latents.{LEAF}"),
    Rename(f"post_quant_conv.conv.{LEAF}", f"decoder.from_latents.{LEAF}"),
    Rename("quantize.embedding.weight", "quantizer.codebook"),
    Drop(f"{_NET}.time_res_stack.{{block}}.{_NORMS}.num_batches_tracked", "how long training went on"),
)


def _network(tensors: Tensors, net: str, stated: Facts) -> Emu3Network:
    count = tensors.count(f"{net}.levels.")
    widths = [tensors[f"{net}.levels.{i}.blocks.0.conv1.weight"][0] for i in range(count)]
    stem = tensors["encoder.conv_in.weight"][0] if net == "encoder" else gcd(*widths)
    if not widths or stem < 1 or any(width % stem for width in widths):
        raise MismatchError(f"expected widths that are multiples of the first convolution's {stem}, got {widths}")
    heads = stated.get("heads", 1)  # the published number
    if type(heads) is not int or heads < 1:
        raise ConfigError(f"expected num_attention_heads of at least 1, got {heads!r}")
    return Emu3Network(
        channels=stem,
        multipliers=tuple(width // stem for width in widths),
        residual_blocks=tensors.count(f"{net}.levels.0.blocks.") - (net == "decoder"),
        attention_levels=tuple(i for i in range(count) if tensors.count(f"{net}.levels.{i}.attentions.")),
        z_channels=tensors[f"{net}.over_frames.0.conv1.weight"][0],
        heads=heads,
        frames=2 ** tensors.count("encoder.joins."),
    )


def _architecture(tensors: Tensors, stated: Facts, spec: PreprocessSpec) -> Architecture:
    encoder = _network(tensors, "encoder", stated)
    dim, codebook = tensors["encoder.to_latents.weight"][0], tensors["quantizer.codebook"]
    if codebook[0] == dim != codebook[-1]:
        raise MismatchError(f"expected a codebook [codes, {dim}], got {codebook}: it is transposed")
    return Architecture(
        encoder=encoder,
        quantizer=VectorQuantizerSection(dim=dim, vocab_size=codebook[0]),
        decoder=_network(tensors, "decoder", stated),
        preprocess=spec.model_copy(update={"multiple": encoder.factor}),
    )


def _facts(architecture: Architecture, stated: Facts) -> Facts:
    encoder, quantizer = architecture.encoder, architecture.quantizer
    if not isinstance(encoder, Emu3Network) or not isinstance(quantizer, VectorQuantizerSection):
        raise TypeError("expected Emu3's networks")
    return {
        "channels": encoder.channels,
        "multipliers": [*encoder.multipliers],
        "residual_blocks": encoder.residual_blocks,
        "attention_levels": [*encoder.attention_levels],
        "z_channels": encoder.z_channels,
        "frames": encoder.frames,
        "dim": quantizer.dim,
        "vocab_size": quantizer.vocab_size,
    }


HF_EMU3_VQ = Family(
    name="hf_emu3_vq",
    source="huggingface/transformers, models/emu3/modeling_emu3.py, Emu3VQVAE",
    anchor="encoder.conv_in.weight",
    marks=("encoder.down_block.down.0.block.0.conv1.weight", "encoder.time_res_stack.0.conv1.conv.weight"),
    rules=RULES,
    architecture=_architecture,
    facts=_facts,
    words={
        "base_channels": "channels",
        "channel_multiplier": "multipliers",
        "num_res_blocks": "residual_blocks",
        "attn_resolutions": "attention_levels",  # numbers of levels, whatever the name says
        "latent_channels": "z_channels",
        "num_attention_heads": "heads",
        "temporal_downsample_factor": "frames",
        "embed_dim": "dim",
        "codebook_size": "vocab_size",
    },
    classes=("Emu3VQVAE", "Emu3ForConditionalGeneration", "Emu3Model", "emu3_vqgan", "emu3"),
    preprocess=published(),
)
