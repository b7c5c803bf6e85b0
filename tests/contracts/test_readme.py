"""What README.md says is run: shell blocks as commands, Python blocks as programs, in one folder, from the top down."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
# Making an environment inside a test of that environment would test pip; benchmarks take minutes.
NOT_HERE = re.compile(r"^(git clone|cd |make |pip install|python benchmarks|vqtok bench)", re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("readme")
    (path / "photo.jpg").write_bytes((ROOT / "examples/photo.jpg").read_bytes())
    return path


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs_as_it_stands(number, folder):
    language, code = BLOCKS[number]
    if language == "python":
        command = [sys.executable, "-W", "error", "-c", code]
    else:
        lines = [line for line in code.splitlines() if not NOT_HERE.match(line)]
        command = ["bash", "-euo", "pipefail", "-c", "\n".join(lines)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"


def test_every_target_that_the_readme_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", TEXT, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", TEXT):
        assert (ROOT / target).exists(), target


def test_ci_runs_the_readmes_test_command():
    assert "make test" in TEXT
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "make test"
