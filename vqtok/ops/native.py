"""The C++ library behind ctypes (csrc/cpu), loaded on first use; without it, a reason and never a crash."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from vqtok.errors import BackendUnavailable, ConfigError, ResourceError

LIBRARY = Path(__file__).parent.parent / "_native" / "libvqtok_cpu.so"
INSTRUCTION_SETS = ("scalar", "avx2", "avx512", "neon")
"""From the plainest up; ``VQTOK_CPU_ISA`` forces one of them."""

_ABI = 2
_DONE, _NO_MEMORY = -1, -2
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}


class Rows(ctypes.Structure):
    """Strided rows, as ``VqtokRows`` of csrc/include/vqtok_cpu.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("sizes", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("rank", ctypes.c_int64),
        ("stride_d", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("type", ctypes.c_int64),
    )


def reason_against() -> str:
    """Return why the library cannot be used here, or ""."""
    try:
        library()
        instruction_set()
    except BackendUnavailable as error:
        return str(error)
    return ""


def instruction_sets() -> tuple[str, ...]:
    """Return those of `INSTRUCTION_SETS` that this build and this processor have; none without the library."""
    try:
        return _running(library())
    except BackendUnavailable:
        return ()


def library() -> ctypes.CDLL:
    """Return the loaded library, or raise BackendUnavailable with the reason."""
    try:
        return _loaded(str(LIBRARY))
    except OSError as error:
        reason = "which was not built; install a C++17 compiler and reinstall vqtok"
        if LIBRARY.exists():
            reason = f"which cannot be loaded: {error}"
        raise BackendUnavailable(f"needs {LIBRARY.name}, {reason}") from error


@cache
def _running(library: ctypes.CDLL) -> tuple[str, ...]:
    return tuple(name for i, name in enumerate(INSTRUCTION_SETS) if library.vqtok_cpu_has(i))


@cache
def _axes(count: int) -> type[ctypes.Array[ctypes.c_int64]]:
    return ctypes.c_int64 * count


@cache
def _loaded(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    library.vqtok_cpu_abi.restype = ctypes.c_int32
    if (abi := library.vqtok_cpu_abi()) != _ABI:
        raise BackendUnavailable(f"needs {LIBRARY.name} with ABI {_ABI}, found {abi}; reinstall vqtok")
    pointer, size, small = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    library.vqtok_cpu_has.argtypes = (small,)
    library.vqtok_cpu_has.restype = small
    library.vqtok_cpu_screens.argtypes = (small,)
    library.vqtok_cpu_screens.restype = small
    signatures = {
        "half_squared_norms": (pointer, size, size, pointer, small),
        "normalize_codebook": (pointer, size, size, pointer, small),
        "packed_bytes": (size, size, small),
        "pack": (pointer, pointer, size, size, small, pointer, small),
        "nearest_code": (pointer, pointer, pointer, small, small, pointer),
        "code_statistics": (pointer, pointer, size, pointer, pointer, small),
    }
    for name, arguments in signatures.items():
        function = getattr(library, f"vqtok_{name}")
        function.argtypes, function.restype = arguments, size
    return library


def instruction_set() -> int:
    """Return the number of the forced instruction set, or of the best one."""
    running = instruction_sets()
    name = os.environ.get("VQTOK_CPU_ISA", "")
    if not name:
        return INSTRUCTION_SETS.index(running[-1])
    if name not in INSTRUCTION_SETS:
        raise ConfigError(f"expected VQTOK_CPU_ISA to be one of {', '.join(INSTRUCTION_SETS)}, got {name!r}")
    if name not in running:
        raise BackendUnavailable(f"is held to VQTOK_CPU_ISA={name}, which this processor lacks")
    return INSTRUCTION_SETS.index(name)


def rows_of(values: Tensor) -> Rows:
    """Describe floats [..., D]; leading dimensions that lie in one stride are merged, so most inputs have rank 1."""
    sizes: list[int] = []
    strides: list[int] = []
    for size, stride in zip(reversed(values.shape[:-1]), reversed(values.stride()[:-1]), strict=True):
        if sizes and stride == sizes[0] * strides[0]:
            sizes[0] *= size
        elif size != 1:
            sizes.insert(0, size)
            strides.insert(0, stride)
    axes = _axes(len(sizes))
    layout = (axes(*sizes), axes(*strides), len(sizes), values.stride(-1))
    rows, dim = values.shape[:-1].numel(), values.shape[-1]
    return Rows(values.data_ptr(), *layout, rows, dim, _TYPES[values.dtype])


def check(outcome: int) -> None:
    """Raise for what a function of the library returned, unless it is done."""
    if outcome == _NO_MEMORY:
        raise ResourceError("expected memory for one copy of the codebook, but the system has none left")
    if outcome != _DONE:
        raise ResourceError(f"expected {LIBRARY.name} to finish, but it returned {outcome}: this is a bug")
