"""The C++ library by itself: its kernels against a score written out, under sanitizers and on another processor."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [*sorted((ROOT / "csrc/cpu").glob("*.cpp")), ROOT / "tests/native/check_cpu.cpp"]
FLAGS = ("-std=c++17", "-O1", "-g1", "-ffp-contract=off", "-pthread", f"-I{ROOT / 'csrc/include'}")


def run(*command, **env):
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=400, check=False, env={**os.environ, **env}
    )


def built(compiler, target, *flags):
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    done = run(compiler, *FLAGS, *flags, *SOURCES, "-o", target)
    assert done.returncode == 0, done.stderr
    return target


@pytest.mark.timeout(500)
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_the_library_is_clean_under_sanitizers(tmp_path, sanitizers):
    program = built("g++", tmp_path / "check", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-w")
    done = run(program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_the_neon_kernel_gives_the_same_codes(tmp_path):
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("needs qemu-aarch64")
    done = run("qemu-aarch64", built("aarch64-linux-gnu-g++", tmp_path / "check", "-static", "-w"))
    assert (done.returncode, done.stdout) == (0, "")
