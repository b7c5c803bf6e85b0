"""What low-precision screening keeps of a codebook: centred, scaled, rounded to float16, with its errors measured.

All of it is made by torch on the codebook's device, and nothing is read back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BIAS_COLUMNS = 16
"""The least inner dimension of a float16 product on tensor cores."""


@dataclass(frozen=True, slots=True)
class ScreeningCodebook:
    """A codebook as `kernels/triton/nearest_code.py` reads it.

    Attributes:
        centre: float32 [D], what is taken off the latents: the mean code, or 0 where no code has a norm ("dot").
        exponents: int32 [4]: of the vectors' scale, of the biases' scale, the range of a row's scale.
        bounds: float32 [6], rounded up: the longest scaled vector, what rounding took of it at most, the longest
            scaled code (not centred), the heaviest half norm in the vectors' scale, what rounding took of a bias at
            most, the largest bias.
        vectors: float16 [tiles * block_k, width], codes in the order of the tensor cores' columns.
        biases: float16 [tiles * block_k, 16]; empty where the vectors have room for them.
        columns: float32 [D, K], the codebook itself.
    """

    centre: Tensor
    exponents: Tensor
    bounds: Tensor
    vectors: Tensor
    biases: Tensor
    columns: Tensor


def screening_codebook(codebook: Tensor, half_norms: Tensor, block_k: int, width: int) -> ScreeningCodebook:
    """Prepare a codebook for screening.

    With m the mean code, c the centre and e' = e - m, a score is ``(z - c) e' + (c e' - h)`` and a term that is the
    same for all codes. The second part is the bias; its largest value is taken off too.

    Args:
        codebook: float32 [K, D], contiguous.
        half_norms: float32 [K].
        block_k: codes a tile.
        width: columns of ``vectors``, at least D; from D + 2 on the bias lies in columns D and D + 1.
    """
    codes, half = codebook.double(), half_norms.double()
    mean = codes.mean(dim=0).float()
    centre = torch.where((half_norms != 0).any(), mean, 0.0)
    moved = codes - mean.double()
    exponent = (6 - _exponent(moved.abs().amax())).clamp(-126, 127)
    scaled = moved * _power_of_two(exponent)
    vectors = scaled.half()
    bias = (moved * centre.double()).sum(dim=1) - half
    bias -= bias.amax()
    heaviest = bias.abs().amax()
    bias_exponent = (15 - _exponent(heaviest)).clamp(-1000, 1000)
    bias *= _power_of_two(bias_exponent)
    high = bias.half()
    low = (bias - high.double()).half()
    # In float64, what the sums that made the biases can have lost.
    lost = codebook.shape[1] * 2.0**-50 * (centre.double().norm() * moved.norm(dim=1).amax() + half.abs().amax())
    bounds = torch.stack(
        [
            vectors.double().norm(dim=1).amax(),
            (scaled - vectors.double()).norm(dim=1).amax(),
            codes.norm(dim=1).amax() * _power_of_two(exponent),
            half.abs().amax() * _power_of_two(exponent),
            (bias - high.double() - low.double()).abs().amax() + lost * _power_of_two(bias_exponent),
            high.double().abs().amax() + low.double().abs().amax(),
        ]
    )
    bounds = (bounds * (1 + 2.0**-20) + 2.0**-120).float()
    weightless = heaviest == 0
    lowest = torch.where(weightless, -1000, bias_exponent - exponent - 24)
    highest = torch.where(weightless, 1000, bias_exponent - exponent + 15)
    exponents = torch.stack([exponent, bias_exponent, lowest, highest]).int()
    rows, biases = _arranged(vectors, torch.stack([high, low], dim=1), block_k, width)
    return ScreeningCodebook(centre, exponents, bounds, rows, biases, codebook.t().contiguous())


def _arranged(vectors: Tensor, biases: Tensor, block_k: int, width: int) -> tuple[Tensor, Tensor]:
    """Return vectors and biases, padded and in the order of `screen`: column 8 i + 2 q + r of a tile is of group q."""
    count, dim = vectors.shape
    tiles = -(-count // block_k)
    codes = torch.arange(tiles * block_k, device=vectors.device, dtype=torch.int64)
    order = codes.view(tiles, 4, block_k // 8, 2).transpose(1, 2).reshape(-1)
    # The last group repeats its last code: a code that does not exist must not raise the group's maximum.
    order = order.clamp(max=count - 1)
    rows = vectors.new_zeros(len(order), width)
    rows[:, :dim] = vectors[order]
    if dim + 2 <= width:
        rows[:, dim : dim + 2] = biases[order]
        return rows, biases.new_empty(0)
    padded = biases.new_zeros(len(order), _BIAS_COLUMNS)
    padded[:, :2] = biases[order]
    return rows, padded


def _exponent(x: Tensor) -> Tensor:
    """Return int64 e with x < 2^e, and 2^(e - 1) <= x unless x is 0, of float64 scalars."""
    return torch.frexp(x).exponent.long()


def _power_of_two(exponent: Tensor) -> Tensor:
    """Return float64 ``2 ** exponent``, exact, of int64 exponents in -1022..1023."""
    return ((exponent + 1023) << 52).view(torch.float64)
