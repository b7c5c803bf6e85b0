"""Which backend computes what: one row a backend, the preferred ones first."""

from __future__ import annotations

import torch

from vqtok.ops.checks import FLOATS
from vqtok.ops.registry import Backend, Op

_GPU = frozenset({"cuda"})
_CUDA = "vqtok.ops.cuda:reason_against"

NEAREST_CODE = Op(
    "nearest_code",
    (
        Backend("cpu", "vqtok.ops.native:nearest_code", frozenset({"cpu"}), probe="vqtok.ops.native:reason_against"),
        Backend("cuda", "vqtok.ops.cuda:nearest_code", _GPU, probe=_CUDA),
        Backend("screened", "vqtok.ops.screened:nearest_code"),
        Backend("reference", "vqtok.ops.reference:nearest_code"),
    ),
)
"""Called with latents [..., D] (any float), codebook float32 [K, D], half_norms float32 [K]; returns int64 [...]."""

CODE_STATISTICS = Op(
    "code_statistics",
    (
        Backend(
            "cpu",
            "vqtok.ops.native:code_statistics",
            frozenset({"cpu"}),
            FLOATS - {torch.float64},  # its rows are float32, and the sums of float64 rows differ
            probe="vqtok.ops.native:reason_against",
        ),
        Backend("cuda", "vqtok.ops.cuda:code_statistics", _GPU, probe=_CUDA),
        Backend("reference", "vqtok.ops.reference:code_statistics"),
    ),
)
"""Called with latents [..., D], codes int64 [...] and vocab_size; returns counts int64 [K] and sums float32 [K, D]."""

STRAIGHT_THROUGH = Op(
    "straight_through",
    (
        Backend("cuda", "vqtok.ops.cuda:straight_through", _GPU, probe=_CUDA),
        Backend("reference", "vqtok.ops.reference:straight_through"),
    ),
)
"""Called with latents [..., D], codebook [K, D] and codes int64 [...]; returns vectors [..., D] and a scalar."""

OPS = {op.name: op for op in (NEAREST_CODE, CODE_STATISTICS, STRAIGHT_THROUGH)}
