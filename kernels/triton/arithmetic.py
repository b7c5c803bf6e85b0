"""Arithmetic and addressing that the kernels share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def fused_multiply_add(a: tl.tensor, b: tl.tensor, c: tl.tensor, EMULATED: tl.constexpr) -> tl.tensor:
    """Return float32 ``a * b + c`` with one rounding.

    A GPU has the instruction. The interpreter multiplies and adds with two roundings; there the float64 sum is rounded
    to odd before it becomes float32 (Boldo and Melquiond, IEEE Transactions on Computers 57(4), 2008).
    """
    if EMULATED:
        product, addend = a.to(tl.float64) * b.to(tl.float64), c.to(tl.float64)
        total = product + addend
        of_product = total - addend
        error = (product - of_product) + (addend - (total - of_product))
        bits = total.to(tl.int64, bitcast=True)
        finite = tl.abs(total) < float("inf")
        step = tl.where((error > 0) == (total > 0), 1, -1)
        bits += tl.where(finite & (error != 0) & (bits % 2 == 0), step, 0)
        return bits.to(tl.float64, bitcast=True).to(tl.float32)
    return tl.fma(a, b, c)


@triton.jit
def power_of_two(exponent: tl.tensor) -> tl.tensor:
    """Return float32 ``2 ** exponent`` of int32 exponents in -126..127, made from its bits: exact everywhere."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def row_offsets(
    rows: tl.tensor,
    size1: tl.tensor,
    size2: tl.tensor,
    stride0: tl.tensor,
    stride1: tl.tensor,
    stride2: tl.tensor,
) -> tl.tensor:
    """Return int64 offsets of rows whose numbers run over three axes; the first axis' size is not needed."""
    outer, i2 = rows // size2, rows % size2
    i0, i1 = outer // size1, outer % size1
    return i0.to(tl.int64) * stride0 + i1.to(tl.int64) * stride1 + i2.to(tl.int64) * stride2


@triton.jit
def loaded_rows(
    values: tl.tensor, offsets: tl.tensor, stride_d: tl.tensor, d: tl.tensor, exist: tl.tensor, D: tl.constexpr
) -> tl.tensor:
    """Return [rows, d] of rows that begin at their offsets; zeros outside."""
    pointers = values + offsets[:, None] + d[None, :].to(tl.int64) * stride_d
    return tl.load(pointers, mask=exist[:, None] & (d < D)[None, :], other=0.0)


INTERPRETED = not isinstance(row_offsets, triton.JITFunction)
"""Whether kernels of this process run in Triton's interpreter, on tensors of the CPU (``TRITON_INTERPRET=1``)."""
