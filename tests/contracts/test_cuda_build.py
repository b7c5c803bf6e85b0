"""nvcc takes csrc/cuda for the GPUs that vqtok names, within a budget of registers and instructions; and setup.py asks
nvcc only where it is."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("80", "90a", "100a")
KERNELS = {"nearest_code": 13, "code_statistics": 5, "straight_through": 6}
"""Kernels of each source file."""

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")


@cache
def compiled(name: str, architecture: str, folder: Path) -> tuple[Path, str]:
    """Return the cubin of a source file and what the assembler says of it."""
    cubin = folder / f"{name}.{architecture}.cubin"
    options = ["-std=c++17", "-O3", "--fmad=false", "-Werror", "all-warnings", "-Xptxas", "-v", "-cubin"]
    target = ["-gencode", f"arch=compute_{architecture},code=sm_{architecture}"]
    files = ["-I", ROOT / "csrc/include", "-o", cubin, ROOT / f"csrc/cuda/{name}.cu"]
    done = subprocess.run(["nvcc", *options, *target, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return cubin, done.stdout + done.stderr


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cubins")


def disassembler() -> str | None:
    """Return nvdisasm from PATH or from triton, which ships one."""
    if found := shutil.which("nvdisasm"):
        return found
    try:
        import triton
    except ImportError:
        return None
    bundled = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    return str(bundled) if bundled.exists() else None


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_without_warnings_and_keep_to_registers(name, architecture, folder):
    _, said = compiled(name, architecture, folder)
    entries = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", said, re.DOTALL
    )
    assert len(entries) == KERNELS[name]
    for entry, spilled, registers in entries:
        # Three CTAs of 128 threads fit a multiprocessor with 168; the exact scan is bounded to 256 threads.
        assert int(registers) <= (168 if "screen" in entry else 80), (entry, registers)
        assert int(spilled) <= 40, (entry, spilled)


SCORES_A_THREAD = {"ILi4ELi1ELi1E": 128, "ILi4ELi1ELi2E": 128, "ILi4ELi1ELi4E": 128}
"""Of the loop of the screening kernels whose latents stay in registers, for up to 16, 32 and 64 dimensions."""
BUDGET = {"ILi4ELi1ELi1E": 2.8, "ILi4ELi1ELi2E": 3.5, "ILi4ELi1ELi4E": 3.8}
"""Instructions a score, all told."""


def main_loop(assembly: str) -> list[str]:
    """Return the instructions of the smallest loop that has all matrix instructions."""
    labels, instructions = {}, []
    for line in assembly.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    products = [i for i, x in enumerate(instructions) if "HMMA" in x]
    loops = [
        (i - labels[jump[1]], instructions[labels[jump[1]] : i + 1])
        for i, x in enumerate(instructions)
        if (jump := re.search(r"BRA.*`\((\.L_x_\d+)\)", x)) and labels[jump[1]] <= products[0] and i >= products[-1]
    ]
    return min(loops)[1]


@needs_nvcc
@pytest.mark.skipif(disassembler() is None, reason="no nvdisasm on PATH or in triton")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_screening_loop_keeps_to_its_instructions(architecture, folder):
    cubin, _ = compiled("nearest_code", architecture, folder)
    assembly = subprocess.run([disassembler(), "-c", cubin], capture_output=True, text=True, check=True).stdout
    functions = dict(re.findall(r"\n\.text\.(\S+):\n(.*?)(?=\n\.text\.|\Z)", assembly, re.DOTALL))
    for shape, scores in SCORES_A_THREAD.items():
        (function,) = (body for name, body in functions.items() if "screen" in name and shape in name)
        assert len(main_loop(function)) / scores <= BUDGET[shape], shape


# ---- setup.py


def setup(tmp_path: Path, wanted: str, nvcc: str | None) -> subprocess.CompletedProcess[str]:
    """Build the extensions with a stand-in for nvcc, and no C++ compiler, into a folder of their own."""
    home = tmp_path / "cuda"
    (home / "bin").mkdir(parents=True)
    if nvcc is not None:
        (home / "bin/nvcc").write_text(f"#!/bin/sh\n{nvcc}\n")
        (home / "bin/nvcc").chmod(0o755)
    env = {**os.environ, "VQTOK_CUDA": wanted, "CUDA_HOME": str(home), "CXX": "/bin/false", "CC": "/bin/false"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "-b", tmp_path / "lib", "-t", tmp_path / "temporary"]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


WORKING = """case "$*" in
  *--list-gpu-code*) echo sm_75; echo sm_80; echo sm_90;;
  *) echo "$*" > "$(dirname "$0")/arguments"; for a; do [ "$last" = -o ] && touch "$a"; last=$a; done;;
esac"""
BROKEN = """case "$*" in *--list-gpu-code*) echo sm_80;; *) echo no headers >&2; exit 2;; esac"""


@pytest.mark.parametrize("wanted", ["1", "auto"])
def test_the_cuda_library_is_built_where_nvcc_is_for_the_gpus_it_knows(wanted, tmp_path):
    done = setup(tmp_path, wanted, WORKING)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "lib/vqtok/_native/libvqtok_cuda.so").exists()
    arguments = (tmp_path / "cuda/bin/arguments").read_text()
    assert "arch=compute_80,code=sm_80" in arguments
    assert "arch=compute_90,code=sm_90" in arguments
    assert "arch=compute_80,code=compute_80" in arguments
    assert "sm_100" not in arguments
    assert "--fmad=false" in arguments
    assert "fast_math" not in arguments
    assert all(f"csrc/cuda/{name}.cu" in arguments for name in KERNELS)


def test_a_cuda_library_that_cannot_be_built_never_breaks_an_install_that_did_not_ask_for_it(tmp_path):
    done = setup(tmp_path, "auto", BROKEN)
    assert done.returncode == 0, done.stderr
    assert "libvqtok_cuda was not built (nvcc failed with status 2); vqtok will compute with torch" in done.stderr
    assert not list((tmp_path / "lib").rglob("*cuda*"))


@pytest.mark.parametrize(("wanted", "nvcc"), [("0", WORKING), ("auto", None)])
def test_without_nvcc_or_without_wish_there_is_no_cuda_library(wanted, nvcc, tmp_path):
    done = setup(tmp_path, wanted, nvcc)
    assert done.returncode == 0, done.stderr
    assert "libvqtok_cuda" not in done.stderr
    assert not list(tmp_path.rglob("libvqtok_cuda*"))


@pytest.mark.parametrize(("nvcc", "message"), [(BROKEN, "nvcc failed with status 2"), (None, "no nvcc in CUDA_HOME")])
def test_who_asks_for_the_cuda_library_gets_it_or_an_error(nvcc, message, tmp_path):
    done = setup(tmp_path, "1", nvcc)
    assert done.returncode != 0
    assert message in done.stderr


def test_a_wish_that_is_none_is_refused(tmp_path):
    done = setup(tmp_path, "yes", WORKING)
    assert done.returncode != 0
    assert "expected VQTOK_CUDA to be 0, 1 or auto, got 'yes'" in done.stderr


def test_the_source_distribution_holds_what_the_library_is_made_of(tmp_path):
    command = [sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    packed = {name.split("/", 1)[1] for name in tarfile.open(archive).getnames() if "/" in name}
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    assert sources <= packed
