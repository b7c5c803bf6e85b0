"""Builds csrc/cuda for the CPU (csrc/shim) and puts it where vqtok.ops.cuda expects the CUDA library."""

import ctypes
import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from vqtok.ops import cuda

CSRC = Path(os.environ.get("VQTOK_TEST_CSRC", Path(__file__).parents[2] / "csrc"))
"""Another copy, where test_cuda_mutations.py has broken a line of it."""
SOURCES = [*sorted((CSRC / "cuda").glob("*.cu")), CSRC / "shim/cuda_on_cpu.cpp"]
WARNINGS = ("-Wall", "-Wextra", "-Werror")
EXACT, CUT, WRONG = range(3)
"""How the shim multiplies tiles: nearly exact, as coarse as tensor cores, or as wrong as the certificate allows."""


def compiler() -> str | None:
    return shutil.which("g++")


def command(target: Path, *options: str, sources=SOURCES) -> list[str]:
    includes = [f"-I{CSRC / folder}" for folder in ("include", "cuda", "shim")]
    exact = ("-std=c++17", "-ffp-contract=off", "-fvisibility=hidden")
    return [str(x) for x in ("g++", *exact, *WARNINGS, *options, *includes, "-o", target, "-x", "c++", *sources)]


def build(folder: Path) -> Path:
    """Return the shared library, built once a run: test processes that come later wait for the first."""
    library, claim = folder / "libvqtok_cuda_on_cpu.so", folder / "claimed"
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        for _ in range(1000):
            if library.exists():
                return library
            time.sleep(0.1)
        raise TimeoutError(f"{library} was not built by the test process that began it") from None
    speed = "-O1" if "VQTOK_TEST_CSRC" in os.environ else "-O2"
    done = subprocess.run(
        command(folder / "unfinished.so", speed, "-fPIC", "-shared"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return (folder / "unfinished.so").rename(library)


@contextmanager
def _no_stream(_device):
    yield 0


class CudaOnCpu:
    """The library, with a count of how it was used."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.vqtok_shim_configure.argtypes = (ctypes.c_uint64, ctypes.c_int32)
        self.library.vqtok_shim_configure.restype = None
        self.workspaces: list[torch.Tensor] = []

    def configure(self, seed: int = 1, arithmetic: int = EXACT) -> None:
        """Choose the schedule and the arithmetic of all launches from now on."""
        self.library.vqtok_shim_configure(seed, arithmetic)

    def undecided(self) -> int:
        """Return how many latents of the last nearest_code the screening left to the exact scan."""
        return int(self.workspaces[-1][:4].view(torch.int32))

    def install(self, monkeypatch, path: Path) -> None:
        """Make vqtok.ops.cuda call the shim with CPU tensors, in workspaces full of what must not be read."""

        def poisoned(size, device):
            self.workspaces.append(torch.full((size,), 255, dtype=torch.uint8, device=device))
            return self.workspaces[-1]

        monkeypatch.setattr(cuda, "LIBRARY", path)
        monkeypatch.setattr(cuda, "stream_of", _no_stream)
        monkeypatch.setattr(cuda, "_workspace", poisoned)
