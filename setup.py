"""Builds the native libraries and nothing else; all metadata is in pyproject.toml.

A library is plain C behind ctypes: it depends on no Python and no torch, so one wheel a platform serves them all.
Without a working compiler the package is installed all the same and computes with torch.
"""

from __future__ import annotations

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
            super().build_extension(ext)
        except Exception as error:  # a missing compiler shows itself in many ways
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(f"vqtok: {ext.name} was not built ({reason}); vqtok will compute with torch instead", file=sys.stderr)


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3 on one platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the wheel's tag."""
        return "py3", "none", super().get_tag()[2]


setup(ext_modules=[CPU], cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel})
