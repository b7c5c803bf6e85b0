"""Distance between the features of two images (Zhang et al. 2018, LPIPS), over any network of features.

Networks and heads are the caller's: weights that are on disk, and no download.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vqtok.errors import ConfigError
from vqtok.losses.checks import at_least_float32, check_shapes_equal


@runtime_checkable
class FeaturePyramid(Protocol):
    """What gives features: pixels [B, 3, H, W] in the model's own range to one [B, C_l, h_l, w_l] a level.

    A network made for another range or for normalised channels does that to the pixels itself.

    >>> isinstance(lambda pixels: [pixels], FeaturePyramid)
    True
    """

    def __call__(self, pixels: Tensor, /) -> Sequence[Tensor]:
        """Return the features of each level."""
        ...


def perceptual(
    features_a: Sequence[Tensor],
    features_b: Sequence[Tensor],
    heads: Sequence[Tensor] | None = None,
    *,
    epsilon: float = 1e-10,
) -> Tensor:
    """Return the distance of each image [B]: sum over levels of the mean over positions of w . (a - b)^2.

    a and b are the features of a position, each divided by its length over the channels (equation 1).

    Args:
        features_a: one [B, C_l, h_l, w_l] a level.
        features_b: the same of the other image.
        heads: w, one [C_l] a level, not negative; all ones when not given.
        epsilon: added to the lengths. LPIPS has 1e-10; where features can be near zero without being zero, a larger
            one keeps gradients bounded.

    Raises:
        ConfigError: no levels, or numbers or shapes of levels differ.

    >>> a, b = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1), torch.tensor([5.0, 0.0]).view(1, 2, 1, 1)
    >>> [round(x, 4) for x in perceptual([a], [b]).tolist()]  # (0.6 - 1)^2 + 0.8^2
    [0.8]
    """
    counts = [len(features_a), len(features_b), *([] if heads is None else [len(heads)])]
    if len(set(counts)) > 1 or not counts[0]:
        raise ConfigError(f"expected as many levels, at least 1, on both sides and a head for each, got {counts}")
    levels = []
    for i, (a, b) in enumerate(zip(features_a, features_b, strict=True)):
        check_shapes_equal(a, b, f"features of level {i}")
        squares = (_unit(a, epsilon) - _unit(b, epsilon)).square()
        if heads is not None:
            _check_head(heads[i], a, i)
            squares = squares * heads[i].view(-1, 1, 1)
        levels.append(squares.sum(dim=1).mean(dim=(1, 2)))
    return torch.stack(levels).sum(dim=0)


class PerceptualLoss(nn.Module):
    """`perceptual` over one network, as a loss: the mean over images. The network is frozen and stays in eval mode.

    Args:
        network: a `FeaturePyramid`.
        heads: as in `perceptual`; kept as buffers.

    >>> class Pixels(nn.Module):
    ...     def forward(self, pixels: Tensor) -> list[Tensor]:
    ...         return [pixels]
    >>> PerceptualLoss(Pixels())(torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4)).item()
    0.0
    """

    def __init__(self, network: nn.Module, heads: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.levels = None if heads is None else len(heads)
        for i, head in enumerate(heads or ()):
            self.register_buffer(f"head{i}", head.detach().clone())

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Leave the network in eval mode, whatever the mode: a loss must not drift."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, pixels: Tensor, target: Tensor) -> Tensor:
        """Return the mean distance of pixels to target, both [B, 3, H, W]; the target gets no gradient."""
        heads = None if self.levels is None else [self.get_buffer(f"head{i}") for i in range(self.levels)]
        features: FeaturePyramid = self.network
        with torch.no_grad():
            wanted = features(target)
        return perceptual(features(pixels), wanted, heads).mean()


def _unit(features: Tensor, epsilon: float) -> Tensor:
    features = at_least_float32(features)
    # vector_norm has the gradient 0 at 0, where the square root of a sum of squares has NaN.
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + epsilon)


def _check_head(head: Tensor, features: Tensor, level: int) -> None:
    if head.shape != features.shape[1:2]:
        raise ConfigError(f"expected the head of level {level} to be [{features.shape[1]}], got {list(head.shape)}")
