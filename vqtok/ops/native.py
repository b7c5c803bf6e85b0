"""The C++ library behind ctypes (csrc/cpu), loaded on first use; without it, a reason and never a crash."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from vqtok.errors import BackendUnavailable, ConfigError, NonFiniteLatents, ResourceError
from vqtok.ops.layout import merged_axes

LIBRARY = Path(__file__).parent.parent / "_native" / "libvqtok_cpu.so"
INSTRUCTION_SETS = ("scalar", "avx2", "avx512", "neon")
"""From the plainest up; ``VQTOK_CPU_ISA`` forces one of them."""

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
"""The numbers of element types in both C interfaces."""

_ABI = 2
_DONE, _NO_MEMORY = -1, -2
_POINTER, _SIZE, _SMALL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
_NUMBERS = {
    "cpu_has": ((_SMALL,), _SMALL),
    "cpu_screens": ((_SMALL,), _SMALL),
    "cpu_convolves": ((_SMALL, _SMALL), _SMALL),
    "packed_bytes": ((_SIZE, _SIZE, _SMALL), _SIZE),
    "fma_peak": ((_SMALL, ctypes.c_double, _SMALL), ctypes.c_double),
}
"""Functions that answer with a number."""
_CALLS = {
    "pack": (_POINTER, _POINTER, _SIZE, _SIZE, _SMALL, _POINTER, _SMALL),
    "nearest_code": (_POINTER, _POINTER, _POINTER, _SMALL, _SMALL, _POINTER),
    "half_squared_norms": (_POINTER, _SIZE, _SIZE, _POINTER, _SMALL),
    "normalize_codebook": (_POINTER, _SIZE, _SIZE, _POINTER, _SMALL),
    "code_statistics": (_POINTER, _POINTER, _SIZE, _POINTER, _POINTER, _SMALL),
    "passage": (_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _SMALL),
    "passage_backward": (*(_POINTER,) * 4, ctypes.c_float, _SMALL, _POINTER, _SMALL),
    "codebook_backward": (_POINTER, _POINTER, _POINTER, _SIZE, ctypes.c_float, _POINTER, _SMALL),
    "unit_latents": (_POINTER, _POINTER, _SMALL),
    "unit_latents_backward": (_POINTER, _POINTER, _POINTER, _SMALL),
    "ema_update": (_POINTER, _SMALL),
    "finite_scalar": (_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _SMALL),
    "compact": (_POINTER, _POINTER, _POINTER, _POINTER, _SMALL),
    "conv3x3": (_POINTER, _SMALL, _SMALL),
    "pack_conv3x3": (_POINTER, _SIZE, _SIZE, _SMALL, _POINTER, _SMALL),
    "group_norm": (_POINTER, _SMALL, _SMALL),
    "spread": (_POINTER, _POINTER, _POINTER, _SIZE, _SIZE, _SIZE, _POINTER, _SMALL),
}
"""What `call` can run: functions that answer with an outcome."""


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
    for name, (arguments, result) in (_NUMBERS | {name: (its, _SIZE) for name, its in _CALLS.items()}).items():
        function = getattr(library, f"vqtok_{name}", None)
        if function is None:
            raise BackendUnavailable(f"needs {LIBRARY.name} with vqtok_{name}, which this build lacks; reinstall vqtok")
        function.argtypes, function.restype = arguments, result
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
    sizes, strides = merged_axes(values)
    axes = _axes(len(sizes))
    layout = (axes(*sizes), axes(*strides), len(sizes), values.stride(-1))
    rows, dim = values.shape[:-1].numel(), values.shape[-1]
    return Rows(values.data_ptr(), *layout, rows, dim, TYPES[values.dtype])


def call(name: str, *arguments: object) -> None:
    """Run ``vqtok_{name}`` of the library.

    Raises:
        BackendUnavailable: there is no library.
        NonFiniteLatents: a row of what it read, where it minds, holds NaN or infinity.
        ResourceError: it did not finish.
    """
    outcome = getattr(library(), f"vqtok_{name}")(*arguments)
    if outcome >= 0:
        raise NonFiniteLatents(outcome)
    if outcome == _NO_MEMORY:
        raise ResourceError("expected memory for one copy of the codebook, but the system has none left")
    if outcome != _DONE:
        raise ResourceError(f"expected {LIBRARY.name} to finish, but it returned {outcome}: this is a bug")
