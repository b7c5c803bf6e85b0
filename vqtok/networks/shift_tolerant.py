"""AlexNet and VGG16 of ST-LPIPS (Ghildyal and Liu 2022, "Shift-tolerant Perceptual Similarity Metric").

Where the plain networks step over pixels, these take every pixel, blur, and only then step (Zhang 2019, "Making
Convolutional Networks Shift-Invariant Again"), so that a shifted image has nearly the same features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtok.networks.feature_trunk import VGG16_WIDTHS, FeatureTrunk


class BlurPool(nn.Module):
    """Every second pixel of [B, C, H, W] blurred with (1, 2, 1) / 4 each way, mirrored two pixels beyond the edge.

    >>> BlurPool()(torch.eye(4)[None, None])[0, 0].tolist()
    [[0.375, 0.375, 0.125], [0.375, 0.375, 0.125], [0.125, 0.125, 0.5]]
    """

    def forward(self, x: Tensor) -> Tensor:
        """Blur and step."""
        row = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
        kernel = torch.outer(row, row).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def shift_tolerant_alexnet(low: float = -1.0, high: float = 1.0) -> FeatureTrunk:
    """Return the shift-tolerant AlexNet with fresh weights: the first convolution steps by one, blurs do the rest."""
    layers = [
        *(nn.Conv2d(3, 64, 11, padding=2), BlurPool(), nn.ReLU()),
        *(nn.MaxPool2d(3, 1), BlurPool(), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()),
        *(nn.MaxPool2d(3, 1), BlurPool(), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    ]
    return FeatureTrunk(layers, (3, 7, 11, 13, 15), low=low, high=high)


def shift_tolerant_vgg16(low: float = -1.0, high: float = 1.0) -> FeatureTrunk:
    """Return the shift-tolerant VGG16 with fresh weights: each pooling takes every pixel, then blurs and steps."""
    layers, ends, channels = [], [], 3
    for widths in VGG16_WIDTHS:
        if layers:
            layers += [nn.MaxPool2d(2, 1), BlurPool()]
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        ends.append(len(layers))
    return FeatureTrunk(layers, ends, low=low, high=high)
