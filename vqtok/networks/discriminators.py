"""Discriminators: pixels to logits, larger where an image looks real. Plain torch: no compiler, any device."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtok.errors import ConfigError


class PatchDiscriminator(nn.Module):
    """A logit for every patch (Isola et al. 2017, appendix 6.1.2); with the defaults VQGAN's, whose patches are of 70.

    4x4 convolutions, LeakyReLU 0.2, BatchNorm after all but the first and last; weights start as N(0, 0.02). The layers
    lie in one sequence, in published order. Under DDP convert it with ``nn.SyncBatchNorm.convert_sync_batchnorm``.

    Args:
        channels: width after the first halving; doubled by each layer, up to eight times.
        layers: number of halvings.
        in_channels: channels of the pixels.

    >>> import torch
    >>> PatchDiscriminator()(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 1, 6, 6])
    """

    def __init__(self, *, channels: int = 64, layers: int = 3, in_channels: int = 3) -> None:
        super().__init__()
        self.smallest = 3 << layers
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (before, after) in enumerate(pairwise(widths), 1):
            stride = 2 if i < layers else 1
            # BatchNorm takes away what a bias would add.
            blocks.append(nn.Conv2d(before, after, 4, stride, 1, bias=False))
            blocks += [nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.apply(_initialize)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits [B, 1, h, w] of pixels [B, in_channels, H, W].

        Raises:
            ConfigError: H or W below 3 * 2^layers.
        """
        if min(pixels.shape[-2:]) < self.smallest:
            raise ConfigError(
                f"expected a height and width of at least {self.smallest}, got {tuple(pixels.shape[-2:])}. "
                "Train on larger crops or with fewer layers in the discriminator."
            )
        return self.layers(pixels)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


class EqualizedConv(nn.Module):
    """Convolution whose weights are stored as N(0, 1) and scaled by 1 / sqrt(fan in) when used (Karras et al. 2018).

    Args:
        channels: channels in.
        out_channels: channels out.
        kernel: side of the kernel, odd; a stride of 1 keeps the size.
        downsample: blur, then take every second position: half the size.
        active: add a bias and apply `scaled_leaky_relu`.
    """

    def __init__(
        self, channels: int, out_channels: int, kernel: int, *, downsample: bool = False, active: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if active else None
        self.scale = 1 / math.sqrt(channels * kernel * kernel)
        self.kernel, self.downsample = kernel, downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels, h, w] to [B, out_channels, h, w], or half of h and w."""
        padding = self.kernel // 2
        if self.downsample:
            # One position more on each side than the kernel needs: with the blur's four taps the result is centred.
            x = F.conv2d(blur(x, padding + 1), self.weight * self.scale, stride=2)
        else:
            x = F.conv2d(x, self.weight * self.scale, padding=padding)
        return x if self.bias is None else scaled_leaky_relu(x + self.bias[:, None, None])


class EqualizedLinear(nn.Module):
    """Linear map whose weights are scaled when used, as in `EqualizedConv`; [B, features] to [B, out_features]."""

    def __init__(self, features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.scale = 1 / math.sqrt(features)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map."""
        return F.linear(x, self.weight * self.scale, self.bias)


class StyleBlock(nn.Module):
    """Two 3x3 convolutions, the second halving the size, and a 1x1 past them; the sum keeps its variance."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = EqualizedConv(channels, channels, 3)
        self.conv2 = EqualizedConv(channels, out_channels, 3, downsample=True)
        self.shortcut = EqualizedConv(channels, out_channels, 1, downsample=True, active=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels, h, w] to [B, out_channels, h / 2, w / 2]."""
        return (self.conv2(self.conv1(x)) + self.shortcut(x)) / math.sqrt(2)


