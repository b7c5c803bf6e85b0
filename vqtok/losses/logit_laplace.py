"""The logit-Laplace likelihood of pixels (Ramesh et al. 2021, appendix A.3): a density on (0, 1), as pixels are.

A pixel x of [0, 1] is first moved off the ends, to (1 - 2 eps) x + eps with eps = 0.1. Here that is the model's own
pixel range: low = 0.1 and high = 0.9 in its PreprocessSpec.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vqtok.errors import ConfigError
from vqtok.losses.checks import at_least_float32, check_shapes_equal

LOWEST_LOG_SCALE = -7.0


def logit_laplace(parameters: Tensor, pixels: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of pixels, in nats a channel of a pixel.

    -log f = log 2 + ln b + ln(x (1 - x)) + |logit(x) - mu| / b. It holds the constant log 2, so that f integrates to
    one over (0, 1), and can be negative, as a density may be above one.

    ln b below -7 counts as -7: a level of 8 bits is 0.0125 wide or wider in logits, so b < 0.001 claims what no image
    can say, and a flat region would otherwise drive the loss to minus infinity. Computed in float32 at least.

    Args:
        parameters: [B, 2 C, H, W]: C channels of mu, then C of ln b, as the decoder gives them.
        pixels: [B, C, H, W] in [0.1, 0.9]. Outside (0, 1) there is no logit and the loss is not finite.

    Raises:
        ConfigError: shapes do not belong together.

    >>> parameters = torch.tensor([0.0, 0.0]).view(1, 2, 1, 1)  # mu = 0, b = 1
    >>> round(logit_laplace(parameters, torch.full((1, 1, 1, 1), 0.5)).item(), 4)  # ln 2 + ln(1/4)
    -0.6931
    """
    centre, log_scale = _halves(parameters)
    check_shapes_equal(centre, pixels, "the first half of the decoder's channels")
    x, log_scale = at_least_float32(pixels), log_scale.clamp(min=LOWEST_LOG_SCALE)
    distance = (torch.logit(x) - centre).abs()
    return (math.log(2) + log_scale + (x * (1 - x)).log() + distance * torch.exp(-log_scale)).mean()


def logit_laplace_pixels(parameters: Tensor) -> Tensor:
    """Return the median of each pixel, sigmoid(mu): parameters [B, 2 C, H, W] to pixels [B, C, H, W] in (0, 1).

    What lies outside the model's range [0.1, 0.9] is cut where pixels become an image.

    >>> logit_laplace_pixels(torch.zeros(1, 6, 2, 2)).shape
    torch.Size([1, 3, 2, 2])
    """
    return torch.sigmoid(_halves(parameters)[0])


def _halves(parameters: Tensor) -> tuple[Tensor, Tensor]:
    if parameters.ndim < 3 or parameters.shape[-3] % 2:
        raise ConfigError(
            f"expected [B, 2 C, H, W], mu and ln b of each channel, got {tuple(parameters.shape)}. "
            "Build the decoder with twice the channels of the pixels."
        )
    centre, log_scale = at_least_float32(parameters).chunk(2, dim=-3)
    return centre, log_scale
