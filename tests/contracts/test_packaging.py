"""What is installed: every package, the native library, the default tokenizer; and without a compiler, all the same."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECK = """
import numpy as np, vqtok, torch
tokenizer = vqtok.load()
tokens = tokenizer.tokenize(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
print(vqtok.__file__)
print(tokenizer.fingerprint, tokens.ids.tolist())
print(vqtok.ops.explain("nearest_code", torch.zeros(2, 8), torch.zeros(3, 8)))
import importlib.util, sys
assert importlib.util.find_spec("vqtok.kernels.triton.nearest_code").origin.startswith(vqtok.__path__[0])
assert "triton" not in sys.modules
from vqtok.benchmarks import suite
assert suite.__file__.startswith(vqtok.__path__[0]) and "nearest_code" in suite.CASES
"""


def copied(folder: Path) -> Path:
    """Copy what a checkout holds."""
    left_out = shutil.ignore_patterns(".*", "*.so", "build", "dist", "*.egg-info", "__pycache__", "tests", "demo")
    return Path(shutil.copytree(ROOT, folder / "sources", ignore=left_out))


def wheel(folder: Path, env: dict[str, str]) -> Path:
    """Build a wheel from a copy of the sources and unpack it."""
    sources = copied(folder)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        folder,
        sources,
    ]
    done = subprocess.run(
        [*map(str, command)],
        env={**os.environ, "VQTOK_CUDA": "0", **env},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.whl")
    zipfile.ZipFile(file).extractall(folder / "installed")
    return file


def answers(folder: Path) -> list[str]:
    env = {**os.environ, "PYTHONPATH": str(folder / "installed")}
    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=folder, env=env, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    where, *rest = done.stdout.splitlines()
    assert where.startswith(str(folder)), where
    return rest


@pytest.fixture(scope="module")
def with_compiler(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("wheel")
    return folder, wheel(folder, {})


def test_the_wheel_holds_every_package_and_file(with_compiler):
    folder, file = with_compiler
    packed = {p.relative_to(folder / "installed") for p in (folder / "installed/vqtok").rglob("*") if p.is_file()}
    wanted = {p.relative_to(ROOT) for p in (ROOT / "vqtok").rglob("*.py")}
    wanted |= {p.relative_to(ROOT) for p in (ROOT / "vqtok/assets").rglob("*") if p.is_file() and p.suffix != ".pyc"}
    wanted |= {Path("vqtok") / p.relative_to(ROOT) for p in (ROOT / "kernels").rglob("*.py")}
    wanted |= {Path("vqtok") / p.relative_to(ROOT) for p in (ROOT / "benchmarks").glob("*.py")}
    recipes = [p for p in (ROOT / "examples/recipes").iterdir() if p.is_file()]
    wanted |= {Path("vqtok/recipes") / p.name for p in recipes}
    wanted |= {Path("vqtok/py.typed"), Path("vqtok/_native/libvqtok_cpu.so")}
    assert packed == wanted
    assert "-py3-none-" in file.name
    assert "any" not in file.name, "a wheel with a native library is of one platform"
    assert sum((ROOT / p).stat().st_size for p in wanted if "assets" in p.parts) <= 12e6


def test_an_sdist_holds_what_the_wheel_is_built_from(tmp_path):
    sources = copied(tmp_path)
    code = "import setuptools.build_meta as b; print(b.build_sdist('.'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=sources, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(sources / done.stdout.split()[-1]) as archive:
        packed = {Path(*Path(name).parts[1:]) for name in archive.getnames()}
    for folder, pattern in (("vqtok", "*.py"), ("kernels", "*.py"), ("csrc", "*.cpp"), ("csrc", "*.h")):
        wanted = {p.relative_to(ROOT) for p in (ROOT / folder).rglob(pattern)}
        assert wanted
        assert wanted <= packed


def test_an_editable_install_finds_the_kernels_where_they_lie(tmp_path):
    sources = copied(tmp_path)
    code = f"import setuptools.build_meta as b; print(b.build_editable({str(tmp_path)!r}))"
    env = {**os.environ, "CC": "/bin/false", "CXX": "/bin/false"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=sources, env=env, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(file).extractall(site := tmp_path / "site")
    code = f"""
import importlib.util, site
site.addsitedir({str(site)!r})
print(importlib.util.find_spec("vqtok.kernels.triton.nearest_code").origin)
"""
    # -S: not the editable install that these tests may run from.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == str(sources / "kernels/triton/nearest_code.py"), done.stderr


def test_the_installed_package_works_from_another_folder(with_compiler):
    result = answers(with_compiler[0])
    assert any(line.split() == ["cpu", "taken"] for line in result), result


def test_without_a_compiler_it_installs_gives_the_same_tokens_and_says_why(with_compiler, tmp_path):
    env = {"CC": "/bin/false", "CXX": "/bin/false"}
    wheel(tmp_path, env)
    assert not list((tmp_path / "installed").rglob("*.so"))
    result, expected = answers(tmp_path), answers(with_compiler[0])
    assert result[0] == expected[0]
    assert any("cpu" in line and "taken" not in line and len(line.split()) > 3 for line in result[1:]), result
