"""What a number was measured on: machine, versions, commit, threads."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import vqtok
from vqtok.errors import ResourceError
from vqtok.ops import native

_PACKAGES = (
    *("vqtok", "torch", "numpy", "triton", "faiss-cpu", "faiss-gpu-cu12", "scikit-learn", "pykeops"),
    *("vector-quantize-pytorch", "flash-kmeans", "cuvs-cu12", "cuvs-cu13", "pillow"),
)
_POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def pin_threads(threads: int) -> None:
    """Give torch, and with it vqtok, so many threads, and every library that is imported from now on."""
    torch.set_num_threads(threads)
    os.environ.update(dict.fromkeys(_POOLS, str(threads)))


def check_device(device: str) -> None:
    """Raise ResourceError unless torch can compute there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError(
            "expected a GPU that this torch can use for --device cuda, found none; "
            "try python -c 'import torch; print(torch.cuda.is_available(), torch.version.cuda)'"
        )


def machine(device: str) -> Mapping[str, str | int]:
    """Return what computes: processor, cores, instruction set, memory, system; the GPU too when it is one."""
    sets = native.instruction_sets()
    facts: dict[str, str | int] = {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        "instruction_set": native.INSTRUCTION_SETS[native.instruction_set()] if sets else "native library not built",
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0,
        "system": platform.platform(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory}
    return facts


def versions() -> Mapping[str, str]:
    """Return the versions of everything involved that is installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Return the commit of the checkout that vqtok runs from, with ``+`` when files differ from it, or ""."""
    root = Path(vqtok.__file__).parents[1]
    if not (root / ".git").exists() or not (root / "csrc").exists():
        return ""
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
