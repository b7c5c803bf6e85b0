"""Which backend computes what: one row a backend, the preferred ones first."""

from __future__ import annotations

import torch

from vqtok.ops.checks import FLOATS
from vqtok.ops.registry import Backend, Op

_LOOKUP = "vqtok.ops.native_lookup:"
_CPU = frozenset({"cpu"})

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
        Backend("screened", "vqtok.ops.screened:nearest_code"),
        Backend("reference", "vqtok.ops.reference:nearest_code"),
    ),
)
"""Called with latents [..., D] (any float), codebook float32 [K, D] and half_norms float32 [K], or with what the
backend packed of these two; returns int64 [...]."""

HALF_SQUARED_NORMS = Op(
    "half_squared_norms",
    (
        Backend("cpu", _LOOKUP + "half_squared_norms", _CPU, probe="vqtok.ops.native:reason_against"),
        Backend("reference", "vqtok.ops.arithmetic:half_squared_norms"),
    ),
)
"""A step of nearest_code. Called with a codebook float32 [K, D], contiguous; returns float32 [K]."""

NORMALIZE_CODEBOOK = Op(
    "normalize_codebook",
    (
        Backend("cpu", _LOOKUP + "normalize_codebook", _CPU, probe="vqtok.ops.native:reason_against"),
        Backend("reference", "vqtok.ops.arithmetic:normalize_codebook"),
    ),
)
"""A step of nearest_code. Called with a codebook float32 [K, D], contiguous; returns float32 [K, D], no gradient."""

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

OPS = {op.name: op for op in (NEAREST_CODE, CODE_STATISTICS, STRAIGHT_THROUGH)}
