"""Which backend computes what: one row a backend, the preferred ones first."""

from __future__ import annotations

import torch

from vqtok.ops.checks import FLOATS
from vqtok.ops.registry import Backend, Op

_LOOKUP = "vqtok.ops.native_lookup:"
_CUDA = "vqtok.ops.cuda:"
_CPU = frozenset({"cpu"})
_GPU = frozenset({"cuda"})  # what torch calls AMD's too


def _cuda(function: str, prepare: str = "") -> Backend:
    return Backend("cuda", _CUDA + function, _GPU, probe=_CUDA + "reason_against", prepare=prepare)


def _triton(function: str, prepare: str = "") -> Backend:
    probe = "vqtok.ops.triton:reason_against"
    return Backend("triton", f"vqtok.ops.{function}", _GPU, probe=probe, prepare=prepare)


NEAREST_CODE = Op(
    "nearest_code",
    (
        Backend(
            "cpu-int8",
            _LOOKUP + "nearest_code",
            _CPU,
            max_dim=1 << 15,  # sums of 8-bit products must fit into 32 bits
            probe=_LOOKUP + "reason_against_int8",
            prepare=_LOOKUP + "pack_int8",
            pays=_LOOKUP + "reason_to_pass",
        ),
        Backend(
            "cpu-bf16",
            _LOOKUP + "nearest_code",
            _CPU,
            max_dim=1 << 15,
            probe=_LOOKUP + "reason_against_bf16",
            prepare=_LOOKUP + "pack_bf16",
            pays=_LOOKUP + "reason_to_pass",
        ),
        Backend(
            "cpu",
            _LOOKUP + "nearest_code",
            _CPU,
            probe="vqtok.ops.native:reason_against",
            prepare=_LOOKUP + "pack",
        ),
        _cuda("nearest_code", prepare=_CUDA + "pack"),
        _triton("triton:nearest_code", prepare="vqtok.ops.triton:pack"),
        Backend("screened", "vqtok.ops.screened:nearest_code"),
        Backend("reference", "vqtok.ops.reference:nearest_code"),
    ),
)
"""Called with latents [..., D] (any float), codebook float32 [K, D] and half_norms float32 [K], or with what the
backend packed of these two; returns int64 [...]."""

_TO_FLOAT32 = FLOATS - {torch.float64}  # differences and sums of float64 rows would be others
_FLOAT32 = frozenset({torch.float32})
_IN_CUDA = frozenset({"code_statistics", "straight_through", "straight_through_backward", "codebook_backward"})
_IN_TRITON = frozenset(
    {
        "code_statistics",
        "straight_through",
        "straight_through_backward",
        "rotate_backward",
        "codebook_backward",
        "half_squared_norms",
        "normalize_codebook",
        "normalize_latents",
        "normalize_latents_backward",
        "finite_scalar",
    }
)


def _training_op(name: str, module: str = "reference", latents: frozenset[torch.dtype] = _TO_FLOAT32) -> Op:
    """Return an op of csrc/cpu, which reads latents of at most float32 and codebooks of float32, and of torch.

    Those of `_IN_CUDA` and `_IN_TRITON` have kernels for GPUs too, which read what torch reads.
    """
    native = Backend(
        "cpu",
        f"vqtok.ops.native_training:{name}",
        frozenset({"cpu"}),
        latents,
        codebook_dtypes=_FLOAT32,
        probe="vqtok.ops.native:reason_against",
    )
    cuda = (_cuda(name),) if name in _IN_CUDA else ()
    triton = (_triton(f"triton_training:{name}"),) if name in _IN_TRITON else ()
    return Op(name, (native, *cuda, *triton, Backend("reference", f"vqtok.ops.{module}:{name}")))


CODE_STATISTICS = _training_op("code_statistics")
"""Called with latents [..., D], codes int64 [...] and vocab_size; returns counts int64 [K] and sums float32 [K, D]."""

STRAIGHT_THROUGH = _training_op("straight_through")
"""Called with latents [..., D], codebook [K, D] and codes int64 [...]; returns vectors [..., D] and a scalar."""

ROTATE = Op("rotate", STRAIGHT_THROUGH.backends)
"""The same values; only the gradient is another one."""

STRAIGHT_THROUGH_BACKWARD = _training_op("straight_through_backward")
"""Called with the vectors' gradient [..., D], latents, codebook, codes and a scalar weight; returns [..., D]."""

