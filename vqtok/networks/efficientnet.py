"""EfficientNet-Lite0 (Tan and Le 2019; the Lite variants: no squeeze-excitation, ReLU6), for its features.

Inputs are padded as TensorFlow's ``SAME`` does, so any size goes through, and normalisation is what training left.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_EPSILON = 1e-3  # of the batch norms, as in the publisher's


class Stage(NamedTuple):
    """Blocks of one width: how many, the kernel, the first one's stride, the widening inside, the width."""

    blocks: int
    kernel: int
    stride: int
    widening: int
    channels: int


# Table 1 of the paper at the width and depth of B0; Lite0 differs in the activation, and in what it leaves out.
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
# The last stage of each resolution: strides 2, 4, 8, 16, 32.
LEVELS = (0, 1, 2, 4, 6)


class SameConv(nn.Conv2d):
    """A convolution without bias that gives ceil(size / stride), padded more at the bottom and right."""

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out_channels, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Pad and convolve [B, C, H, W]."""
        missing = [_missing(n, self.kernel_size[0], self.stride[0]) for n in (input.shape[3], input.shape[2])]
        if any(missing):
            input = F.pad(input, [side for n in missing for side in (n // 2, n - n // 2)])
        return self._conv_forward(input, self.weight, None)


def _missing(size: int, kernel: int, stride: int) -> int:
    return max((-(-size // stride) - 1) * stride + kernel - size, 0)


class InvertedBottleneck(nn.Module):
    """1x1 to a wider space, depthwise, 1x1 back without activation; the input is added where shapes are equal."""

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int, widening: int) -> None:
        super().__init__()
        wide = channels * widening
        self.expand, self.expand_norm = None, None
        if widening > 1:
            self.expand, self.expand_norm = SameConv(channels, wide, 1), _norm(wide)
        self.depthwise, self.depthwise_norm = SameConv(wide, wide, kernel, stride, groups=wide), _norm(wide)
        self.project, self.project_norm = SameConv(wide, out_channels, 1), _norm(out_channels)
        self.adds = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to [B, C, H, W]."""
        y = x
        if self.expand is not None and self.expand_norm is not None:
            y = F.relu6(self.expand_norm(self.expand(y)))
        y = F.relu6(self.depthwise_norm(self.depthwise(y)))
        y = self.project_norm(self.project(y))
        return x + y if self.adds else y


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPSILON)


class EfficientNetLite0(nn.Module):
    """Pixels [B, 3, H, W] to the features of five resolutions, strides 2, 4, 8, 16 and 32, finest first.

    Args:
        low: what black is in the pixels.
        high: what white is. The network itself was trained on (v - 127) / 128 of levels v in 0..255.

    >>> network = EfficientNetLite0().eval()
    >>> [tuple(level.shape[1:]) for level in network(torch.zeros(1, 3, 64, 50))]
    [(16, 32, 25), (24, 16, 13), (40, 8, 7), (112, 4, 4), (320, 2, 2)]
    """

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        self.low, self.scale = low, 255 / (high - low)
        self.channels = tuple(STAGES[i].channels for i in LEVELS)
        self.stem, self.stem_norm = SameConv(3, 32, 3, 2), _norm(32)
        self.stages, channels = nn.ModuleList(), 32
        for stage in STAGES:
            blocks = nn.Sequential()
            for i in range(stage.blocks):
                stride = stage.stride if i == 0 else 1
                blocks.append(InvertedBottleneck(channels, stage.channels, stage.kernel, stride, stage.widening))
                channels = stage.channels
            self.stages.append(blocks)
        self.head, self.head_norm = SameConv(channels, 1280, 1), _norm(1280)
        self.classifier = nn.Linear(1280, 1000)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the features of each level, [B, 16, H/2, W/2] to [B, 320, H/32, W/32], sizes rounded up."""
        # Channels last is a sixth faster, there and back.
        x = pixels.contiguous(memory_format=torch.channels_last)
        x = ((x - self.low) * self.scale - 127) / 128
        x = F.relu6(self.stem_norm(self.stem(x)))
        levels = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in LEVELS:
                levels.append(x)
        return levels

    def pooled(self, pixels: Tensor) -> Tensor:
        """Return what the classifier sees, the mean over positions: [B, 1280]."""
        return F.relu6(self.head_norm(self.head(self(pixels)[-1]))).mean(dim=(2, 3))

    def logits(self, pixels: Tensor) -> Tensor:
        """Return the scores of ImageNet's classes [B, 1000]."""
        return self.classifier(self.pooled(pixels))
