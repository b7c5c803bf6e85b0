"""One training step of a quantizer on the CPU, forward and backward: vqtok against vector-quantize-pytorch.

    pip install vector-quantize-pytorch
    python -m benchmarks.quantizer_step [--threads N] [--rounds N]

8192 latents of 32 dimensions, 8192 codes, cosine, moving averages: the lookup, the vectors, the commitment loss, the
update of the codebook and the gradient of the latents. The two take turns within a round, so a slow moment of the
machine meets both; what is printed are medians and the fastest round.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from vqtok import EmaQuantizer
from vqtok.ops import native

ROWS, CODES, DIM = 8192, 8192, 32

Step = Callable[[Tensor], None]


def ours() -> Step:
    """Return a step of vqtok."""
    quantizer = EmaQuantizer(dim=DIM, vocab_size=CODES, metric="cosine", decay=0.99).train()

    def step(latents: Tensor) -> None:
        out = quantizer(latents)
        torch.autograd.backward([out.vectors, out.losses["commitment"]], [torch.ones_like(out.vectors), None])

    return step


def theirs() -> Step:
    """Return a step of vector-quantize-pytorch, straight through as ours."""
    from vector_quantize_pytorch import VectorQuantize

    quantizer = VectorQuantize(
        dim=DIM, codebook_size=CODES, use_cosine_sim=True, decay=0.99, rotation_trick=False
    ).train()

    def step(latents: Tensor) -> None:
        vectors, _, loss = quantizer(latents)
        torch.autograd.backward([vectors, loss.sum()], [torch.ones_like(vectors), None])

    return step


def seconds(step: Step) -> float:
    """Return how long one step on fresh latents takes."""
    latents = torch.randn(1, ROWS, DIM).requires_grad_()
    begin = time.perf_counter()
    step(latents)
    return time.perf_counter() - begin


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    isa = (native.instruction_sets() or ("none",))[-1]
    print(f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, native kernel: {isa}")
    steps = {"vqtok": ours(), "vector-quantize-pytorch": theirs()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        seconds(step)
    for _ in range(options.rounds):
        for name, step in steps.items():
            times[name].append(seconds(step))
    medians = {name: statistics.median(its) for name, its in times.items()}
    for name, its in times.items():
        print(f"{name:<24} median {medians[name] * 1e3:>8.2f} ms   best {min(its) * 1e3:>8.2f} ms")
    print(f"ratio of medians {medians['vector-quantize-pytorch'] / medians['vqtok']:.1f}")


if __name__ == "__main__":
    main()
