"""Presets: one frozen row a published or shipped tokenizer. Code never names a preset; people do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vqtok.architecture import Architecture, ConvNetwork, EmaQuantizerSection, SmallNetwork, VectorQuantizerSection
from vqtok.errors import ConfigError
from vqtok.images import PreprocessSpec


@dataclass(frozen=True, slots=True)
class Preset:
    """A named architecture.

    Attributes:
        architecture: everything but weights.
        source: paper or publisher's configuration that it follows.
    """

    architecture: Architecture
    source: str


def _small(encoder: SmallNetwork, quantizer: EmaQuantizerSection, decoder: SmallNetwork) -> Architecture:
    spec = PreprocessSpec(multiple=2 ** len(encoder.channels))
    return Architecture(encoder=encoder, quantizer=quantizer, decoder=decoder, preprocess=spec)


def _vqgan(network: ConvNetwork, *, dim: int, vocab_size: int) -> Architecture:
    spec = PreprocessSpec(multiple=2 ** (len(network.multipliers) - 1))
    quantizer = VectorQuantizerSection(dim=dim, vocab_size=vocab_size)
    return Architecture(encoder=network, quantizer=quantizer, decoder=network, preprocess=spec)


_CIFAR = SmallNetwork(channels=(64, 128), residual_blocks=(0, 2), residual_ratio=0.25)
_F16 = ConvNetwork(multipliers=(1, 1, 2, 2, 4), attention_levels=(4,))
_F8 = ConvNetwork(multipliers=(1, 2, 2, 4), attention_levels=(3,), z_channels=4)

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "vqvae-cifar": Preset(
            _small(_CIFAR, EmaQuantizerSection(dim=64, vocab_size=512), _CIFAR),
            "van den Oord et al. 2017, section 4.1; widths of sonnet's CIFAR-10 example",
        ),
        "vqgan-f16-1024": Preset(
            _vqgan(_F16, dim=256, vocab_size=1024), "Esser et al. 2021; taming-transformers, imagenet f16 1024"
        ),
        "vqgan-f16-16384": Preset(
            _vqgan(_F16, dim=256, vocab_size=16384), "Esser et al. 2021; taming-transformers, imagenet f16 16384"
        ),
        "vqgan-f8-16384": Preset(
            _vqgan(_F8, dim=4, vocab_size=16384), "Rombach et al. 2022, table 8; latent-diffusion, first stage vq-f8"
        ),
        "photo-f8": Preset(
            _small(
                SmallNetwork(channels=(48, 96, 192), residual_blocks=(0, 0, 3)),
                EmaQuantizerSection(dim=8, vocab_size=8192, metric="cosine", revive_below=0.1, kmeans_iterations=10),
                SmallNetwork(channels=(64, 128, 256), residual_blocks=(0, 2, 8)),
            ),
            "vqtok's default tokenizer; examples/train_photo_f8.py",
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
