"""One way through a tokenizer while it learns: reconstructed pixels, codes, and every loss that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqtok.dynamic import DynamicTokenizer
from vqtok.errors import ConfigError
from vqtok.image_tokenizer import ImageTokenizer
from vqtok.losses import cosine_feature_loss, keep_ratio_loss, l1, l2, logit_laplace
from vqtok.quantizers import GumbelQuantizer
from vqtok.quantizers.base import effective_latents
from vqtok.tokenizer import Tokenizer
from vqtok.training.recipe import PIXEL_LOSSES, SELECTOR_LOSSES
from vqtok.training.teacher import Filler, surprise
from vqtok.types import Quantized, Reconstruction


class Passed(NamedTuple):
    """What one way through gives; a kind of tuple that whatever wraps a module can walk.

    Attributes:
        pixels: float [B, 3, H, W], as reconstructed.
        codes: int64 of any shape; of no elements where nothing was quantized.
        losses: unweighted scalars by name.
        total: what ``weigh`` made of all this; None without it.
    """

    pixels: Tensor
    codes: Tensor
    losses: Mapping[str, Tensor]
    total: Tensor | None = None


class TrainingPass(nn.Module):
    """The tokenizer with its losses as one module, so that whatever spreads a module over devices sees one ``forward``.

    Args:
        tokenizer: what learns.
        wanted: names of the losses.
        perceptual: distance of two batches of pixels in [-1, 1], for the loss of that name.
        keep_ratio: rho, for the losses of a dynamic tokenizer.
        filler: what tells how surprising a patch is, for ``surprise``; it learns in a teacher's stage.
    """

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        wanted: frozenset[str],
        perceptual: nn.Module | None = None,
        keep_ratio: float = 1 / 3,
        filler: Filler | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer, self.wanted, self.keep_ratio = tokenizer, wanted, keep_ratio
        self.perceptual, self.filler = perceptual, filler

    def forward(
        self, pixels: Tensor, *, quantize: bool, teacher: bool, weigh: Callable[[Passed], Tensor] | None = None
    ) -> Passed:
        """Pass pixels [B, 3, H, W] in the model's own range.

        Args:
            pixels: of a batch.
            quantize: whether vectors are quantized; else there are no losses of the quantizer.
            teacher: whether a dynamic tokenizer's teacher learns, and nothing else: its loss is ``l2``.
            weigh: makes the total. It is called in here, where weights are whole and gradients may be asked for, as the
                adaptive weight does; what wraps a module forbids that of its outputs.
        """
        passed = self._teach(pixels) if teacher else self._pass(pixels, quantize)
        return passed if weigh is None else passed._replace(total=weigh(passed))

    def _pass(self, pixels: Tensor, quantize: bool) -> Passed:
        made = self._reconstruct(pixels, quantize)
        found = {**self._pixel_losses(made, pixels), **self._feature_losses(made, pixels)}
        if not quantize:
            return Passed(made.pixels, _no_codes(pixels), found)
        return Passed(made.pixels, made.quantized.codes, found | {**made.quantized.losses})

    def _teach(self, pixels: Tensor) -> Passed:
        if self.filler is None or not isinstance(self.tokenizer, DynamicTokenizer):
            raise ConfigError("expected a dynamic tokenizer in a stage with teacher = true, got another")
        filled = self.filler(self.tokenizer.features, pixels)[0]
        return Passed(filled, _no_codes(pixels), {"l2": l2(filled, pixels)})

    def _reconstruct(self, pixels: Tensor, quantize: bool) -> Reconstruction:
        tokenizer = self.tokenizer
        if isinstance(tokenizer, DynamicTokenizer):
            tokenizer.quantize = quantize
        if quantize or isinstance(tokenizer, DynamicTokenizer):
            return tokenizer(pixels)
        if not isinstance(tokenizer, Tokenizer):
            raise ConfigError("expected every stage to quantize: the levels of this tokenizer depend on each other")
        vectors = continuous(tokenizer.quantizer, tokenizer.latents(pixels))
        return tokenizer.reconstruct(Quantized(vectors, _no_codes(pixels), {}))

    def _pixel_losses(self, made: Reconstruction, pixels: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name in self.wanted & {*PIXEL_LOSSES}:
            if name == "l1":
                found[name] = l1(made.pixels, pixels)
            elif name == "l2":
                found[name] = l2(made.pixels, pixels)
            elif name == "logit_laplace":
                found[name] = logit_laplace(_parameters(made), pixels)
            elif self.perceptual is not None:
                found[name] = self.perceptual(self._centred(made.pixels), self._centred(pixels))
        return found

    def _centred(self, pixels: Tensor) -> Tensor:
        """Return pixels of the model's own range in [-1, 1], as perceptual networks take them."""
        spec = self.tokenizer.spec
        mean, std = (pixels.new_tensor(x).view(3, 1, 1) for x in (spec.mean, spec.std))
        return (pixels * std + mean - spec.low) * (2 / (spec.high - spec.low)) - 1

    def _feature_losses(self, made: Reconstruction, pixels: Tensor) -> dict[str, Tensor]:
        if not isinstance(self.tokenizer, DynamicTokenizer):
            return {}
        target = made.statistics["target"]
        found = {
            "features": cosine_feature_loss(made.statistics["features"], target),
            "keep_ratio": keep_ratio_loss(made.statistics["keep"], self.keep_ratio),
        }
        if self.wanted & {*SELECTOR_LOSSES} and self.filler is not None and learns(self.tokenizer.selector):
            likely = self.tokenizer.selector(target)[..., 0].exp()
            score, hidden = surprise(self.filler, self.tokenizer.features, pixels)
            found["surprise"] = -(likely * score)[hidden].mean()
            found["expected_ratio"] = keep_ratio_loss(likely, self.keep_ratio)
        return {name: loss for name, loss in found.items() if name in self.wanted}


def learns(module: nn.Module) -> bool:
    """Tell whether any parameter of a module asks for a gradient."""
    return any(x.requires_grad for x in module.parameters())


def continuous(quantizer: nn.Module, latents: Tensor) -> Tensor:
    """Return vectors [..., D] that a quantizer would round: of Gumbel's the mixture of rows without noise."""
    if not isinstance(quantizer, GumbelQuantizer):
        return effective_latents(latents, getattr(quantizer, "metric", "l2"))
    logits = latents if quantizer.proj is None else quantizer.proj(latents)
    return (logits / quantizer.temperature).softmax(dim=-1) @ quantizer.codebook


def _no_codes(pixels: Tensor) -> Tensor:
    return torch.zeros(0, dtype=torch.int64, device=pixels.device)


def _parameters(made: Reconstruction) -> Tensor:
    if "log_scale" not in made.statistics:
        raise ConfigError("expected a model of logit-Laplace statistics with the loss logit_laplace, got one of pixels")
    return torch.cat([made.statistics["mean"], made.statistics["log_scale"]], dim=1)