ROTATE_BACKWARD = _training_op("rotate_backward")
"""As `STRAIGHT_THROUGH_BACKWARD`."""

CODEBOOK_BACKWARD = _training_op("codebook_backward")
"""Called with latents, codebook, codes and a scalar weight; returns [K, D]. Both passages teach a codebook alike."""

HALF_SQUARED_NORMS = _training_op("half_squared_norms", "arithmetic")
"""Called with a codebook float32 [K, D]; returns float32 [K]."""

NORMALIZE_CODEBOOK = _training_op("normalize_codebook", "arithmetic")
"""Called with a codebook float32 [K, D]; returns float32 [K, D]."""

NORMALIZE_LATENTS = _training_op("normalize_latents")
"""Called with latents [..., D]; returns [..., D] of at least float32."""

NORMALIZE_LATENTS_BACKWARD = _training_op("normalize_latents_backward")
"""Called with the unit vectors' gradient [..., D] and latents; returns [..., D]."""

UPDATE_AVERAGES = _training_op("update_averages", latents=_FLOAT32)
"""Called with sizes, sums, codebook, counts, sums, decay, epsilon and whether rows are of unit length; returns the
new sizes, sums and codebook."""

FINITE_SCALAR = _training_op("finite_scalar")
"""Called with latents [..., D] and D numbers of levels; returns codes int64 [...] and vectors float32 [..., D]."""

FINITE_SCALAR_BACKWARD = Op(
    "finite_scalar_backward", (Backend("reference", "vqtok.ops.reference:finite_scalar_backward"),)
)
"""Called with the vectors' gradient [..., D], latents and levels; returns [..., D]."""


def _ragged_op(name: str) -> Op:
    """Return an op that moves values of any dtype about."""
    native = Backend(
        "cpu",
        f"vqtok.ops.native_ragged:{name}",
        frozenset({"cpu"}),
        dtypes=frozenset(),
        probe="vqtok.ops.native:reason_against",
    )
    return Op(name, (native, Backend("reference", f"vqtok.ops.reference:{name}", dtypes=frozenset())))


COMPACT = _ragged_op("compact")
"""Called with values [B, N, ...] and keep bool [B, N]; returns [T, ...] and lengths int64 [B]."""

PAD = _ragged_op("pad")
"""Called with values [T, ...], lengths int64 [B] and a fill; returns [B, N, ...] and bool [B, N]."""

SPREAD = _ragged_op("spread")
"""Called with values [T, ...], mask bool [B, N] and a fill; returns [B, N, ...]: the gradient of compact."""


def _normalization(name: str) -> Op:
    """Return an op of csrc/cpu and torch; on GPUs torch's own is what `vqtok.ops.normalization` calls."""
    native = Backend(
        "cpu",
        f"vqtok.ops.native_normalization:{name}",
        _CPU,
        frozenset({torch.float32, torch.bfloat16}),
        probe="vqtok.ops.native:reason_against",
    )
    return Op(name, (native, Backend("reference", f"vqtok.ops.reference:{name}")))


GROUP_NORM = _normalization("group_norm")
"""Called with values [B, C, ...], weight and bias [C] or none, groups and eps; returns [B, C, ...]."""

GROUP_NORM_SILU = _normalization("group_norm_silu")
"""As `GROUP_NORM`."""

GROUP_AFFINE = _normalization("group_affine")
"""As `GROUP_NORM`; returns float32 [B, 3, C]."""

CONV3X3 = Op(
    "conv3x3",
    (
        Backend(
            "cpu",
            "vqtok.ops.native_convolution:conv3x3",
            _CPU,
            frozenset({torch.float32, torch.bfloat16}),
            probe="vqtok.ops.native_convolution:reason_against",
        ),
        Backend("reference", "vqtok.ops.reference:conv3x3"),
    ),
)
"""Called with values [B, C, h, w], weights [N, C, 3, 3], these packed, bias, affine and residual or none, and whether
the values are doubled; returns [B, N, h, w]."""

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
        HALF_SQUARED_NORMS,
        NORMALIZE_CODEBOOK,
        NORMALIZE_LATENTS,
        NORMALIZE_LATENTS_BACKWARD,
        UPDATE_AVERAGES,
        FINITE_SCALAR,
        FINITE_SCALAR_BACKWARD,
        COMPACT,
        PAD,
        SPREAD,
        GROUP_NORM,
        GROUP_NORM_SILU,
        GROUP_AFFINE,
        CONV3X3,
    )
}
