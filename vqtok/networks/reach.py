"""How far a network sees, which decides whether a large image may go through it in tiles."""

from __future__ import annotations

from torch import nn


def reach(network: nn.Module) -> int | None:
    """Return how far beyond its own cell an output of a network depends on the input, in positions of the input.

    An encoder's latent has a cell of f x f pixels, and its reach is in pixels; a decoder's pixel lies in the cell of a
    latent, and its reach is in latents. None means everything: attention, GroupNorm, or a network that does not say.

    >>> from vqtok.networks import SmallEncoder
    >>> reach(SmallEncoder(channels=(8, 8), residual_blocks=(0, 2), dim=4)), reach(nn.Linear(2, 2))
    (11, None)
    """
    return getattr(network, "reach", None)
