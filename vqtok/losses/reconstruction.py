"""How far reconstructed pixels are from the image."""

from __future__ import annotations

from torch import Tensor

from vqtok.losses.checks import at_least_float32, check_shapes_equal


def l1(pixels: Tensor, target: Tensor) -> Tensor:
    """Return the mean of |pixels - target| over all of [B, C, H, W]: VQGAN's (Esser et al. 2021, code).

    Raises:
        ConfigError: shapes differ.

    >>> import torch
    >>> l1(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0])).item()
    2.0
    """
    check_shapes_equal(pixels, target, "pixels")
    return (at_least_float32(pixels) - at_least_float32(target)).abs().mean()


def l2(pixels: Tensor, target: Tensor) -> Tensor:
    """Return the mean of (pixels - target)^2 over all of [B, C, H, W]: VQ-VAE's (van den Oord et al. 2017).

    Raises:
        ConfigError: shapes differ.

    >>> import torch
    >>> l2(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0])).item()
    5.0
    """
    check_shapes_equal(pixels, target, "pixels")
    return (at_least_float32(pixels) - at_least_float32(target)).square().mean()
