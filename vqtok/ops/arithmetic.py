"""The float32 and float64 arithmetic that every backend shares, so that their bits agree."""

from __future__ import annotations

import torch
from torch import Tensor


def fused_multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return ``a * b + c`` of float32 values with one rounding, on devices that have no such instruction.

    The product of two float32 is exact in float64. The sum is not: rounding it to float64 and then to float32 rounds
    twice. Two-sum gives the error of the first rounding, and with it the sum is rounded to odd (its last bit is set
    unless it is exact), which makes the second rounding the only one that counts.

    Args:
        a: float32 [...].
        b: float32, broadcastable with ``a``.
        c: float32, broadcastable with ``a``; may hold infinities, ``a`` and ``b`` may not.

    Returns:
        float32 [...], what IEEE 754 calls fusedMultiplyAdd.

    Source:
        Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd",
        IEEE Transactions on Computers 57(4), 2008.

    >>> fused_multiply_add(torch.tensor(8163685.0), torch.tensor(538733 * 2.0**-66), torch.tensor(1.0)) > 1
    tensor(True)
    """
    product, addend = a.double() * b.double(), c.double()
    total = product + addend
    of_product = total - addend
    error = (product - of_product) + (addend - (total - of_product))
    bits = total.view(torch.int64)
    inexact_and_even = (error != 0) & (bits & 1 == 0) & total.isfinite()
    outward = (error > 0) == (total > 0)
    step = torch.where(outward, 1, -1)
    return torch.where(inexact_and_even, bits + step, bits).view(torch.float64).float()


def half_squared_norms(codebook: Tensor) -> Tensor:
    """Return half of each row's squared norm: summed in float64 over d = 0..D-1, rounded once.

    Args:
        codebook: float32 [K, D].

    Returns:
        float32 [K]; infinity where float32 ends.
    """
    return (_squared_norms(codebook) / 2).float()


def normalize_codebook(codebook: Tensor) -> Tensor:
    """Return the codebook's rows divided by their length: in float64, rounded once. Rows of zeros stay zero.

    Args:
        codebook: float32 [K, D].

    Returns:
        float32 [K, D].
    """
    squared = _squared_norms(codebook)
    return (codebook.double() / torch.where(squared > 0, squared, 1.0).sqrt()[:, None]).float()


def _squared_norms(codebook: Tensor) -> Tensor:
    """Return float64 [K]; a loop, because no torch reduction promises an order. The squares themselves are exact."""
    total = torch.zeros(codebook.shape[0], dtype=torch.float64, device=codebook.device)
    for column in codebook.t().contiguous():
        exact = column.double()
        total.addcmul_(exact, exact)
    return total
