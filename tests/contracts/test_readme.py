"""What the documentation says is run: shell blocks as commands, Python as programs, a folder a page, from the top."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
PAGES = ("README.md", "docs/models.md", "docs/training.md")
BLOCKS = {
    f"{page}-{number}": (page, *block)
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    )
}
# Making an environment inside a test of that environment would test pip; benchmarks take minutes.
NOT_HERE = re.compile(r"^(git clone|cd |make |pip install|python benchmarks|vqtok bench)", re.MULTILINE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {page: tmp_path_factory.mktemp("page") for page in PAGES}
    for path in made.values():
        (path / "photo.jpg").write_bytes((ROOT / "examples/photo.jpg").read_bytes())
    return made


@pytest.mark.timeout(400)
@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs_as_it_stands(block, folders):
    page, language, code = BLOCKS[block]
    if "onnx" in code and not all(map(importlib.util.find_spec, ("onnx", "onnxruntime", "onnxscript"))):
        pytest.skip("needs the extra onnx")
    if language == "python":
        command = [sys.executable, "-W", "error", "-c", code]
    else:
        lines = [line for line in code.splitlines() if not NOT_HERE.match(line)]
        command = ["bash", "-euo", "pipefail", "-c", "\n".join(lines)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folders[page],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=390,
        check=False,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"


def test_every_target_that_the_readme_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", TEXT, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / page).read_text()):
            assert (ROOT / page).parent.joinpath(target).exists(), target


def test_ci_runs_the_readmes_test_command():
    assert "make test" in TEXT
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "make test"
