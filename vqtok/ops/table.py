"""Which backend computes what: one row a backend, the preferred ones first."""

from __future__ import annotations

import torch

from vqtok.ops.checks import FLOATS
from vqtok.ops.registry import Backend, Op

NEAREST_CODE = Op(
    "nearest_code",
    (
        Backend("cpu", "vqtok.ops.native:nearest_code", frozenset({"cpu"}), probe="vqtok.ops.native:reason_against"),
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
        Backend("reference", "vqtok.ops.reference:code_statistics"),
    ),
)
"""Called with latents [..., D], codes int64 [...] and vocab_size; returns counts int64 [K] and sums float32 [K, D]."""

STRAIGHT_THROUGH = Op("straight_through", (Backend("reference", "vqtok.ops.reference:straight_through"),))
"""Called with latents [..., D], codebook [K, D] and codes int64 [...]; returns vectors [..., D] and a scalar."""

ROTATE = Op("rotate", STRAIGHT_THROUGH.backends)
"""The same values; only the gradient is another one."""

STRAIGHT_THROUGH_BACKWARD = Op(
    "straight_through_backward",
    (Backend("reference", "vqtok.ops.reference:straight_through_backward"),),
)
"""Called with the vectors' gradient [..., D], latents, codebook, codes and a scalar weight; returns [..., D]."""

ROTATE_BACKWARD = Op("rotate_backward", (Backend("reference", "vqtok.ops.reference:rotate_backward"),))
"""As `STRAIGHT_THROUGH_BACKWARD`."""

CODEBOOK_BACKWARD = Op("codebook_backward", (Backend("reference", "vqtok.ops.reference:codebook_backward"),))
"""Called with latents, codebook, codes and a scalar weight; returns [K, D]. Both passages teach a codebook alike."""

FINITE_SCALAR = Op("finite_scalar", (Backend("reference", "vqtok.ops.reference:finite_scalar"),))
"""Called with latents [..., D] and D numbers of levels; returns codes int64 [...] and vectors float32 [..., D]."""

FINITE_SCALAR_BACKWARD = Op(
    "finite_scalar_backward", (Backend("reference", "vqtok.ops.reference:finite_scalar_backward"),)
)
"""Called with the vectors' gradient [..., D], latents and levels; returns [..., D]."""

_ANY = frozenset[torch.dtype]()

COMPACT = Op("compact", (Backend("reference", "vqtok.ops.reference:compact", dtypes=_ANY),))
"""Called with values [B, N, ...] and keep bool [B, N]; returns [T, ...] and lengths int64 [B]."""

PAD = Op("pad", (Backend("reference", "vqtok.ops.reference:pad", dtypes=_ANY),))
"""Called with values [T, ...], lengths int64 [B] and a fill; returns [B, N, ...] and bool [B, N]."""

SPREAD = Op("spread", (Backend("reference", "vqtok.ops.reference:spread", dtypes=_ANY),))
"""Called with values [T, ...], mask bool [B, N] and a fill; returns [B, N, ...]: the gradient of compact."""

OPS = {
    op.name: op
    for op in (
        NEAREST_CODE,
        CODE_STATISTICS,
        STRAIGHT_THROUGH,
        STRAIGHT_THROUGH_BACKWARD,
        ROTATE,
        ROTATE_BACKWARD,
        CODEBOOK_BACKWARD,
        FINITE_SCALAR,
        FINITE_SCALAR_BACKWARD,
        COMPACT,
        PAD,
        SPREAD,
    )
}
