"""How long a call takes, on the CPU and on a GPU."""

from __future__ import annotations

import time

import torch

from .protocol import Call, Clock


def wall_clock(call: Call) -> float:
    """Return the seconds that a call takes on the CPU."""
    begin = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - begin) / 1e9


def cuda_clock() -> Clock:
    """Return a clock for GPU work: CUDA events, and an L2 cache that holds nothing of the round before."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")

    def seconds(call: Call) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    return seconds
