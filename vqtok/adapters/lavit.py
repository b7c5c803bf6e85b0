"""LaVIT's dynamic tokenizer (Jin et al. 2023): three files, teacher, tokenizer and feature decoder.

Behind ``eva.``, ``tok.`` and ``dec.``, which the files' places give. What follows the tokenizer in them, into a
language model and a U-Net, is not ours.
"""

from __future__ import annotations

from math import isqrt

from vqtok.adapters.conv_backbone import LEAF
from vqtok.adapters.family import Facts, Family, Tensors, published
from vqtok.adapters.rules import Drop, Rename, Reshape, Rule
from vqtok.architecture import (
    DynamicArchitecture,
    MergerSection,
    TeacherSection,
    TransformerSection,
    VectorQuantizerSection,
)
from vqtok.errors import ConfigError, MismatchError
from vqtok.images import PreprocessSpec

# What the publisher's attention adds to its weights, see `Merger`.
_LEAK = 1e-6
# Heads cannot be told from shapes; every published part has this width and this many.
_WIDTH, _HEADS = 1408, 16


def _rows(foreign: str, native: str, names: dict[str, str]) -> tuple[Rule, ...]:
    return tuple(Rename(f"{foreign}{theirs}.{LEAF}", f"{native}{ours}.{LEAF}") for theirs, ours in names.items())


def _block(foreign: str, native: str, own: str, cross: str = "") -> tuple[Rule, ...]:
    """Return the rows of a transformer's blocks, by what its attentions are called."""
    names = {f"{own}.qkv": "attention.to_qkv", f"{own}.proj": "attention.to_out"}
    if cross:
        names |= {f"{cross}.{word}": f"cross_attention.to_{word[0]}" for word in ("query", "key", "value")}
        names |= {f"{cross}.proj": "cross_attention.to_out", "norm0": "norm0"}
    names |= {"norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.to_hidden", "mlp.fc2": "mlp.to_out"}
    return _rows(f"{foreign}.blocks.{{block}}.", f"{native}.blocks.{{block}}.", names)


RULES: tuple[Rule, ...] = (
    Rename("eva.cls_token", "features.class_token"),
    Rename("eva.pos_embed", "features.positions"),
    *_rows("eva.patch_embed.", "features.", {"proj": "from_pixels"}),
    Rename("eva.blocks.{block}.attn.{part:q|v}_bias", "features.blocks.{block}.attention.{part:q|v}_bias"),
    *_block("eva", "features", "attn"),
    Drop("eva.{unused:norm|fc_norm|head}.{leaf:weight|bias}", "EVA's classifier: features come before it"),
    *_rows(
        "tok.token_predictor.",
        "selector.",
        {
            "in_conv.0": "norm",
            "in_conv.1": "from_features",
            "out_conv.0": "to_half",
            "out_conv.2": "to_quarter",
            "out_conv.4": "to_scores",
        },
    ),
    *_rows("tok.causal_encoder.", "merger.", {"ln_vision": "context_norm", "norm": "norm"}),
    *_block("tok.causal_encoder", "merger", "token_causal_attn", "token_cross_attn"),
    *_rows("tok.encode_task_layer.", "projection.", {"0": "to_hidden", "2": "to_out"}),
    Rename("tok.quantize.embedding.weight", "quantizer.codebook"),
    Drop("tok.vit_proj.*", "the way of features into the language model"),
    Reshape("dec.pos_embed", "feature_decoder.positions", "first"),
    Reshape("dec.query_embed", "feature_decoder.queries", "first"),
    *_rows("dec.", "feature_decoder.", {"in_proj": "from_vectors", "norm": "norm"}),
    *_block("dec", "feature_decoder", "self_attn", "cross_attn"),
    *_rows("dec.decode_task_layer.", "feature_decoder.to_features.", {"0": "to_hidden", "2": "to_out"}),
    Drop("dec.{part:unet_proj|unet_proj_1|unet_proj_2|unet_attnpool}.*", "the way of features into the U-Net"),
)
_FILES = {"eva_vitg_psz14.bin": "eva.", "tokenizer_encoder.bin": "tok."}
# A folder may hold both decoders; the one of lower resolution is meant unless the path is of the other.
PARTS = tuple(
    {f"{folder}{name}": prefix for name, prefix in (_FILES | {decoder: "dec."}).items()}
    for decoder in ("tokenizer_decoder.bin", "highres_tokenizer_decoder.bin")
    for folder in ("", "visual_tokenizer/")
)


