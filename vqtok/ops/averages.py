"""update_averages: one step of the moving averages that an EMA codebook is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vqtok.errors import ConfigError
from vqtok.ops.registration import register
from vqtok.ops.table import UPDATE_AVERAGES


@dataclass(frozen=True, slots=True, eq=False)
class Averages:
    """A codebook and the moving averages that it comes from.

    Attributes:
        sizes: float32 [K], how many latents a batch gives to each code.
        sums: float32 [K, D], the sum of those latents.
        codebook: float32 [K, D].

    >>> Averages(torch.ones(3), torch.zeros(3, 2), torch.zeros(3, 2)).codebook.shape
    torch.Size([3, 2])
    """

    sizes: Tensor
    sums: Tensor
    codebook: Tensor


def update_averages(
    averages: Averages, counts: Tensor, sums: Tensor, *, decay: float, epsilon: float, unit: bool
) -> Averages:
    """Return averages after one more batch; what was handed in stays as it is.

    Args:
        averages: so far; other floats are taken as float32.
        counts: float32 [K], latents of the batch with each code (of `code_statistics`, summed over all ranks).
        sums: float32 [K, D], their sums.
        decay: gamma of equations 6 and 7.
        epsilon: Laplace smoothing of the sizes that sums are divided by.
        unit: divide the codebook's rows by their length.

    Returns:
        New averages; a code of size 0 keeps its row. No gradients pass.

    Raises:
        ConfigError: shapes do not fit.

    Source:
        van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning", 2017, appendix A.1,
        equations 6 to 8.

    >>> before = Averages(torch.ones(1), torch.tensor([[4.0]]), torch.tensor([[4.0]]))
    >>> batch = torch.tensor([3.0]), torch.tensor([[6.0]])
    >>> after = update_averages(before, *batch, decay=0.5, epsilon=0.0, unit=False)
    >>> after.sizes.tolist(), after.sums.tolist(), after.codebook.tolist()
    ([2.0], [[5.0]], [[2.5]])
    """
    old = (averages.sizes, averages.sums, averages.codebook)
    shape = averages.codebook.shape
    if [x.shape for x in (*old, counts, sums)] != [shape[:1], shape, shape, shape[:1], shape] or len(shape) != 2:
        raise ConfigError(
            "expected sizes and counts [K], sums and codebook [K, D], got sizes, sums, codebook, counts, sums of "
            + ", ".join(str(list(x.shape)) for x in (*old, counts, sums))
        )
    tensors = (x.detach().float() for x in (*old, counts, sums))
    return Averages(*torch.ops.vqtok.update_averages.default(*tensors, decay, epsilon, unit))


def _compute(
    size: Tensor,
    total: Tensor,
    codebook: Tensor,
    counts: Tensor,
    sums: Tensor,
    decay: float,
    epsilon: float,
    unit: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    function = UPDATE_AVERAGES.choose(total, codebook)
    return function(size, total, codebook, counts, sums, decay, epsilon, unit)


def _fake(
    size: Tensor,
    total: Tensor,
    codebook: Tensor,
    counts: Tensor,
    sums: Tensor,
    decay: float,
    epsilon: float,
    unit: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return size.new_empty(size.shape), total.new_empty(total.shape), codebook.new_empty(codebook.shape)


register(
    "update_averages(Tensor size, Tensor total, Tensor codebook, Tensor counts, Tensor sums, "
    "float decay, float epsilon, bool unit) -> (Tensor, Tensor, Tensor)",
    _compute,
    _fake,
)
