"""Attention under a policy: which keys count is a number with a gradient, not a mask (Rao et al. 2021, DynamicViT)."""

from __future__ import annotations

import torch
from torch import Tensor


def policy_attend(query: Tensor, key: Tensor, value: Tensor, heads: int, policy: Tensor, leak: float = 0.0) -> Tensor:
    """Return attention with weights exp(score) * policy / sum(exp(score) * policy).

    Of a policy of zeros and ones the value is that of masked attention, `attend`, but for rounding; the gradient tells
    each policy what its key would have changed. A key that does not count and scores above those that do is taken to
    score as the best of them: its weight, added, could not be more than one either, but its share of the sum that it is
    not in has no bound, and such gradients drowned all others. A query whose policy is zero everywhere attends to all
    keys alike, as LaVIT's published code does. Scores are written out, [B, heads, N, M]: for training.

    Args:
        query: [B, N, heads * d].
        key: [B, M, heads * d].
        value: [B, M, heads * d].
        heads: number of heads.
        policy: float, at least 0, broadcast to [B, N, M].
        leak: 0, or the epsilon of equation 11: weights are then (exp(score - s) * policy + leak / M) over the sum of
            that, s the query's highest score of all keys, seen or not. A little of every key is seen, and the more of
            it the further the highest score is above those that count.

    Source:
        Rao et al., "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification", 2021, equation 11.

    >>> import torch
    >>> x = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> policy_attend(x, x, x, heads=1, policy=torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))[0].tolist()
    [[1.0, 0.0], [0.5, 0.5]]
    """
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    scores, policy = (query @ key.mT * query.shape[-1] ** -0.5).float(), policy.float().unsqueeze(-3)
    if leak:
        weights = (scores - scores.detach().amax(dim=-1, keepdim=True)).exp() * policy + leak / key.shape[-2]
        return _weighted(weights, value)
    alike = (policy == 0).all(dim=-1, keepdim=True)
    scores, policy = scores.masked_fill(alike, 0), policy.masked_fill(alike, 1)
    peak = scores.detach().masked_fill(policy == 0, -torch.inf).amax(dim=-1, keepdim=True)
    below = scores - peak
    below = torch.where(policy == 0, below.detach().clamp(max=0), below)
    return _weighted(below.exp() * policy, value)


def _weighted(weights: Tensor, value: Tensor) -> Tensor:
    weights = (weights / weights.sum(dim=-1, keepdim=True)).to(value.dtype)
    return (weights @ value).transpose(1, 2).flatten(2)
