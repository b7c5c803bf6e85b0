"""nearest_code: for each latent, the code whose vector is nearest."""

from __future__ import annotations

import torch
from torch import Tensor

from vqtok.errors import ConfigError
from vqtok.ops.checks import check_finite_codebook, check_spaces
from vqtok.ops.norms import half_squared_norms, normalize_codebook
from vqtok.ops.registration import register
from vqtok.ops.table import NEAREST_CODE

METRICS = ("l2", "cosine", "dot")


def nearest_code(latents: Tensor, codebook: Tensor, metric: str = "l2") -> Tensor:
    """Return the nearest code of each latent; of equally near ones the lowest.

    Every backend gives the same codes, whatever the batch, the threads or the device: the score of a code is a float32
    fused multiply-add over d = 0..D-1, which starts at minus half the squared norm of its vector (``"dot"`` and
    ``"cosine"``: at 0), and the largest score wins. See ``vqtok/ops/reference.py``. Denormal numbers count as they are,
    unless this thread was told to flush them (``torch.set_flush_denormal``).

    Args:
        latents: [..., D], any leading shape and strides; float16, bfloat16, float32 or float64, rounded once to
            float32.
        codebook: [K, D], K >= 1, any of these dtypes, on the device of the latents.
        metric: ``"l2"`` (smallest distance), ``"dot"`` (largest product) or ``"cosine"`` (smallest angle).

    Returns:
        int64 [...], codes in 0..K-1. No gradient passes: see `straight_through`.

    Raises:
        ConfigError: shapes, dtypes, devices or the metric do not fit, or the codebook is not finite.
        NonFiniteLatents: a latent holds NaN or infinity (only checked on the CPU).
        BackendUnavailable: the backend asked for cannot run.

    Source:
        van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning", 2017, equation 1.

    >>> nearest_code(torch.tensor([[0.2, 0.1], [0.9, 0.9]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    tensor([0, 1])
    """
    check_spaces(latents, codebook)
    if metric not in METRICS:
        raise ConfigError(f"expected a metric, one of {', '.join(METRICS)}, got {metric!r}")
    return torch.ops.vqtok.nearest_code.default(latents.detach(), codebook.detach(), metric)


def _compute(latents: Tensor, codebook: Tensor, metric: str) -> Tensor:
    vectors = codebook.float().contiguous()
    half_norms = half_squared_norms(vectors)
    check_finite_codebook(vectors, witness=half_norms)
    if metric != "l2":
        half_norms = torch.zeros_like(half_norms)
    if metric == "cosine":
        vectors = normalize_codebook(vectors)
    return NEAREST_CODE.choose(latents)(latents, vectors, half_norms)


def _fake(latents: Tensor, codebook: Tensor, metric: str) -> Tensor:
    return latents.new_empty(latents.shape[:-1], dtype=torch.int64)


register("nearest_code(Tensor latents, Tensor codebook, str metric) -> Tensor", _compute, _fake)