def _transformer(tensors: Tensors, ours: str, part: str, width: int, stated: Facts) -> Facts:
    """Return depth, heads and mlp_width of a transformer, which the publisher calls eva, tok or dec."""
    heads = stated.get(f"{part}.heads", _HEADS if width == _WIDTH else None)
    if type(heads) is not int or heads < 1 or width % heads:
        raise ConfigError(
            f"expected heads of {part} that divide its width {width}, got {heads!r}: no tensor tells how many there "
            f"are. Give config=, a mapping as {{'eva': {{'num_heads': 16}}, 'tok': {{'heads': 16}}, 'dec': "
            "{'num_heads': 16}}"
        )
    hidden = tensors[f"{ours}.blocks.0.mlp.to_hidden.weight"]
    return {"depth": tensors.count(f"{ours}.blocks."), "heads": heads, "mlp_width": hidden[0]}


def _spec(tensors: Tensors, spec: PreprocessSpec) -> PreprocessSpec:
    pixels, positions = tensors["features.from_pixels.weight"], tensors["features.positions"]
    side = isqrt(positions[1] - 1) if len(positions) == 3 and positions[1] > 1 else 0
    if len(pixels) != 4 or pixels[2] != pixels[3] or not side or side**2 != positions[1] - 1:
        raise MismatchError(
            f"expected square patches, and positions of a class token and a square grid, got {pixels} and {positions}"
        )
    return spec.model_copy(update={"multiple": pixels[2], "size": side * pixels[2]})


def _architecture(tensors: Tensors, stated: Facts, spec: PreprocessSpec) -> DynamicArchitecture:
    width, own = tensors["features.from_pixels.weight"][0], tensors["feature_decoder.from_vectors.weight"][0]
    dim, codebook = tensors["projection.to_out.weight"][0], tensors["quantizer.codebook"]
    if codebook[0] == dim != codebook[-1]:
        raise MismatchError(f"expected a codebook [codes, {dim}], got {codebook}: it is transposed")
    out = tensors["feature_decoder.to_features.to_out.weight"][0]
    return DynamicArchitecture(
        features=TeacherSection(width=width, **_transformer(tensors, "features", "eva", width, stated)),
        merger=MergerSection(**_transformer(tensors, "merger", "tok", width, stated), leak=_LEAK),
        quantizer=VectorQuantizerSection(dim=dim, vocab_size=codebook[0]),
        feature_decoder=TransformerSection(
            **_transformer(tensors, "feature_decoder", "dec", own, stated),
            decoder_width=None if own == width else own,
            feature_width=None if out == width else out,
        ),
        preprocess=_spec(tensors, spec),
    )


def _facts(architecture: DynamicArchitecture, stated: Facts) -> Facts:
    spec, teacher, decoder = architecture.preprocess, architecture.features, architecture.feature_decoder
    dim, own = getattr(architecture.quantizer, "dim", None), decoder.decoder_width or teacher.width
    facts: Facts = {f"{part}.{word}": x for part in ("eva", "tok", "dec") for word, x in _images(spec).items()}
    for part, section in {"eva": teacher, "tok": architecture.merger, "dec": decoder}.items():
        facts |= {f"{part}.depth": section.depth, f"{part}.heads": section.heads}
    return facts | {
        "eva.width": teacher.width,
        "tok.width": teacher.width,
        "dec.width": own,
        "tok.vocab_size": getattr(architecture.quantizer, "vocab_size", None),
        "tok.dim": dim,
        "dec.dim": dim,
        "feature_width": decoder.feature_width or teacher.width,
    }


def _images(spec: PreprocessSpec) -> Facts:
    return {"size": spec.size, "patch": spec.multiple}


LAVIT_DYNAMIC = Family(
    name="lavit_dynamic",
    source="jy0205/LaVIT, LaVIT/models, DynamicVisualTokenizer and VQDecoder",
    anchor="tok.causal_encoder.ln_vision.weight",
    marks=("eva.cls_token", "tok.token_predictor.in_conv.0.weight", "dec.query_embed"),
    rules=RULES,
    architecture=_architecture,
    facts=_facts,
    words={
        f"{part}.{theirs}": f"{part}.{ours}"
        for part, words in {
            "eva": {"embed_dim": "width", "depth": "depth", "num_heads": "heads"},
            "tok": {"width": "width", "layers": "depth", "heads": "heads", "n_code": "vocab_size", "code_dim": "dim"},
            "dec": {"in_chans": "dim", "embed_dim": "width", "depth": "depth", "num_heads": "heads"},
        }.items()
        for theirs, ours in (words | {"img_size": "size", "patch_size": "patch"}).items()
    }
    | {"decoder_out_dim": "feature_width"},
    preprocess=published(
        resize="stretch",
        size=224,
        low=0.0,
        high=1.0,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    ),
    parts=PARTS,
)
