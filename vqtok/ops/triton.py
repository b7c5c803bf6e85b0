"""The Triton kernels behind torch (kernels/triton), imported on first use; without a GPU, a reason and never a crash."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from vqtok.ops.native import rows_of
from vqtok.ops.screening import screening_codebook

_AXES = 3
"""Leading axes that the kernels can walk through; BCHW views have two, slices of them three."""
_MEASURED_ROWS, _DECIDED_ROWS, _SEARCHED_ROWS, _SEARCHED_CODES = 32, 32, 32, 128
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


def nearest_code(latents: Tensor, codebook: Tensor, half_norms: Tensor) -> Tensor:
    """Return the lowest code with the largest score for each latent; reads latents of up to three axes as they lie.

    Nothing is read back from the device, so the call can be captured in a CUDA graph.

    Args:
        latents: [..., D], any floating dtype; rounded once to float32.
        codebook: float32 [K, D], contiguous.
        half_norms: float32 [K], contiguous.

    Returns:
        int64 [...]; of latents that are not finite any code.
    """
    kernels, sizes = _module("nearest_code"), _module("tiles")
    count, dim, vocab_size = latents.shape[:-1].numel(), latents.shape[-1], codebook.shape[0]
    codes = torch.empty(count, dtype=torch.int64, device=latents.device)
    if not count:
        return codes.reshape(latents.shape[:-1])
    family, processors = _device(latents.device)
    tiles = sizes.tiles_for(family, dim)
    block_d = min(tiles.block_d, max(16, 1 << (dim - 1).bit_length()))
    chunks = -(-dim // block_d)
    prepared = screening_codebook(codebook, half_norms, tiles.block_k, chunks * block_d)
    blocks, tile_count = -(-count // tiles.block_n), -(-vocab_size // tiles.block_k)
    tiles_a_split = -(-tile_count // max(1, min(tile_count, _PROGRAMS_A_PROCESSOR * processors // blocks)))
    splits = -(-tile_count // tiles_a_split)
    latents, *rows = _rows(latents)

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=latents.device)

    scales, slack = empty(count, dtype=torch.int32), empty(count, dtype=torch.float32)
    values, groups = empty(splits, 3, count, dtype=torch.float32), empty(splits, 2, count, dtype=torch.int32)
    pending, pending_count = empty(count, dtype=torch.int32), codes.new_zeros(1, dtype=torch.int32)
    measured = (prepared.centre, prepared.exponents)
    decided = (prepared.columns, half_norms)
    options = {"D": dim, "enable_fp_fusion": True}
    emulated = _module("arithmetic").INTERPRETED
    with torch.cuda.device_of(latents):
        kernels.measure[(-(-count // _MEASURED_ROWS),)](
            latents,
            *rows,
            *measured,
            prepared.bounds,
            scales,
            slack,
            count,
            BLOCK_N=_MEASURED_ROWS,
            BLOCK_D=min(block_d, 64),
            num_warps=4,
            **options,
        )
        kernels.screen[(blocks, splits)](
            latents,
            *rows,
            *measured,
            scales,
            prepared.vectors,
            prepared.biases,
            values,
            groups,
            count,
            vocab_size,
            tile_count,
            tiles_a_split,
            BLOCK_N=tiles.block_n,
            BLOCK_K=tiles.block_k,
            BLOCK_D=block_d,
            CHUNKS=chunks,
            FOLDED=dim + 2 <= chunks * block_d,
            STAGES=tiles.stages,
            num_warps=tiles.warps,
            **options,
        )
        kernels.decide[(-(-count // _DECIDED_ROWS),)](
            latents,
            *rows,
            *decided,
            values,
            groups,
            slack,
            codes,
            pending,
            pending_count,
            count,
            vocab_size,
            splits,
            GROUP=tiles.block_k // 4,
            BLOCK_N=_DECIDED_ROWS,
            EMULATED=emulated,
            num_warps=4,
            **options,
        )
        kernels.search[(min(-(-count // _SEARCHED_ROWS), _PROGRAMS_A_PROCESSOR * processors),)](
            latents,
            *rows,
            *decided,
            codes,
            pending,
            pending_count,
            vocab_size,
            BLOCK_N=_SEARCHED_ROWS,
            BLOCK_K=_SEARCHED_CODES,
            EMULATED=emulated,
            num_warps=4,
            **options,
        )
    return codes.reshape(latents.shape[:-1])


@cache
def _module(name: str) -> Any:
    return import_module(f"vqtok.kernels.triton.{name}")


@cache
def _device(device: torch.device) -> tuple[str, int]:
    """Return the family of a device, as `kernels/triton/tiles.py` names it, and how many multiprocessors it has."""
    if device.type == "cpu":
        return "interpreter", 2
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    return _module("tiles").family_of(capability, torch.version.hip is not None), properties.multi_processor_count


def _rows(latents: Tensor) -> tuple[Tensor, int, int, int, int, int, int]:
    """Return latents [..., D] and what a kernel walks through them with: two sizes, three strides and that of D.

    Axes that lie in one stride are merged; only what has more than three left is copied.
    """
    rows = rows_of(latents)
    if rows.rank > _AXES:
        latents = latents.contiguous()
        rows = rows_of(latents)
    missing = _AXES - rows.rank
    sizes = [1] * missing + rows.sizes[: rows.rank]
    strides = [0] * missing + rows.strides[: rows.rank]
    return latents, sizes[1], sizes[2], strides[0], strides[1], strides[2], latents.stride(-1)
