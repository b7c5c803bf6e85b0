"""Builds the native libraries and nothing else; all metadata is in pyproject.toml.

A library is plain C behind ctypes: it depends on no Python and no torch, so one wheel a platform serves them all.
Without a working compiler the package is installed all the same and computes with torch.

The CUDA library is built where nvcc is found: VQTOK_CUDA=0 leaves it out, VQTOK_CUDA=1 fails without it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# Holds built files only, so no checkout and no sdist has it; editable installs and --inplace copy into it.
Path("vqtok/_native").mkdir(exist_ok=True)

CPU = Extension(
    "vqtok._native.libvqtok_cpu",
    sources=sorted(glob("csrc/cpu/*.cpp")),
    depends=sorted(glob("csrc/**/*.h", recursive=True)),
    include_dirs=["csrc/include"],
    # One rounding where the source says one: no contraction, and never -ffast-math (kernel.h refuses it).
    extra_compile_args=[
        "-std=c++17",
        "-O3",
        "-ffp-contract=off",
        "-fvisibility=hidden",
        "-fno-fast-math",
        "-g0",
        "-Wno-maybe-uninitialized",
        "-Wno-uninitialized",
    ],
    language="c++",
    optional=True,
)
if sys.platform != "win32":
    CPU.extra_compile_args.append("-pthread")
    CPU.extra_link_args.append("-pthread")

CUDA = Extension("vqtok._native.libvqtok_cuda", sources=sorted(glob("csrc/cuda/*.cu")), optional=True)
# Code for one GPU of a generation runs on the later ones of it (80: A100 to RTX 40), and PTX on what comes after all of
# these. Each costs about ten seconds; only those this nvcc knows are asked for.
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
PTX = "compute_80"


def cuda_wanted() -> str:
    """Return VQTOK_CUDA: 0, 1 or auto."""
    wanted = os.environ.get("VQTOK_CUDA", "auto")
    if wanted not in ("0", "1", "auto"):
        raise SystemExit(f"vqtok: expected VQTOK_CUDA to be 0, 1 or auto, got {wanted!r}")
    return wanted


def nvcc() -> str | None:
    """Return the compiler of CUDA_HOME, or else of PATH."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")


def cuda_command(compiler: str, library: Path) -> list[str]:
    """Return the command that builds the CUDA library."""
    known = subprocess.run([compiler, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    architectures = [a for a in ARCHITECTURES if a in known]
    targets = [f"arch={a.replace('sm', 'compute')},code={a}" for a in architectures] + [f"arch={PTX},code={PTX}"]
    return [
        *(compiler, "-shared", "-o", str(library), "-std=c++17", "-O3", "--threads", "2", "-cudart", "static"),
        # One rounding where the source says one, as for the CPU.
        *("--fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden,-ffp-contract=off", "-Icsrc/include"),
        *(part for target in targets for part in ("-gencode", target)),
        *CUDA.sources,
    ]


class BuildNative(build_ext):
    """Builds shared libraries that are no Python modules: no ABI suffix, no init function."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return where a library lies in the package; the name is the same on every platform."""
        return str(Path(*fullname.split("."))) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Return nothing: the sources mark what they export."""
        return []

    def build_extension(self, ext: Extension) -> None:
        """Build a library, or say in one line that there will be none."""
        try:
            if ext is CUDA:
                self.build_cuda()
            else:
                super().build_extension(ext)
        except Exception as error:  # a missing compiler shows itself in many ways
            if ext is CUDA and cuda_wanted() == "1":
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(f"vqtok: {ext.name} was not built ({reason}); vqtok will compute with torch instead", file=sys.stderr)

    def build_cuda(self) -> None:
        """Build the CUDA library with nvcc, which knows nothing of setuptools."""
        compiler = nvcc()
        if compiler is None:
            raise RuntimeError("no nvcc in CUDA_HOME or on PATH")
        library = Path(self.get_ext_fullpath(CUDA.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(cuda_command(compiler, library), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            library.unlink(missing_ok=True)
            print(done.stdout + done.stderr, file=sys.stderr)
            raise RuntimeError(f"nvcc failed with status {done.returncode}")


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3 on one platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the wheel's tag."""
        return "py3", "none", super().get_tag()[2]


libraries = [CPU]
if cuda_wanted() == "1" or (cuda_wanted() == "auto" and nvcc() is not None):
    libraries.append(CUDA)
setup(ext_modules=libraries, cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel})
