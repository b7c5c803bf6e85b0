"""Nearest code on the CPU: vqtok's backends against ``torch.cdist(...).argmin(...)``.

    python -m benchmarks.nearest_code [--quick] [--threads N]

Codes are compared before anything is timed. The backends must agree bit for bit. cdist rounds in its own way, so where
it disagrees its code must be no nearer in float64 than float32 can tell; how often it does is printed. Contenders take
turns within a round, so a slow moment of the machine meets all of them; the table shows medians and, as the spread,
the fastest round.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from vqtok.ops import native, nearest_code, use_backend

SHAPES = (
    (4096, 1024, 4),
    (4096, 1024, 8),
    (4096, 1024, 32),
    (4096, 1024, 64),
    (1024, 1024, 256),
    (1024, 8192, 8),
    (1024, 8192, 32),
    (256, 16384, 256),
)
"""(latents, codes, dimensions)."""

Contender = Callable[[Tensor, Tensor], Tensor]


def forced(name: str) -> Contender:
    """Return nearest_code held to one backend."""

    def run(latents: Tensor, codebook: Tensor) -> Tensor:
        with use_backend(name):
            return nearest_code(latents, codebook)

    return run


def cdist(latents: Tensor, codebook: Tensor) -> Tensor:
    """Return what people write without a library."""
    return torch.cdist(latents, codebook).argmin(dim=1)


def contenders() -> dict[str, Contender]:
    """Return what can run here, the baseline first."""
    natives = {} if native.reason_against() else {"cpu": forced("cpu")}
    return {"cdist+argmin": cdist, **natives, "screened": forced("screened")}


def check(latents: Tensor, codebook: Tensor, codes: dict[str, Tensor]) -> float:
    """Raise unless all answers are right; return the share of latents for which cdist says otherwise."""
    expected = codes["screened"]
    for name, came in codes.items():
        if name != "cdist+argmin" and not torch.equal(came, expected):
            raise SystemExit(f"{name} disagrees with screened on {(came != expected).sum()} latents: nothing is timed")
    distances = [(latents.double() - codebook.double()[c]).norm(dim=1) for c in (expected, codes["cdist+argmin"])]
    if (distances[0] - distances[1]).max() > 1e-3 * distances[0].max():
        raise SystemExit("cdist found a code that is clearly nearer: nothing is timed")
    return (expected != codes["cdist+argmin"]).double().mean().item()


def seconds(run: Contender, latents: Tensor, codebook: Tensor) -> float:
    """Return how long one call takes."""
    begin = time.perf_counter()
    run(latents, codebook)
    return time.perf_counter() - begin


def measure(shape: tuple[int, int, int], rounds: int) -> list[str]:
    """Return one table line a contender."""
    rows, vocab_size, dim = shape
    generator = torch.Generator().manual_seed(0)
    latents, codebook = (torch.randn(n, dim, generator=generator) for n in (rows, vocab_size))
    runs = contenders()
    differing = check(latents, codebook, {name: run(latents, codebook) for name, run in runs.items()})
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, latents, codebook))
    baseline = statistics.median(times["cdist+argmin"])
    lines = []
    for name, its in times.items():
        median = statistics.median(its)
        note = f"  other codes for {differing:.2%}" if name == "cdist+argmin" and differing else ""
        lines.append(
            f"{rows:>6} x {vocab_size:>5} x {dim:>3}  {name:<13} {median * 1e3:>9.2f} {min(its) * 1e3:>9.2f} "
            f"{2 * rows * vocab_size * dim / median / 1e9:>8.1f} {baseline / median:>8.2f}{note}"
        )
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds of the three smallest shapes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    isa = (native.instruction_sets() or ("none",))[-1]
    print(f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, native kernel: {isa}")
    print(f"{'latents x codes x dim':<22}  {'contender':<13} median ms   best ms  GFLOP/s  speedup")
    for shape in SHAPES[:3] if options.quick else SHAPES:
        print("\n".join(measure(shape, rounds=3 if options.quick else 9)), flush=True)


if __name__ == "__main__":
    main()
