"""A codebook made ready once for many lookups."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from vqtok.errors import ConfigError
from vqtok.ops.checks import check_codebook, check_finite_codebook
from vqtok.ops.registry import Workload
from vqtok.ops.table import HALF_SQUARED_NORMS, NEAREST_CODE, NORMALIZE_CODEBOOK

Metric: TypeAlias = Literal["l2", "cosine", "dot"]


class PreparedCodebook:
    """A frozen codebook, packed once: `nearest_code` takes it in the codebook's place and gives the same codes.

    It is a copy: later changes of the codebook do not reach it. On the CPU it holds some 10 bytes a number
    of the codebook.

    Args:
        codebook: [K, D]; float16, bfloat16, float32 or float64.
        metric: ``"l2"``, ``"cosine"`` or ``"dot"``, the one that lookups will name.

    Attributes:
        metric: as given.
        vectors: float32 [K, D], the rows that are compared: of unit length when the metric is cosine.
        half_norms: float32 [K], what scores start below zero; zeros but for l2.
        backend: name of the backend it is packed for.
        packed: what that backend takes, tensors.

    Raises:
        ConfigError: the codebook or the metric is none, or the codebook is not finite.

    >>> codebook = PreparedCodebook(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    >>> from vqtok.ops import nearest_code
    >>> nearest_code(torch.tensor([[0.9, 0.9]]), codebook)
    tensor([1])
    """

    __slots__ = ("backend", "half_norms", "metric", "packed", "vectors")

    def __init__(self, codebook: Tensor, metric: Metric = "l2") -> None:
        check_codebook(codebook)
        self.metric: Metric = check_metric(metric)
        vectors, self.half_norms = compared(codebook.detach(), metric)
        self.vectors = vectors.clone() if vectors.data_ptr() == codebook.data_ptr() else vectors
        backend = NEAREST_CODE.chosen(self.vectors, work=Workload(0, *self.vectors.shape))
        self.backend = backend.name
        self.packed = backend.packed(self.vectors, self.half_norms)

    @property
    def shape(self) -> torch.Size:
        """(K, D)."""
        return self.vectors.shape


def check_metric(metric: Metric) -> Metric:
    """Raise ConfigError unless ``metric`` is one."""
    if metric not in get_args(Metric):
        raise ConfigError(f"expected a metric, one of {', '.join(get_args(Metric))}, got {metric!r}")
    return metric


def compared(codebook: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Return the vectors float32 [K, D] that latents are compared with, and what their scores start below zero [K].

    Raises:
        ConfigError: the codebook is not finite (only checked on the CPU).
    """
    vectors = codebook.float().contiguous()
    half_norms = HALF_SQUARED_NORMS.choose(vectors)(vectors)
    check_finite_codebook(vectors, witness=half_norms)
    if metric == "cosine":
        vectors = NORMALIZE_CODEBOOK.choose(vectors)(vectors)
    return vectors, half_norms if metric == "l2" else torch.zeros_like(half_norms)
