"""nearest_code in the C++ library: packing a codebook, looking latents up in it."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from vqtok.ops import native
from vqtok.ops.registry import Workload

_PLAIN, _BF16, _INT8 = 0, 1, 2


def pack(codebook: Tensor, half_norms: Tensor) -> Tensor:
    """Pack a codebook for the float32 kernel alone.

    Args:
        codebook: float32 [K, D], contiguous.
        half_norms: float32 [K], contiguous.

    Returns:
        uint8, for `nearest_code`.
    """
    return _packed(codebook, half_norms, _PLAIN)


def pack_bf16(codebook: Tensor, half_norms: Tensor) -> Tensor:
    """Pack a codebook as `pack` does, and in bfloat16 for screening."""
    return _packed(codebook, half_norms, _BF16)


def pack_int8(codebook: Tensor, half_norms: Tensor) -> Tensor:
    """Pack a codebook as `pack` does, and in int8 for screening."""
    return _packed(codebook, half_norms, _INT8)


def nearest_code(latents: Tensor, packed: Tensor) -> Tensor:
    """Return the lowest code with the largest score for each latent; reads any strided latents where they lie.

    Args:
        latents: [..., D] on the CPU, any floating dtype; rounded once to float32.
        packed: uint8, what one of the functions above packed.

    Returns:
        int64 [...].

    Raises:
        NonFiniteLatents: a row holds NaN or infinity.
    """
    return screened(latents, packed)[0]


def screened(latents: Tensor, packed: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Return `nearest_code` and what screening did.

    Returns:
        int64 [...], and three counts: latents screened, panels of 16 codes scored for them, latents left undecided.
    """
    codes = torch.empty(latents.shape[:-1].numel(), dtype=torch.int64, device="cpu")
    counts = (ctypes.c_int64 * 3)()
    native.call(
        "nearest_code",
        ctypes.byref(native.rows_of(latents)),
        packed.data_ptr(),
        codes.data_ptr(),
        torch.get_num_threads(),
        native.instruction_set(),
        counts,
    )
    return codes.reshape(latents.shape[:-1]), (counts[0], counts[1], counts[2])


def reason_to_pass(work: Workload) -> str:
    """Return why screening takes longer than it saves, or ""; the limits are measured (benchmarks/nearest_code.py)."""
    if work.dim < 8 or work.vocab_size < 256 or work.vocab_size * work.dim < 1 << 14:
        return "screening pays from 8 dimensions, 256 codes and 16384 numbers in the codebook up"
    if 0 < work.rows < 64:
        return "packing for it pays from 64 latents up, or once for many calls: see PreparedCodebook"
    return ""


def reason_against_bf16() -> str:
    """Return why screening in bfloat16 cannot be used here, or ""."""
    return _reason_against(_BF16, "AVX-512 BF16")


def reason_against_int8() -> str:
    """Return why screening in int8 cannot be used here, or ""."""
    return _reason_against(_INT8, "AVX-512 VNNI")


def _reason_against(kind: int, instructions: str) -> str:
    if reason := native.reason_against():
        return reason
    if native.INSTRUCTION_SETS[native.instruction_set()] != "avx512":
        return "is held to VQTOK_CPU_ISA, which has no such instructions"
    return "" if native.library().vqtok_cpu_screens(kind) else f"needs a processor with {instructions}"


def _packed(codebook: Tensor, half_norms: Tensor, kind: int) -> Tensor:
    size = native.library().vqtok_packed_bytes(*codebook.shape, kind)
    packed = torch.empty(size, dtype=torch.uint8, device="cpu")
    pointers = codebook.data_ptr(), half_norms.data_ptr()
    native.call("pack", *pointers, *codebook.shape, kind, packed.data_ptr(), torch.get_num_threads())
    return packed
