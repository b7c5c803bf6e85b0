"""Which differences between two answers rounding explains, decided in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from .protocol import Verdict

_ROUNDOFF = 2.0**-24


def judge_codes(latents: Tensor, codebook: Tensor, expected: Tensor, answer: Tensor) -> Verdict:
    """Compare codes int64 [N] of latents [N, D]: where they differ, both distances are computed in float64.

    A float32 distance of D terms, summed in whatever order and with the squared norms taken apart or not, has an error
    of about sqrt(D) roundings of (|z| + |e|)^2. Two codes nearer to each other than that are a tie for float32.
    """
    answer = answer.reshape(-1).to(expected.device)
    if answer.shape != expected.shape or answer.dtype.is_floating_point:
        return Verdict(len(expected), len(expected), len(expected))
    rows = (answer != expected).nonzero()[:, 0]
    known = (answer[rows] >= 0) & (answer[rows] < len(codebook))
    strange, differing, rows = int((~known).sum()), len(rows), rows[known]
    z, ours, theirs = latents[rows].double(), codebook[expected[rows]].double(), codebook[answer[rows].long()].double()
    farther = (z - theirs).square().sum(1) - (z - ours).square().sum(1)
    magnitude = (z.norm(dim=1) + torch.maximum(ours.norm(dim=1), theirs.norm(dim=1))).square()
    explained = (latents.shape[1] ** 0.5 + 4) * _ROUNDOFF * magnitude
    return Verdict(
        of=len(expected),
        differing=differing,
        wrong=int((farther > explained).sum()) + strange,
        better=int((farther < -explained).sum()),
    )


def judge_values(expected: Tensor, answer: Tensor, explained: Tensor) -> Verdict:
    """Compare float rows [N, ...]: a row differs when a bit does, and is wrong beyond what rounding explains.

    Args:
        expected: [N, ...].
        answer: of the same shape.
        explained: the largest difference that rounding explains, broadcastable to them.
    """
    if answer.shape != expected.shape:
        return Verdict(len(expected), len(expected), len(expected))
    off = (answer.double() - expected.double()).abs()
    far = ~(off <= explained)  # NaN is far from everything
    differing, wrong = (x.reshape(len(x), -1).any(dim=1).sum() for x in (answer != expected, far))
    return Verdict(len(expected), int(differing), int(wrong))
