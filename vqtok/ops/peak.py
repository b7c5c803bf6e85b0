"""The processor's float32 multiply-add peak, measured: what a lookup is held against."""

from __future__ import annotations

import ctypes

import torch

from vqtok.errors import BackendUnavailable
from vqtok.ops import native


def fma_peak(seconds: float = 0.02) -> float:
    """Return float32 operations a second (a multiply-add counts two) on torch's number of threads.

    Args:
        seconds: how long to measure.

    Raises:
        BackendUnavailable: there is no native library, or it was built before it could measure.

    >>> native.reason_against() != "" or fma_peak(0.001) > 1e8
    True
    """
    library, isa = native.library(), native.instruction_set()
    try:
        measure = library.vqtok_fma_peak
    except AttributeError:
        raise BackendUnavailable(f"needs a newer {native.LIBRARY.name}: reinstall vqtok") from None
    measure.argtypes = (ctypes.c_int32, ctypes.c_double, ctypes.c_int32)
    measure.restype = ctypes.c_double
    return measure(torch.get_num_threads(), seconds, isa)