class StyleDiscriminator(nn.Module):
    """One logit an image: StyleGAN2's residual discriminator (Karras et al. 2020, figure 7c; config F's widths).

    Every operation has a second derivative, so the R1 penalty works on any device.

    Args:
        size: height and width of the images, a power of two, at least 8.
        capacity: a level of s x s positions has capacity / s channels.
        max_channels: no level has more.
        group: images over which the minibatch deviation is taken; where it does not divide a batch, the largest number
            below it that does.
        in_channels: channels of the pixels.

    Raises:
        ConfigError: a size that is not a power of two, or, in forward, images of another size.

    >>> import torch
    >>> StyleDiscriminator(size=16, max_channels=32)(torch.zeros(4, 3, 16, 16)).shape
    torch.Size([4, 1])
    """

    def __init__(
        self, *, size: int, capacity: int = 32768, max_channels: int = 512, group: int = 4, in_channels: int = 3
    ) -> None:
        super().__init__()
        if size < 8 or size & (size - 1):
            raise ConfigError(f"expected a size that is a power of two, at least 8, got {size}")
        self.size, self.group = size, group
        # Sizes from the image's down to 4 x 4.
        widths = [max(1, min(max_channels, capacity >> i)) for i in range(size.bit_length() - 1, 1, -1)]
        self.from_pixels = EqualizedConv(in_channels, widths[0], 1)
        self.blocks = nn.Sequential(*(StyleBlock(before, after) for before, after in pairwise(widths)))
        self.conv_out = EqualizedConv(widths[-1] + 1, widths[-1], 3)
        self.to_hidden = EqualizedLinear(widths[-1] * 16, widths[-1])
        self.to_logit = EqualizedLinear(widths[-1], 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits [B, 1] of pixels [B, in_channels, size, size]."""
        if tuple(pixels.shape[-2:]) != (self.size, self.size):
            raise ConfigError(f"expected images of {self.size} x {self.size}, got {tuple(pixels.shape[-2:])}")
        x = self.blocks(self.from_pixels(pixels))
        x = self.conv_out(torch.cat([x, minibatch_deviation(x, self.group)], dim=1))
        return self.to_logit(scaled_leaky_relu(self.to_hidden(x.flatten(1))))


def scaled_leaky_relu(x: Tensor) -> Tensor:
    """LeakyReLU 0.2 times sqrt(2), which about keeps the variance.

    >>> import torch
    >>> scaled_leaky_relu(torch.tensor([1.0, -1.0])).tolist()
    [1.4142135381698608, -0.2828427255153656]
    """
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def blur(x: Tensor, padding: int) -> Tensor:
    """Filter each channel of [B, C, h, w] by (1, 3, 3, 1) / 8 both ways; gives sides of h + 2 * padding - 3.

    >>> import torch
    >>> blur(torch.full((1, 1, 4, 4), 8.0), padding=0).item()
    8.0
    """
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype, device=x.device) / 8
    channels = x.shape[1]
    x = F.conv2d(x, taps.view(1, 1, 4, 1).expand(channels, -1, -1, -1), padding=(padding, 0), groups=channels)
    return F.conv2d(x, taps.view(1, 1, 1, 4).expand(channels, -1, -1, -1), padding=(0, padding), groups=channels)


def minibatch_deviation(x: Tensor, group: int) -> Tensor:
    """Return how much images of a group differ, [B, 1, h, w] (Karras et al. 2018, section 3).

    The standard deviation over the group at each channel and position, averaged over channels and positions. With
    g = ``group``, or the largest divisor of B below it, image i is in a group with i + B / g, i + 2 B / g, ...

    >>> import torch
    >>> minibatch_deviation(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1), group=4).flatten().tolist()
    [1.0, 1.0]
    """
    batch, _, height, width = x.shape
    size = next(g for g in range(min(group, batch), 0, -1) if batch % g == 0) if batch else 1
    groups = x.unflatten(0, (size, batch // size))
    deviation = (groups.var(dim=0, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    return deviation.repeat(size).view(batch, 1, 1, 1).expand(-1, 1, height, width)
