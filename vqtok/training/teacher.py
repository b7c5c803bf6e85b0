"""A teacher for a dynamic tokenizer where no pretrained one is at hand: it learns to fill in photographs with holes.

What it could not have filled in is what a token is worth spending on; the selector learns that too. The published loss
alone tells it so only through a decoder that has learnt to put each token in its place, which takes long.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Filler(nn.Module):
    """A linear head that tells the colours of every patch's quarters from a teacher's features.

    Args:
        patch: side of a patch in pixels.
        width: channels of the features.
    """

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.patch, self.head = patch, nn.Linear(width, 12)

    def forward(self, teacher: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return float [B, 3, S, S], pixels filled in, and bool [B, N], which patches were hidden: half of them."""
        side = pixels.shape[-1] // self.patch
        hidden = torch.rand(len(pixels), 1, side, side, device=pixels.device) < 0.5
        holes = pixels.masked_fill(hidden.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3), 0)
        quarters = self.head(teacher(holes)).transpose(1, 2).unflatten(2, (side, side))
        quarters = F.pixel_shuffle(quarters, 2)
        return F.interpolate(quarters, scale_factor=self.patch // 2), hidden.flatten(1)


@torch.no_grad()
def surprise(filler: Filler, teacher: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return how badly hidden patches are filled in, float [B, N], and which were hidden, bool [B, N].

    In standard deviations from the mean of all that were hidden, at most 3: one poster must not outweigh a landscape.
    """
    filled, hidden = filler(teacher, pixels)
    error = F.avg_pool2d((filled - pixels).square().mean(dim=1), filler.patch).flatten(1)
    return ((error - error[hidden].mean()) / error[hidden].std()).clamp(max=3), hidden
