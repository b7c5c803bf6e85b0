"""How many latents have each code, and their sums: what an EMA codebook and k-means live on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vqtok import ops

from .backends import ours
from .protocol import Call, Case, Contender, Shape, Verdict
from .verdicts import judge_values


@dataclass(frozen=True, slots=True)
class Chosen:
    """Latents float32 [N, D], the code int64 [N] that each has, and the number of codes."""

    latents: Tensor
    codes: Tensor
    vocab_size: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts [K] and sums [K, D]."""

    counts: Tensor
    sums: Tensor


def inputs(shape: Shape, device: str) -> Chosen:
    """Return Gaussian latents, each with some code."""
    rows, vocab_size, dim = shape
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(rows, dim, generator=generator)
    codes = torch.randint(vocab_size, (rows,), generator=generator)
    return Chosen(latents.to(device), codes.to(device), vocab_size)


def one_hot(given: Chosen) -> Call:
    """Prepare the product with a one-hot matrix, as most EMA codebooks have it."""

    def run() -> Statistics:
        chosen = F.one_hot(given.codes, given.vocab_size).float()
        return Statistics(chosen.sum(dim=0), chosen.t() @ given.latents)

    return run


def index_add(given: Chosen) -> Call:
    """Prepare torch's own indexed sum."""

    def run() -> Statistics:
        sums = given.latents.new_zeros(given.vocab_size, given.latents.shape[1])
        counts = torch.bincount(given.codes, minlength=given.vocab_size)
        return Statistics(counts, sums.index_add_(0, given.codes, given.latents))

    return run


def vqtok_statistics(given: Chosen) -> Call:
    """Prepare nothing."""
    return lambda: Statistics(*ops.code_statistics(given.latents, given.codes, given.vocab_size))


def contenders(device: str) -> list[Contender]:
    """Return the rivals, the baseline first, and vqtok."""
    rivals = [Contender("torch one-hot product", one_hot), Contender("torch index_add_", index_add)]
    return [*rivals, *ours("code_statistics", device, vqtok_statistics)]


def judge(given: Chosen, expected: Statistics, answer: Statistics) -> Verdict:
    """Compare sums; a wrong count makes its code wrong too. Rounding explains a float32 sum in any order."""
    magnitudes = ops.code_statistics(given.latents.abs(), given.codes, given.vocab_size)[1].double()
    explained = magnitudes * (expected.counts.double() + 1)[:, None] * 2.0**-24
    miscounted = (answer.counts.double() != expected.counts.double())[:, None]
    return judge_values(expected.sums, torch.where(miscounted, torch.nan, answer.sums), explained)


CASE = Case(
    name="statistics",
    summary="how many latents have each code, and their sums",
    axes=("latents", "codes", "dimensions"),
    shapes=((16384, 1024, 64), (16384, 8192, 32)),
    quick_shapes=((1024, 256, 8),),
    inputs=inputs,
    contenders=contenders,
    judge=judge,
    flop=lambda shape: 0.0,  # bound by memory
)
