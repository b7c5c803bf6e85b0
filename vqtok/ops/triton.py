"""Nearest code by Triton kernels (kernels/triton), imported on first use; without a GPU, a reason and never a crash."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from vqtok.ops.layout import merged_axes
from vqtok.ops.triton_codebook import ScreeningCodebook, screening_codebook

_AXES = 3
"""Leading axes that the kernels can walk through; BCHW views have two, slices of them three."""
_OPERAND_ELEMENTS = 1 << 25
"""Latents are rounded and screened in blocks of this many float16 elements: 64 MiB, however many there are."""
_PROGRAMS_A_PROCESSOR = 2
"""What fills the device: with fewer blocks of rows the codes are split too."""


@cache
def reason_against() -> str:
    """Return why the kernels cannot be used here, or ""; asked only for latents on a GPU."""
    if find_spec("triton") is None:
        return "needs triton, which is not installed: pip install 'vqtok[gpu]'"
    if not torch.cuda.is_available():
        return "needs a GPU that torch can use, and torch.cuda.is_available() is False"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        major, minor = torch.cuda.get_device_capability()
        return f"needs compute capability 8.0, the GPU has {major}.{minor}"
    if find_spec("vqtok.kernels") is None:
        return "needs vqtok.kernels, which this checkout has not installed: pip install -e ."
    return ""


def pack(codebook: Tensor, half_norms: Tensor) -> tuple[Tensor, ...]:
    """Prepare a codebook for `nearest_code` on its device.

    Args:
        codebook: float32 [K, D], contiguous.
        half_norms: float32 [K], contiguous.

    Returns:
        The half norms and the fields of `ScreeningCodebook`; some 6 bytes a number of the codebook.
    """
    tiles = _tiles(codebook.device, codebook.shape[1])
    prepared = screening_codebook(codebook, half_norms, tiles.block_k, tiles.padded(codebook.shape[1]))
    return half_norms, *(getattr(prepared, field.name) for field in fields(prepared))


def nearest_code(latents: Tensor, half_norms: Tensor, *screening: Tensor) -> Tensor:
    """Return the lowest code with the largest score for each latent; reads latents of up to three axes as they lie.

    Nothing is read back from the device, so the call can be captured in a CUDA graph.

    Args:
        latents: [..., D], any floating dtype; rounded once to float32.
        half_norms: float32 [K].
        screening: the rest of what `pack` returned.

    Returns:
        int64 [...]; of latents that are not finite any code.
    """
    codes = torch.empty(latents.shape[:-1].numel(), dtype=torch.int64, device=latents.device)
    if len(codes):
        rows, prepared = rows_of(latents), ScreeningCodebook(*screening)
        tiles, wanted = _tiles(latents.device, latents.shape[-1]), _wanted_programs(latents.device)
        with torch.cuda.device_of(latents):
            candidates = _screened(rows, prepared, tiles, wanted)
            _decide(rows, prepared.columns, half_norms, candidates, codes, tiles, wanted)
    return codes.reshape(latents.shape[:-1])


@dataclass(frozen=True, slots=True)
class _Candidates:
    """What screening says of each row.

    Attributes:
        values: float32 [splits, 3, N], the three best group maxima of a share of the codes.
        groups: int32 [splits, 2, N], the groups of the first two.
        slack: float32 [N], how far below the best the winner's group can be.
    """

    values: Tensor
    groups: Tensor
    slack: Tensor


def _screened(rows: Rows, prepared: ScreeningCodebook, tiles: Any, wanted_programs: int) -> _Candidates:
    kernels = kernel_module("nearest_code")
    (dim, vocab_size), count, device = prepared.columns.shape, rows.count, rows.latents.device
    block_d, width = tiles.width_of(dim), tiles.padded(dim)
    rows_a_block = max(1, _OPERAND_ELEMENTS // width // tiles.block_n) * tiles.block_n
    tile_count = -(-vocab_size // tiles.block_k)
    shares = wanted_programs // -(-min(count, rows_a_block) // tiles.block_n)
    tiles_a_split = -(-tile_count // max(1, min(tile_count, shares)))
    splits = -(-tile_count // tiles_a_split)
    operands = torch.empty(min(count, rows_a_block), width, dtype=torch.float16, device=device)
    scales = torch.empty(count, dtype=torch.int32, device=device)
    candidates = _Candidates(
        torch.empty(splits, 3, count, dtype=torch.float32, device=device),
        torch.empty(splits, 2, count, dtype=torch.int32, device=device),
        torch.empty(count, dtype=torch.float32, device=device),
    )
    for first in range(0, count, rows_a_block):
        end = min(count, first + rows_a_block)
        kernels.measure[(-(-(end - first) // tiles.measure_n),)](
            rows.latents,
            *rows.walk,
            prepared.centre,
            prepared.exponents,
            prepared.bounds,
            operands,
            scales,
            candidates.slack,
            first,
            end,
            D=dim,
            WIDTH=width,
            BLOCK_N=tiles.measure_n,
            BLOCK_D=min(block_d, 64),
            num_warps=4,
            enable_fp_fusion=True,
        )
        kernels.screen[(-(-(end - first) // tiles.block_n), splits)](
            operands,
            prepared.exponents,
            scales,
            prepared.vectors,
            prepared.biases,
            candidates.values,
            candidates.groups,
            first,
            end,
            count,
            vocab_size,
            tile_count,
            tiles_a_split,
            BLOCK_N=tiles.block_n,
            BLOCK_K=tiles.block_k,
            BLOCK_D=block_d,
            CHUNKS=width // block_d,
            FOLDED=dim + 2 <= width,
            STAGES=tiles.stages,
            num_warps=tiles.warps,
            enable_fp_fusion=True,
        )
    return candidates


def _decide(
    rows: Rows,
    columns: Tensor,
    half_norms: Tensor,
    candidates: _Candidates,
    codes: Tensor,
    tiles: Any,
    wanted_programs: int,
) -> None:
    kernels, emulated = kernel_module("nearest_code"), kernel_module("arithmetic").INTERPRETED
    dim, vocab_size = columns.shape
    pending = torch.empty(rows.count, dtype=torch.int32, device=codes.device)
    pending_count = torch.zeros(1, dtype=torch.int32, device=codes.device)
    kernels.decide[(-(-rows.count // tiles.decide_n),)](
        rows.latents,
        *rows.walk,
        columns,
        half_norms,
        candidates.values,
        candidates.groups,
        candidates.slack,
        codes,
        pending,
        pending_count,
        rows.count,
        vocab_size,
        candidates.values.shape[0],
        D=dim,
        GROUP=tiles.block_k // 4,
        BLOCK_N=tiles.decide_n,
        EMULATED=emulated,
        num_warps=4,
        enable_fp_fusion=True,
    )
    programs = min(-(-rows.count // tiles.search_n), wanted_programs)
    kernels.search[(programs,)](
        rows.latents,
        *rows.walk,
        columns,
        half_norms,
        codes,
        pending,
        pending_count,
        vocab_size,
        D=dim,
        BLOCK_N=tiles.search_n,
        BLOCK_K=tiles.search_k,
        EMULATED=emulated,
        num_warps=4,
        enable_fp_fusion=True,
    )


@cache
def kernel_module(name: str) -> Any:
    """Return a module of kernels/triton, imported on first use."""
    return import_module(f"vqtok.kernels.triton.{name}")


@cache
def _device(device: torch.device) -> tuple[str, int]:
    """Return the family of a device, as `kernels/triton/tiles.py` names it, and how many multiprocessors it has."""
    if device.type == "cpu":
        return "interpreter", 2
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    return kernel_module("tiles").family_of(capability, torch.version.hip is not None), properties.multi_processor_count


def _tiles(device: torch.device, dim: int) -> Any:
    """Return the sizes of the kernels for a device: `Tiles` of kernels/triton/tiles.py."""
    return kernel_module("tiles").tiles_for(_device(device)[0], dim)


def _wanted_programs(device: torch.device) -> int:
    return _PROGRAMS_A_PROCESSOR * _device(device)[1]


@dataclass(frozen=True, slots=True)
class Rows:
    """Latents [..., D] as rows for a kernel.

    Attributes:
        latents: what the kernel reads.
        walk: two sizes and three strides of the leading axes, and the stride of D: see ``row_offsets``.
        count: rows.
    """

    latents: Tensor
    walk: tuple[int, int, int, int, int, int]
    count: int


def rows_of(latents: Tensor) -> Rows:
    """Return latents [..., D] as rows; only what has more than three axes in no common stride is copied."""
    sizes, strides = merged_axes(latents)
    if len(sizes) > _AXES:
        latents = latents.contiguous()
        sizes, strides = merged_axes(latents)
    missing = _AXES - len(sizes)
    sizes, strides = [1] * missing + sizes, [0] * missing + strides
    walk = (sizes[1], sizes[2], strides[0], strides[1], strides[2], latents.stride(-1))
    return Rows(latents, walk, latents.shape[:-1].numel())
