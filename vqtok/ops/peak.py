"""The processor's float32 multiply-add peak, measured: what a lookup is held against."""

from __future__ import annotations

import torch

from vqtok.ops import native


def fma_peak(seconds: float = 0.02) -> float:
    """Return float32 operations a second (a multiply-add counts two) on torch's number of threads.

    Args:
        seconds: how long to measure.

    Raises:
        BackendUnavailable: there is no native library.

    >>> native.reason_against() != "" or fma_peak(0.001) > 1e8
    True
    """
    return native.library().vqtok_fma_peak(torch.get_num_threads(), seconds, native.instruction_set())
