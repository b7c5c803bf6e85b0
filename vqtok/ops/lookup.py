"""nearest_code: for each latent, the code whose vector is nearest."""

from __future__ import annotations

import torch
from torch import Tensor

from vqtok.errors import ConfigError
from vqtok.ops.checks import check_spaces
from vqtok.ops.prepared import Metric, PreparedCodebook, check_metric, compared
from vqtok.ops.registration import register
from vqtok.ops.registry import Workload
from vqtok.ops.table import NEAREST_CODE


def nearest_code(latents: Tensor, codebook: Tensor | PreparedCodebook, metric: Metric = "l2") -> Tensor:
    """Return the nearest code of each latent; of equally near ones the lowest.

    Every backend gives the same codes, whatever the batch, the threads or the device: the score of a code is a float32
    fused multiply-add over d = 0..D-1, which starts at minus half the squared norm of its vector (``"dot"`` and
    ``"cosine"``: at 0), and the largest score wins. See ``vqtok/ops/reference.py``. Denormal numbers count as they are,
    unless this thread was told to flush them (``torch.set_flush_denormal``).

    Args:
        latents: [..., D], any leading shape and strides; float16, bfloat16, float32 or float64, rounded once to
            float32.
        codebook: [K, D], K >= 1, any of these dtypes, on the device of the latents; or a `PreparedCodebook`, which
            saves the work that depends on the codebook alone.
        metric: ``"l2"`` (smallest distance), ``"dot"`` (largest product) or ``"cosine"`` (smallest angle).

    Returns:
        int64 [...], codes in 0..K-1. No gradient passes: see `straight_through`.

    Raises:
        ConfigError: shapes, dtypes, devices or the metric do not fit, the codebook is not finite, or it was
            prepared for another metric.
        NonFiniteLatents: a latent holds NaN or infinity (only checked on the CPU).
        BackendUnavailable: the backend asked for cannot run.

    Source:
        van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning", 2017, equation 1.

    >>> nearest_code(torch.tensor([[0.2, 0.1], [0.9, 0.9]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    tensor([0, 1])
    """
    check_metric(metric)
    if not isinstance(codebook, PreparedCodebook):
        check_spaces(latents, codebook)
        return torch.ops.vqtok.nearest_code.default(latents.detach(), codebook.detach(), metric)
    check_spaces(latents, codebook.vectors)
    if metric != codebook.metric:
        raise ConfigError(f"expected metric={codebook.metric!r}, which the codebook was prepared for, got {metric!r}")
    return torch.ops.vqtok.nearest_prepared_code.default(
        latents.detach(), codebook.vectors, codebook.half_norms, list(codebook.packed), codebook.backend
    )


def _compute(latents: Tensor, codebook: Tensor, metric: str) -> Tensor:
    vectors, half_norms = compared(codebook, metric)
    backend = NEAREST_CODE.chosen(latents, work=Workload(latents.shape[:-1].numel(), *vectors.shape))
    return backend.load()(latents, *backend.packed(vectors, half_norms))


def _compute_prepared(
    latents: Tensor, vectors: Tensor, half_norms: Tensor, packed: list[Tensor], packed_for: str
) -> Tensor:
    backend = NEAREST_CODE.chosen(latents, work=Workload(0, *vectors.shape))
    if backend.name != packed_for:  # one was asked for by name, or this machine lost what it had
        packed = list(backend.packed(vectors, half_norms))
    return backend.load()(latents, *packed)


def _fake(latents: Tensor, *_: object) -> Tensor:
    return latents.new_empty(latents.shape[:-1], dtype=torch.int64)


register("nearest_code(Tensor latents, Tensor codebook, str metric) -> Tensor", _compute, _fake)
register(
    "nearest_prepared_code(Tensor latents, Tensor vectors, Tensor half_norms, Tensor[] packed, str backend) -> Tensor",
    _compute_prepared,
    _fake,
)
