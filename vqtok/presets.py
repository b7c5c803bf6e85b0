"""Presets: one frozen row a published or shipped tokenizer. Code never names a preset; people do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vqtok.architecture import (
    Architecture,
    ConvNetwork,
    DvaeNetwork,
    DynamicArchitecture,
    EmaQuantizerSection,
    GumbelQuantizerSection,
    HierarchicalArchitecture,
    MergerSection,
    ResidualQuantizerSection,
    SmallNetwork,
    TeacherSection,
    TransformerSection,
    VectorQuantizerSection,
    VitNetwork,
    Vqvae2NetworkSection,
)
from vqtok.errors import ConfigError
from vqtok.images import PreprocessSpec


@dataclass(frozen=True, slots=True)
class Preset:
    """A named architecture.

    Attributes:
        architecture: everything but weights.
        source: paper or publisher's configuration that it follows.
    """

    architecture: Architecture | HierarchicalArchitecture | DynamicArchitecture
    source: str


Quantizer = VectorQuantizerSection | EmaQuantizerSection | GumbelQuantizerSection | ResidualQuantizerSection


def _grid(
    encoder: SmallNetwork | ConvNetwork, quantizer: Quantizer, decoder: SmallNetwork | ConvNetwork | None = None
) -> Architecture:
    spec = PreprocessSpec(multiple=encoder.factor)
    return Architecture(encoder=encoder, quantizer=quantizer, decoder=decoder or encoder, preprocess=spec)


def _statistics(
    encoder: DvaeNetwork | VitNetwork, quantizer: Quantizer, decoder: DvaeNetwork | VitNetwork
) -> Architecture:
    """Return a model of logit-Laplace statistics, whose pixels lie in 0.1 .. 0.9."""
    spec = PreprocessSpec(multiple=encoder.factor, low=0.1, high=0.9)
    return Architecture(encoder=encoder, quantizer=quantizer, decoder=decoder, preprocess=spec, output="logit-laplace")


def _vit(encoder: VitNetwork, decoder: VitNetwork) -> Architecture:
    """Return ViT-VQGAN as the paper has it: one tanh layer at the ends, logit-Laplace statistics."""
    ends = [network.model_copy(update={"tanh_head": network.mlp_width}) for network in (encoder, decoder)]
    return _statistics(ends[0], _VIT_CODES, ends[1])


def _vit_parti(encoder: VitNetwork, decoder: VitNetwork) -> Architecture:
    """Return ViT-VQGAN as published checkpoints have it: plain pixels, as Parti."""
    spec = PreprocessSpec(multiple=encoder.patch, low=0.0, high=1.0)
    return Architecture(encoder=encoder, quantizer=_VIT_CODES, decoder=decoder, preprocess=spec)


def _two_levels(network: Vqvae2NetworkSection, quantizer: EmaQuantizerSection) -> HierarchicalArchitecture:
    spec = PreprocessSpec(multiple=network.factor)
    return HierarchicalArchitecture(network=network, quantizer=quantizer, preprocess=spec)


_CIFAR = SmallNetwork(channels=(64, 128), residual_blocks=(0, 2), residual_ratio=0.25)
_F16 = ConvNetwork(multipliers=(1, 1, 2, 2, 4), attention_levels=(4,))
_F8 = ConvNetwork(multipliers=(1, 2, 2, 4), attention_levels=(3,), z_channels=4)
_F8_WIDE = ConvNetwork(multipliers=(1, 1, 2, 4), attention_levels=(3,))
_F4_TINY = ConvNetwork(
    channels=16, multipliers=(1, 2, 4), residual_blocks=1, attention_levels=(2,), z_channels=32, groups=8
)
_DVAE = DvaeNetwork(multipliers=(1, 2, 4, 8))
_DVAE_CODES = GumbelQuantizerSection(latent_dim=8192, vocab_size=8192, dim=128, projection=False)
_DVAE_TINY = DvaeNetwork(channels=32, multipliers=(1, 2, 4), residual_blocks=1)
_VIT_CODES = VectorQuantizerSection(dim=32, vocab_size=8192, metric="cosine")
_VIT_S = VitNetwork(width=512, depth=8, heads=8, mlp_width=2048, patch=8)
_VIT_B = VitNetwork(width=768, depth=12, heads=12, mlp_width=3072, patch=8)
_VIT_L = VitNetwork(width=1280, depth=32, heads=16, mlp_width=5120, patch=8)
_VIT_TINY = VitNetwork(width=128, depth=3, heads=2, mlp_width=256, patch=4)
_TINY_CODES = EmaQuantizerSection(dim=16, vocab_size=1024, metric="cosine", revive_below=0.1, kmeans_iterations=10)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_VIT_PAPER = "Yu et al. 2021, table 1 and section 3"

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "vqvae-cifar": Preset(
            _grid(_CIFAR, EmaQuantizerSection(dim=64, vocab_size=512)),
            "van den Oord et al. 2017, section 4.1; widths of sonnet's CIFAR-10 example",
        ),
        "vqvae-tiny": Preset(_grid(_CIFAR, _TINY_CODES), "vqvae-cifar with a codebook that starts by k-means"),
        "vqvae2-256": Preset(
            _two_levels(Vqvae2NetworkSection(), EmaQuantizerSection(dim=64, vocab_size=512)),
            "Razavi et al. 2019, table 1; rosinality's vq-vae-2, 256 pixels",
        ),
        "vqvae2-tiny": Preset(
            _two_levels(Vqvae2NetworkSection(channels=64, residual_channels=32), _TINY_CODES),
            "vqvae2-256, narrower, with codebooks that start by k-means",
        ),
        "vqgan-f16-1024": Preset(
            _grid(_F16, VectorQuantizerSection(dim=256, vocab_size=1024)),
            "Esser et al. 2021; taming-transformers, imagenet f16 1024",
        ),
        "vqgan-f16-16384": Preset(
            _grid(_F16, VectorQuantizerSection(dim=256, vocab_size=16384)),
            "Esser et al. 2021; taming-transformers, imagenet f16 16384",
        ),
        "vqgan-f8-16384": Preset(
            _grid(_F8, VectorQuantizerSection(dim=4, vocab_size=16384)),
            "Rombach et al. 2022, table 8; latent-diffusion, first stage vq-f8",
        ),
        "vqgan-gumbel-f8-8192": Preset(
            _grid(_F8_WIDE, GumbelQuantizerSection(latent_dim=256, vocab_size=8192, dim=256)),
            "Esser et al. 2021, README of taming-transformers: OpenImages f8, Gumbel quantization",
        ),
        "vqgan-tiny": Preset(_grid(_F4_TINY, _TINY_CODES), "VQGAN's network, a twelfth as wide"),
        "vqgan-gumbel-tiny": Preset(
            _grid(_F4_TINY, GumbelQuantizerSection(latent_dim=16, vocab_size=1024, dim=16)),
            "vqgan-tiny with Gumbel quantization",
        ),
        "rqvae-tiny": Preset(
            _grid(
                _CIFAR,
                ResidualQuantizerSection(quantizers=(_TINY_CODES.model_copy(update={"metric": "l2"}),), shared=4),
            ),
            "vqvae-tiny with a shared codebook of four levels, as Lee et al. 2022",
        ),
        "dvae-f8-8192": Preset(
            _statistics(_DVAE, _DVAE_CODES, _DVAE),
            "Ramesh et al. 2021, appendix A; openai/DALL-E",
        ),
        "dvae-tiny": Preset(
            _statistics(
                _DVAE_TINY,
                GumbelQuantizerSection(latent_dim=512, vocab_size=512, dim=32, projection=False, hard=False),
                _DVAE_TINY,
            ),
            "dvae-f8-8192, narrower, for 4 x 4 pixels a token",
        ),
        "vit-vqgan-small": Preset(_vit(_VIT_S, _VIT_S), f"{_VIT_PAPER}, size small"),
        "vit-vqgan-base": Preset(_vit(_VIT_B, _VIT_B), f"{_VIT_PAPER}, size base"),
        "vit-vqgan-large": Preset(_vit(_VIT_S, _VIT_L), f"{_VIT_PAPER}, encoder small, decoder large"),
        "vit-vqgan-small-parti": Preset(_vit_parti(_VIT_S, _VIT_S), "enhancing-transformers, imagenet_vitvq_small"),
        "vit-vqgan-base-parti": Preset(_vit_parti(_VIT_B, _VIT_B), "enhancing-transformers, imagenet_vitvq_base"),
        "vit-vqgan-large-parti": Preset(_vit_parti(_VIT_S, _VIT_L), "enhancing-transformers, imagenet_vitvq_large"),
        "vit-vqgan-tiny": Preset(
            _statistics(
                _VIT_TINY.model_copy(update={"tanh_head": 256}),
                _TINY_CODES,
                _VIT_TINY.model_copy(update={"tanh_head": 256}),
            ),
            f"{_VIT_PAPER}, at 1 M parameters, for 4 x 4 pixels a token",
        ),
        "lavit-dynamic": Preset(
            DynamicArchitecture(
                features=TeacherSection(width=1408, depth=40, heads=16, mlp_width=6144),
                merger=MergerSection(depth=12, heads=16, mlp_width=6144, leak=1e-6),
                quantizer=VectorQuantizerSection(dim=32, vocab_size=16384),
                feature_decoder=TransformerSection(depth=12, heads=16, mlp_width=6144),
                preprocess=PreprocessSpec(
                    resize="stretch", size=224, multiple=14, low=0.0, high=1.0, mean=_CLIP_MEAN, std=_CLIP_STD
                ),
            ),
            "Jin et al. 2023, section 3.1; LaVIT's visual tokenizer over EVA-CLIP ViT-g/14",
        ),
        "dynamic-tiny": Preset(
            DynamicArchitecture(
                features=TeacherSection(width=96, depth=3, heads=4, mlp_width=192),
                merger=MergerSection(depth=2, heads=4, mlp_width=192),
                quantizer=EmaQuantizerSection(
                    dim=32, vocab_size=1024, metric="cosine", revive_below=0.1, kmeans_iterations=10
                ),
                feature_decoder=TransformerSection(depth=2, heads=4, mlp_width=192),
                pixel_decoder=SmallNetwork(channels=(32, 64, 96), residual_blocks=(0, 1, 1)),
                preprocess=PreprocessSpec(resize="center", size=96, multiple=8),
            ),
            "lavit-dynamic at 1 M parameters, for photographs of 96 pixels; examples/recipes/dynamic-tiny.toml",
        ),
        "photo-f8": Preset(
            _grid(
                SmallNetwork(channels=(48, 96, 192), residual_blocks=(0, 0, 3)),
                EmaQuantizerSection(dim=8, vocab_size=8192, metric="cosine", revive_below=0.1, kmeans_iterations=10),
                SmallNetwork(channels=(64, 128, 256), residual_blocks=(0, 2, 8)),
            ),
            "vqtok's default tokenizer; examples/recipes/photo-f8.toml",
        ),
        "photo-f16": Preset(
            _grid(
                SmallNetwork(channels=(48, 96, 192, 320), residual_blocks=(0, 0, 2, 4)),
                EmaQuantizerSection(dim=8, vocab_size=16384, metric="cosine", revive_below=0.1, kmeans_iterations=10),
                SmallNetwork(channels=(64, 128, 256, 384), residual_blocks=(0, 2, 3, 5)),
            ),
            "photo-f8's kind at 16 x 16 pixels a token; examples/recipes/photo-f16.toml",
        ),
    }
)


def find_preset(name: str) -> Preset:
    """Return a preset by name.

    Raises:
        ConfigError: there is none of that name; the message gives the nearest one or the list.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"presets: {', '.join(PRESETS)}"
        raise ConfigError(f"unknown preset {name!r}: {hint}")
    return PRESETS[name]
