"""The CUDA library behind ctypes (csrc/cuda), loaded on first use; without it or a GPU, a reason and never a crash.

Calls allocate with torch, run on torch's current stream and never wait for the device, so they can be captured in a
CUDA graph.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from vqtok.errors import BackendUnavailable, ResourceError
from vqtok.ops.layout import merged_axes
from vqtok.ops.native import TYPES
from vqtok.ops.reference import common_dtype

LIBRARY = Path(__file__).parent.parent / "_native" / "libvqtok_cuda.so"

_ABI = 1
_MAX_RANK = 8
_LEAST_CAPABILITY = (8, 0)


class Rows(ctypes.Structure):
    """Strided rows, as ``VqtokCudaRows`` of csrc/include/vqtok_cuda.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("sizes", ctypes.c_int64 * _MAX_RANK),
        ("strides", ctypes.c_int64 * _MAX_RANK),
        ("stride_d", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("rank", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
    )
    owner: Tensor
    """Whose memory it is: a copy must live until the launch."""


def pack(codebook: Tensor, half_norms: Tensor) -> Tensor:
    """Pack a codebook for any number of lookups.

    Args:
        codebook: float32 [K, D] on a GPU, contiguous.
        half_norms: float32 [K], contiguous.

    Returns:
        uint8 [K, ...] for `nearest_code`: its length says how many codes there are without asking the device.
    """
    vocab_size, dim = codebook.shape
    size = library().vqtok_cuda_packed_bytes(vocab_size, dim)
    packed = _workspace(-(-size // vocab_size) * vocab_size, codebook.device)
    pointers = codebook.data_ptr(), half_norms.data_ptr()
    with stream_of(codebook.device) as stream:
        _check(library().vqtok_cuda_pack(*pointers, vocab_size, dim, packed.data_ptr(), packed.numel(), stream))
    return packed.view(vocab_size, -1)


def nearest_code(latents: Tensor, packed: Tensor) -> Tensor:
    """Return the lowest code with the largest score for each latent; reads any strided latents where they lie.

    Args:
        latents: [..., D] on a GPU, any floating dtype; rounded once to float32.
        packed: uint8 [K, ...], what `pack` packed.

    Returns:
        int64 [...].
    """
    library_, rows, vocab_size = library(), _rows(latents), packed.shape[0]
    codes = torch.empty(latents.shape[:-1], dtype=torch.int64, device=latents.device)
    space = _workspace(library_.vqtok_cuda_nearest_code_workspace(rows.rows, vocab_size, rows.dim), latents.device)
    with stream_of(latents.device) as stream:
        outcome = library_.vqtok_cuda_nearest_code(
            ctypes.byref(rows),
            packed.data_ptr(),
            vocab_size,
            codes.data_ptr(),
            space.data_ptr(),
            space.numel(),
            stream,
        )
    _check(outcome)
    return codes


def code_statistics(latents: Tensor, codes: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return counts int64 [K] and sums float32 [K, D], added in float64 in row order and rounded once.

    Args:
        latents: [..., D] on a GPU, any floating dtype.
        codes: int64 [...]; those outside 0..vocab_size-1 are left out.
        vocab_size: K.
    """
    return _statistics(latents, None, codes, vocab_size)


def codebook_backward(latents: Tensor, codebook: Tensor, codes: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of the codebook from its loss: ``weight`` times the sum of ``q - z`` over a code's rows.

    Args:
        latents: z, [..., D] on a GPU, any floating dtype.
        codebook: [K, D], any floating dtype and strides; its rows are q.
        codes: int64 [...].
        weight: scalar; what the codebook term's difference counts.

    Returns:
        [K, D] of the codebook's dtype; the differences are summed as `code_statistics` does.
    """
    sums = _statistics(latents, _rows(codebook), codes, codebook.shape[0])[1]
    return (weight * sums).to(codebook.dtype)


def straight_through(latents: Tensor, codebook: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codebook's rows, bit for bit, and the mean squared difference from the latents, summed in float64.

    Args:
        latents: [..., D] on a GPU, any floating dtype.
        codebook: [K, D], any floating dtype and strides.
        codes: int64 [...].

    Returns:
        vectors [..., D] of the codebook's dtype, and a scalar: float64 where an input is, else float32; 0 for N = 0.
    """
    library_, rows, codes = library(), _rows(latents), codes.contiguous()
    vectors = torch.empty(latents.shape, dtype=codebook.dtype, device=latents.device)
    loss = torch.empty((), dtype=common_dtype(latents, codebook), device=latents.device)
    space = _workspace(library_.vqtok_cuda_straight_through_workspace(rows.rows, rows.dim), latents.device)
    with stream_of(latents.device) as stream:
        outcome = library_.vqtok_cuda_straight_through(
            ctypes.byref(rows),
            ctypes.byref(_rows(codebook)),
            codes.data_ptr(),
            vectors.data_ptr(),
            loss.data_ptr(),
            space.data_ptr(),
            space.numel(),
            stream,
        )
    _check(outcome)
    return vectors, loss


def straight_through_backward(
    gradient: Tensor, latents: Tensor, codebook: Tensor, codes: Tensor, weight: Tensor
) -> Tensor:
    """Return the gradient of latents whose vectors have this gradient: ``gradient + weight (z - q)``.

    Args:
        gradient: [..., D], of the vectors, any strides.
        latents: z, [..., D] on a GPU, any floating dtype.
        codebook: [K, D], any floating dtype and strides.
        codes: int64 [...].
        weight: scalar; what the commitment term's difference counts.

    Returns:
        [..., D] of the latents' dtype and contiguous.
    """
    library_, rows, codes = library(), _rows(latents), codes.contiguous()
    out = torch.empty(latents.shape, dtype=latents.dtype, device=latents.device)
    weight = weight.to(common_dtype(latents, codebook))
    with stream_of(latents.device) as stream:
        outcome = library_.vqtok_cuda_straight_through_backward(
            ctypes.byref(_rows(gradient)),
            ctypes.byref(rows),
            ctypes.byref(_rows(codebook)),
            codes.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            stream,
        )
    _check(outcome)
    return out


def reason_against() -> str:
    """Return why the library cannot be used here, or ""."""
    try:
        library()
    except BackendUnavailable as error:
        return str(error)
    return _reason_against_device()


def library() -> ctypes.CDLL:
    """Return the loaded library, or raise BackendUnavailable with the reason."""
    try:
        return _loaded(str(LIBRARY))
    except OSError as error:
        reason = "which was not built; install nvcc and reinstall vqtok with VQTOK_CUDA=1"
        if LIBRARY.exists():
            reason = f"which cannot be loaded: {error}"
        raise BackendUnavailable(f"needs {LIBRARY.name}, {reason}") from error


@contextmanager
def stream_of(device: torch.device) -> Iterator[int]:
    """Make ``device`` the current one and give torch's stream on it; what the CUDA-on-CPU tests put a stand-in for."""
    with torch.cuda.device(device):
        yield torch.cuda.current_stream(device).cuda_stream


def _reason_against_device() -> str:
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "needs a GPU that torch's CUDA can use"
    have = torch.cuda.get_device_capability()
    if have < _LEAST_CAPABILITY:
        least = ".".join(map(str, _LEAST_CAPABILITY))
        return f"needs a GPU of compute capability {least} or more, this one has {have[0]}.{have[1]}"
    return ""


def _statistics(latents: Tensor, codebook: Rows | None, codes: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    library_, rows, codes = library(), _rows(latents), codes.contiguous()
    counts = torch.empty(vocab_size, dtype=torch.int64, device=latents.device)
    sums = torch.empty(vocab_size, rows.dim, dtype=torch.float32, device=latents.device)
    space = _workspace(library_.vqtok_cuda_code_statistics_workspace(rows.rows, vocab_size, rows.dim), latents.device)
    with stream_of(latents.device) as stream:
        outcome = library_.vqtok_cuda_code_statistics(
            ctypes.byref(rows),
            ctypes.byref(codebook) if codebook else None,
            codes.data_ptr(),
            vocab_size,
            counts.data_ptr(),
            sums.data_ptr(),
            space.data_ptr(),
            space.numel(),
            stream,
        )
    _check(outcome)
    return counts, sums


def _rows(values: Tensor) -> Rows:
    sizes, strides = merged_axes(values)
    if len(sizes) > _MAX_RANK:
        return _rows(values.contiguous())
    axes, count, dim = ctypes.c_int64 * _MAX_RANK, values.shape[:-1].numel(), values.shape[-1]
    layout = axes(*sizes), axes(*strides), values.stride(-1), count, dim, len(sizes)
    rows = Rows(values.data_ptr(), *layout, TYPES[values.dtype])
    rows.owner = values
    return rows


def _workspace(size: int, device: torch.device) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=device)


def _check(outcome: int) -> None:
    if outcome:
        name = library().vqtok_cuda_error(outcome).decode()
        raise ResourceError(f"expected {LIBRARY.name} to launch its kernels, but CUDA answered {name} ({outcome})")


@cache
def _loaded(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    if (abi := library.vqtok_cuda_abi()) != _ABI:
        raise BackendUnavailable(f"needs {LIBRARY.name} with ABI {_ABI}, found {abi}; reinstall vqtok")
    pointer, size, small = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    signatures = {
        "error": ((small,), ctypes.c_char_p),
        "packed_bytes": ((size, size), size),
        "pack": ((pointer, pointer, size, size, pointer, size, pointer), small),
        "nearest_code_workspace": ((size, size, size), size),
        "nearest_code": ((pointer, pointer, size, pointer, pointer, size, pointer), small),
        "code_statistics_workspace": ((size, size, size), size),
        "code_statistics": ((pointer, pointer, pointer, size, pointer, pointer, pointer, size, pointer), small),
        "straight_through_workspace": ((size, size), size),
        "straight_through": ((pointer, pointer, pointer, pointer, pointer, pointer, size, pointer), small),
        "straight_through_backward": ((pointer,) * 7, small),
    }
    for name, (arguments, result) in signatures.items():
        function = getattr(library, f"vqtok_cuda_{name}")
        function.argtypes, function.restype = arguments, result
    return library
