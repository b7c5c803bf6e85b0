"""AlexNet and VGG16 up to their last features, as LPIPS takes them (Zhang et al. 2018): five levels, each after a ReLU.

Layers are numbered as torchvision numbers them, so that its weights fit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# LPIPS' own: what its inputs in [-1, 1] are shifted and divided by, near ImageNet's means and deviations.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
VGG16_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class FeatureTrunk(nn.Module):
    """Layers in a row of which some outputs are kept: pixels [B, 3, H, W] to one [B, C_l, h_l, w_l] a level.

    Args:
        layers: all of them.
        ends: for each level the number of layers before its end.
        shift: subtracted from the pixels' channels.
        scale: divides them then.
        low: what black is in the pixels; the network has -1.
        high: what white is; the network has 1.

    >>> trunk = FeatureTrunk([nn.ReLU(), nn.MaxPool2d(2)], (1, 2), low=0, high=1)
    >>> [tuple(level.shape) for level in trunk(torch.zeros(1, 3, 4, 4))]
    [(1, 3, 4, 4), (1, 3, 2, 2)]
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        ends: Sequence[int],
        *,
        shift: Sequence[float] = (0.0, 0.0, 0.0),
        scale: Sequence[float] = (1.0, 1.0, 1.0),
        low: float = -1.0,
        high: float = 1.0,
    ) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.register_buffer("shift", torch.tensor(shift).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(scale).view(1, 3, 1, 1))
        starts = (0, *ends[:-1])
        widths = [next((x.out_channels for x in layers[:end][::-1] if isinstance(x, nn.Conv2d)), 3) for end in ends]
        self.channels = tuple(widths)
        self.levels = nn.ModuleList(
            nn.Sequential(OrderedDict((str(i), layers[i]) for i in range(start, end)))
            for start, end in zip(starts, ends, strict=True)
        )

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the features of each level."""
        if (self.low, self.high) != (-1, 1):
            pixels = (pixels - self.low) * (2 / (self.high - self.low)) - 1
        x = (pixels - self.get_buffer("shift")) / self.get_buffer("scale")
        levels = []
        for level in self.levels:
            x = level(x)
            levels.append(x)
        return levels


def alexnet(low: float = -1.0, high: float = 1.0) -> FeatureTrunk:
    """Return AlexNet (Krizhevsky 2014, one column) with fresh weights, its levels as in LPIPS."""
    layers = [
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    ]
    return FeatureTrunk(layers, (2, 5, 8, 10, 12), shift=SHIFT, scale=SCALE, low=low, high=high)


def vgg16(low: float = -1.0, high: float = 1.0) -> FeatureTrunk:
    """Return VGG16 (Simonyan and Zisserman 2015, D) with fresh weights, its levels as in LPIPS."""
    layers, ends, channels = [], [], 3
    for widths in VGG16_WIDTHS:
        if layers:
            layers.append(nn.MaxPool2d(2, 2))
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        ends.append(len(layers))
    return FeatureTrunk(layers, ends, shift=SHIFT, scale=SCALE, low=low, high=high)
