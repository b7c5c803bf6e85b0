"""Attention in which every key has a weight of 0 or 1 that may learn (Rao et al. 2021, DynamicViT, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor


def policy_attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, weights: Tensor, epsilon: float = 0.0
) -> Tensor:
    """Return attention whose shares are ``w_ij e^(s_ij) / sum_k w_ik e^(s_ik)``, with a gradient to the weights.

    For weights of 0 and 1 the value is attention with a mask. The gradient of a weight is what more of that key would
    do, at keys of weight 0 too: there the key counts at most as the strongest one that is seen, so it stays bounded.
    A query all of whose weights are 0 takes the mean over all M keys.

    With an epsilon, shares are ``(w_ij e^(s_ij - t_i) + epsilon / M) / (sum_k w_ik e^(s_ik - t_i) + epsilon)``, t_i the
    largest score of all, seen or not: what published code for DynamicViT and LaVIT computes. A little of every key
    leaks in then, and much of it where the strongest keys are not seen.

    Args:
        query: [B, N, heads * d]; a head's channels lie side by side.
        key: [B, M, heads * d].
        value: [B, M, heads * d].
        heads: number of heads.
        weights: float [B, N or 1, M] of zeros and ones.
        epsilon: at least 0.

    >>> x = torch.eye(2)[None]
    >>> policy_attend(x, x, x, 1, torch.tensor([[[0.0, 1.0]]])).tolist()
    [[[0.0, 1.0], [0.0, 1.0]]]
    """
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    weights = weights.unsqueeze(1)
    seen = weights.detach() > 0
    blind = ~seen.any(dim=-1, keepdim=True)
    hidden = ~seen & ~blind & (epsilon == 0)
    top = scores.detach().masked_fill(hidden, -torch.inf).amax(dim=-1, keepdim=True)
    gaps = scores - top
    # Clamping seen keys changes no value, but would halve or stop the gradient of the strongest.
    gaps = torch.where(hidden, gaps.clamp(max=0), gaps)
    strengths = gaps.exp() * weights + (epsilon / key.shape[-2] or blind)
    shares = strengths / strengths.sum(dim=-1, keepdim=True)
    return (shares.to(value.dtype) @ value).transpose(1, 2).flatten(2)
