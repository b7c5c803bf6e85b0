"""Hostile images through the command: one line each, the documented exit code, and the others are done."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import vqtok
from tests.hostile.image_kinds import every
from vqtok.errors import ImageError
from vqtok.images import decode


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("hostile")
    for i, case in enumerate(every()):
        if len(case.data) < 1 << 20:
            (path / f"{i:03}.png").write_bytes(case.data)
    return path


def test_a_folder_of_hostile_images_is_done_but_for_those_it_names(folder):
    expected = {}
    for path in sorted(folder.iterdir()):
        try:
            expected[path.name] = decode(path).shape[:2]
        except ImageError as error:
            expected[path.name] = error.kind
    command = [sys.executable, "-m", "vqtok", "tokenize", ".", "-o", "../all.vqt", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 3, done.stderr
    result = json.loads(done.stdout)
    failed = {failure["key"]: failure["kind"] for failure in result["failures"]}
    assert failed == {name: kind for name, kind in expected.items() if isinstance(kind, str)}
    *lines, last = done.stderr.splitlines()
    assert len(lines) == len(failed)
    assert all(name in line for name, line in zip(failed, lines, strict=True))
    assert f"{len(failed)} of {len(expected)} inputs failed" in last
    tokens = vqtok.load_tokens(folder.parent / "all.vqt")
    shapes = dict(zip(tokens.keys, map(tuple, tokens.sizes.tolist()), strict=True))
    assert shapes == {name: shape for name, shape in expected.items() if not isinstance(shape, str)}
    assert (folder.parent / "all.vqt").exists()
    assert [p.name for p in folder.parent.iterdir() if "tmp" in p.name] == []


@pytest.mark.parametrize(("names", "code"), [(("large.png",), 8), (("large.png", "small.png"), 3)])
def test_an_image_too_large_for_the_memory_is_named_and_the_others_are_done(tmp_path, names, code):
    Image.new("RGB", (6000, 6000)).save(tmp_path / "large.png")
    Image.new("RGB", (60, 60)).save(tmp_path / "small.png")
    command = [sys.executable, "-m", "vqtok", "tokenize", *names, "-o", "a.vqt"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (5 << 30, 5 << 30)),
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("vqtok: large.png: memory ran out")
    assert "Traceback" not in done.stderr
    assert (tmp_path / "a.vqt").exists() == ("small.png" in names)
