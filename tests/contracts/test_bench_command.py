"""``vqtok bench``: tables and JSON on stdout, progress on stderr, mistakes told in a line before any work."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from vqtok.benchmarks import memory, nearest_code
from vqtok.benchmarks.test_bench import CONTENDERS
from vqtok.cli import group
from vqtok.cli.bench import stdout_kept_clean
from vqtok.errors import ResourceError, VqtokError

CDIST = "torch cdist+argmin"
TINY = ["bench", "nearest_code", "--quick", "--shape", "64,16,4", "--contender", CDIST, "--contender", "vqtok"]


def run(*arguments, cwd) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "vqtok", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=cwd, check=False)


def test_a_quick_run_gives_a_table_json_and_a_picture(tmp_path):
    plot = ["--plot", "a.png"] if find_spec("matplotlib") else []
    done = run(*TINY, "--threads", 1, "--json", "a.json", *plot, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "QUICK" in done.stdout
    assert "64 latents x 16 codes x 4 dimensions; 3 rounds" in done.stdout
    rows = [line.strip() for line in done.stdout.splitlines()]
    assert any(row.startswith(CDIST) for row in rows)
    assert any(row.startswith("vqtok") for row in rows)
    assert "first call" in done.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["quick"], found["threads"]) == (True, 1)
    assert [len(entry["seconds"]) for entry in found["panels"][0]["entries"]] == [3, 3]
    assert found["panels"][0]["entries"][1]["verdict"] == {"of": 64, "differing": 0, "wrong": 0, "better": 0}
    if plot:
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_json_on_stdout_is_nothing_but_json(tmp_path):
    done = run(*TINY, "--rounds", 2, "--json", "-", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schema"] == "vqtok.bench/1"
    assert found["panels"][0]["rounds"] == 2
    assert "median ms" in done.stderr, "the table is for people, beside the JSON"


def test_what_a_library_prints_does_not_reach_stdout(capfd):
    with stdout_kept_clean():
        print("from Python")
        os.write(1, b"from a compiler\n")
    print("the result")
    out, err = capfd.readouterr()
    assert out == "the result\n"
    assert sorted(err.splitlines()) == ["from Python", "from a compiler"]


def test_the_list_names_cases_contenders_and_what_is_not_installed(tmp_path):
    done = run("bench", "--list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("nearest_code", "statistics", "quantizer_step", "tokenize", CDIST, "FAISS", "vqtok:reference"):
        assert name in done.stdout
    if not find_spec("faiss"):
        assert "not installed (pip install faiss-cpu)" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nearest"], 2, "nearest_code, statistics"),
        (["--shape", "12"], 2, "4096,1024,8"),
        (["--shape", "1,2,0"], 2, "above 0"),
        (["--shape", "1,2,-3"], 2, "above 0"),
        (["--shape", "1,2,3,4"], 2, "three whole numbers"),
        (["--shape", "8,8,8"], 2, "name the cases"),
        (["nearest_code", "--contender", "fiass"], 2, "FAISS IndexFlatL2"),
        (["--rounds", "0"], 2, "--rounds"),
        (["--device", "tpu"], 2, "--device"),
        (["--plot", "a.jpg"], 2, "FILE.png"),
        (["--json", "gone/a.json"], 5, "gone"),
        (["--json", "taken.json"], 5, "--overwrite"),
    ],
)
def test_mistakes_cost_a_line_and_no_work(arguments, code, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("taken.json").touch()
    done = CliRunner().invoke(group, ["bench", "--quick", *arguments])
    error = done.exception
    assert error.exit_code == code if isinstance(error, VqtokError) else done.exit_code == code
    assert words in (str(error) if isinstance(error, VqtokError) else done.stderr)
    assert "first call" not in done.stderr
    assert done.stdout == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_cuda_is_refused_as_a_lack_of_resources():
    error = CliRunner().invoke(group, ["bench", "--quick", "--device", "cuda"]).exception
    assert isinstance(error, ResourceError)
    assert "GPU" in str(error)


def test_memory_is_measured_in_a_process_of_its_own():
    (cdist,) = (c for c in nearest_code.contenders("cpu") if c.name == CDIST)
    used = memory.extra_bytes(nearest_code.CASE, cdist, (4096, 4096, 4), 1)
    if used is None:
        pytest.skip("needs Linux")
    matrix = 4 * 4096 * 4096
    assert 0.95 * matrix < used < 1.5 * matrix


def test_the_pytest_benchmark_entry_points_are_there():
    assert {"nearest_code", "statistics", "quantizer_step", "tokenize"} == {e.id.split("-")[0] for e in CONTENDERS}
