"""Run folders through the command: what is said, exit codes, interruptions, and what goes on afterwards."""

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vqtok
from vqtok.dataset.folder import RunFolder


def run(*arguments, stdin=b"", cwd=None, env=None):
    command = [sys.executable, "-m", "vqtok", *map(str, arguments)]
    env = {**os.environ, **(env or {})}
    return subprocess.run(command, input=stdin, capture_output=True, timeout=100, cwd=cwd, env=env, check=False)


def told(result, code):
    assert result.returncode == code, result.stderr.decode()
    assert b"Traceback" not in result.stderr
    return result.stderr.decode()


def asked(result, code=0):
    told(result, code)
    return json.loads(result.stdout)


def content(path):
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file() and not p.name.startswith("LOCK")
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("place")
    (path / "in/sub").mkdir(parents=True)
    for i in range(9):
        rng = np.random.default_rng(i)
        image = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((24, 16))
        image.save(path / "in" / ("sub" if i % 2 else "") / f"{i}.png")
    torch.manual_seed(0)
    vqtok.build("photo-f8", vocab_size=64, channels=(8, 8, 16)).save(path / "m")
    assert told(run("tokenize", "in", "-o", "whole/", "-m", "m", "--shard-size", 2, cwd=path), 0)
    return path


def test_a_run_says_what_it_did_and_again_that_nothing_is_left(place, tmp_path):
    arguments = ("tokenize", "in", "-o", tmp_path / "run", "-m", "m", "--shard-size", 2)
    first = asked(run(*arguments, "--json", cwd=place))
    assert first["counts"] == {"seen": 9, "ok": 9, "failed": 0, "resumed": 0}
    assert (first["ok"], first["exit_code"], first["shards"], first["rows"]) == (True, 0, 5, 9)
    assert content(tmp_path / "run") == content(place / "whole")
    again = asked(run(*arguments, "--resume", "--json", cwd=place))
    assert again["counts"]["resumed"] == 9
    assert again["fingerprints"] == first["fingerprints"]
    assert "9 images in 5 shards, 9 of them before, 0 failed" in told(run(*arguments, cwd=place), 0)
    words = told(run(*arguments[:-1], 3, cwd=place), 7)
    assert "shard_size 2 -> 3" in words
    assert asked(run(*arguments[:-1], 3, "--overwrite", "--json", cwd=place))["shards"] == 3


def test_the_output_decides_between_a_file_and_a_run(place, tmp_path):
    (tmp_path / "there").mkdir()
    for output, kind in (("a.vqt", "file"), ("b", "run"), ("c.d/", "run"), ("there", "run")):
        told(run("tokenize", place / "in/0.png", "-o", output, "-m", place / "m", cwd=tmp_path), 0)
        assert (tmp_path / output / "manifest.json").exists() == (kind == "run"), output
    assert (tmp_path / "a.vqt").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["in", "-o", "x/", "--resume"], 4, "no run|none"),
        (["in", "-o", "x/", "--resume", "--overwrite"], 2, "one of"),
        (["in", "-o", "x.vqt", "--crop", "ten"], 2, "run folder"),
        (["in", "-o", "x.vqt", "--shard-size", "7"], 2, "run folder"),
        (["in", "-o", "x/", "--crop", "five"], 2, "random:N"),
        (["in", "-o", "x/", "--crop", "ten"], 2, "--size"),
        (["in", "-o", "x/", "--rank", "2", "--world-size", "2"], 2, "rank"),
        (["in", "-o", "x/", "--rank", "0"], 2, "together"),
        (["in", "-o", "x/", "--shard-size", "0"], 2, "shard-size"),
        (["in", "-o", "x/", "--max-failures", "x%"], 2, "P%"),
        (["in", "-o", "x/", "--precision", "bfloat16"], 2, "--repro fast"),
        (["nothing/*.png", "-o", "x/"], 4, "found none"),
        (["-o", "x/"], 2, "at least one"),
        (["m", "-o", "x/"], 4, "found none"),
        (["gone.tar", "-o", "x/"], 4, "gone.tar"),
        (["m/config.json", "-o", "m/"], 5, "config.json"),
        (["in", "-o", "m/config.json/x/"], 5, "not a folder|File|file"),
        (["in", "--files-from", "l", "-o", "x/"], 4, "list"),
    ],
)
def test_what_cannot_be_done_ends_as_documented(arguments, code, words, place):
    before = content(place)
    said = told(run("tokenize", *arguments, "-m", "m", cwd=place), code)
    assert any(word in said for word in words.split("|")), said
    after = {name: data for name, data in content(place).items() if not name.startswith("x/")}
    assert after == before


def test_a_dry_run_writes_nothing_and_needs_no_model(place):
    done = run("tokenize", "in", "-o", "dry/", "--dry-run", "--shard-size", 4, "-m", "none", "--json", cwd=place)
    assert asked(done)["shards"] == 3
    assert not (place / "dry").exists()


def test_names_from_find(place, tmp_path):
    names = b"\0".join(sorted(str(p).encode() for p in (place / "in").rglob("*.png"))) + b"\0"
    told(run("tokenize", "--files-from", "-", "-0", "-o", "run/", "-m", place / "m", cwd=tmp_path, stdin=names), 0)
    assert len(RunFolder(tmp_path / "run").tokens(0)) == 9


def test_ranks_by_environment_and_merge(place, tmp_path):
    arguments = ("tokenize", "in", "-o", tmp_path / "run", "-m", "m", "--shard-size", 2)
    for rank, env in enumerate(
        (
            {"RANK": "0", "WORLD_SIZE": "3"},
            {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "4"},
            {"SLURM_PROCID": "2", "SLURM_NTASKS": "3"},
        )
    ):
        assert f"rank {rank} of 3" in told(run(*arguments, cwd=place, env=env), 0)
        report = asked(run("status", tmp_path / "run", "--json"))
        assert report["shards"]["done"] == (2, 4, 5)[rank]
    assert content(tmp_path / "run") == content(place / "whole")
    (tmp_path / "run/index.json").unlink()
    told(run("merge", tmp_path / "run"), 0)
    assert content(tmp_path / "run") == content(place / "whole")


def test_failures_are_named_counted_and_tried_again(place, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes((place / "in/0.png").read_bytes())
    for i in range(30):
        (folder / f"z{i:02d}.png").write_text("<html>")
    arguments = ("tokenize", "in", "-o", "run/", "-m", place / "m", "--shard-size", 10)
    said = told(run(*arguments, cwd=tmp_path), 3).splitlines()
    assert sum("HTML" in line for line in said) == 20
    assert said[-1].endswith("vqtok retry run --only failed")
    assert "30 of 34 images failed" in said[-1]
    told(run(*arguments, "--max-failures", "90%", cwd=tmp_path), 0)
    told(run(*arguments, "--max-failures", "29", cwd=tmp_path), 3)
    for i in range(29):
        (folder / f"z{i:02d}.png").write_bytes((place / "in/0.png").read_bytes())
    result = asked(run("retry", "run", "--only", "failed", "--json", cwd=tmp_path), 3)
    assert result["failures"] == [{"kind": "format", "count": 1}]
    told(run("tokenize", "in", "-o", "fresh/", "-m", place / "m", "--shard-size", 10, cwd=tmp_path), 3)
    assert content(tmp_path / "run") == content(tmp_path / "fresh")
    assert "next: vqtok retry run --only failed" in run("status", "run", cwd=tmp_path).stdout.decode()


def test_verify_finds_recompute_compares_and_retry_repairs(place, tmp_path):
    told(run("tokenize", "in", "-o", tmp_path / "run", "-m", "m", "--shard-size", 2, cwd=place), 0)
    assert "sound, 5 shards, 9 images" in told(run("verify", tmp_path / "run"), 0)
    report = asked(run("verify", tmp_path / "run", "--recompute", "all", "-m", "m", "--json", cwd=place))
    assert report["recomputed"]["images"] == 9
    assert report["recomputed"]["different"] == 0
    path = tmp_path / "run/shards/00003.vqt"
    data = bytearray(path.read_bytes())
    data[-5] ^= 8
    path.write_bytes(data)
    assert "--only corrupt" in told(run("verify", tmp_path / "run"), 6)
    assert told(run("verify", path), 6)
    told(run("retry", tmp_path / "run", "--only", "corrupt", cwd=place), 0)
    assert content(tmp_path / "run") == content(place / "whole")
    (tmp_path / "run/shards/00001.json").unlink()
    assert "--only missing" in told(run("verify", tmp_path / "run"), 6)
    assert "--only missing" in run("status", tmp_path / "run").stdout.decode()
    told(run("merge", tmp_path / "run"), 3)
    told(run("retry", tmp_path / "run", "--only", "missing", cwd=place), 0)
    assert content(tmp_path / "run") == content(place / "whole")


def test_recompute_tells_that_an_image_was_changed(place, tmp_path):
    (tmp_path / "in").mkdir()
    for i in (0, 2):
        (tmp_path / f"in/{i}.png").write_bytes((place / f"in/{i}.png").read_bytes())
    told(run("tokenize", "in", "-o", "run/", "-m", place / "m", cwd=tmp_path), 0)
    Image.new("RGB", (24, 16), (250, 3, 90)).save(tmp_path / "in/2.png")
    assert "differ" in told(run("verify", "run", "--recompute", "all", cwd=tmp_path), 9)
    told(run("verify", "run", "--recompute", "1", cwd=tmp_path), 0)


def test_another_model_is_refused(place, tmp_path):
    torch.manual_seed(1)
    vqtok.build("photo-f8", vocab_size=64, channels=(8, 8, 16)).save(tmp_path / "other")
    for arguments in (("verify", "whole", "--recompute", "1"), ("tokenize", "in", "-o", "whole/", "--shard-size", 2)):
        assert "model" in told(run(*arguments, "-m", tmp_path / "other", cwd=place), 7)


def test_tiles_belong_to_the_job(place, tmp_path):
    """An image of 24 x 16 pixels in tiles of 8: recorded, compared on resuming, and used when it is made again."""
    line = ("tokenize", "in", "-o", tmp_path / "run", "-m", "m", "--shard-size", 4)
    told(run(*line, "--tile", 8, cwd=place), 0)
    manifest = json.loads((tmp_path / "run/manifest.json").read_bytes())
    assert manifest["settings"]["tile"] == 8
    whole = json.loads((place / "whole/manifest.json").read_bytes())
    assert "tile" not in whole["settings"]
    assert "tile 8 -> 0" in told(run(*line, cwd=place), 7)
    assert "tile 8 -> 16" in told(run(*line, "--tile", 16, cwd=place), 7)
    before = content(tmp_path / "run")
    assert asked(run("verify", tmp_path / "run", "--recompute", "all", "--json", cwd=place))["recomputed"] == {
        **{"images": 9, "tokens": 54, "different": 0, "near_ties": 0, "ledger": False, "lost": []},
        "same_machine": True,
    }
    (tmp_path / "run/shards/00001.vqt").write_bytes(b"")
    told(run("retry", tmp_path / "run", "--only", "corrupt", cwd=place), 0)
    assert content(tmp_path / "run") == before


def test_events_are_ndjson_and_stdout_stays_the_results(place, tmp_path):
    arguments = ("tokenize", "in", "-o", tmp_path / "r", "-m", "m", "--shard-size", 4, "--log-format", "json", "--json")
    done = run(*arguments, cwd=place)
    events = [json.loads(line) for line in done.stderr.decode().splitlines()]
    assert [event["event"] for event in events] == ["start", "shard", "shard", "shard", "end"]
    assert [event["done"]["ok"] for event in events[1:4]] == [4, 8, 9]
    assert asked(done)["counts"]["ok"] == 9


@pytest.mark.parametrize(
    "env", [{"PYTHONHASHSEED": "1"}, {"LC_ALL": "C"}, {"LC_ALL": "tr_TR.UTF-8", "TZ": "Asia/Tokyo"}]
)
def test_the_environment_changes_nothing(env, place, tmp_path):
    told(run("tokenize", "in", "-o", tmp_path / "run", "-m", "m", "--shard-size", 2, cwd=place, env=env), 0)
    assert content(tmp_path / "run") == content(place / "whole")


def test_a_damaged_archive_costs_what_is_lost_and_no_more(place, tmp_path):
    for name in ("a", "b"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for i in (0, 2, 4):
                tar.add(place / f"in/{i}.png", f"{i}.png")
            link = tarfile.TarInfo("../../etc/x.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[:1000])
    with tarfile.open(tmp_path / "b.tar") as tar:
        third = tar.getmembers()[2]
    (tmp_path / "c.tar").write_bytes(data[: third.offset_data + 9])
    result = asked(run("tokenize", "*.tar", "-o", "run/", "-m", place / "m", "--json", cwd=tmp_path), 3)
    assert result["counts"]["ok"] == 5  # three of b, two of c
    rows = RunFolder(tmp_path / "run").read("failures", 0)
    assert {row["key"] for row in rows} >= {"b.tar/../../etc/x.png"}
    assert {row["key"]: row["kind"] for row in rows if row["key"] in ("a.tar", "c.tar")} == {
        "a.tar": "corrupt",
        "c.tar": "truncated",
    }


def start(place, tmp_path, *more):
    command = [sys.executable, "-m", "vqtok", "tokenize", "in", "-o", str(tmp_path / "run"), "-m", "m"]
    return subprocess.Popen(
        [*command, "--shard-size", "2", *more], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("when", ["manifest.json", "shards/00001.vqt", "shards/00002.json"])
def test_an_interrupted_run_ends_soon_and_goes_on(number, code, when, place, tmp_path):
    with start(place, tmp_path) as process:
        wait_for((tmp_path / "run" / when).exists)
        workers = children(process.pid)
        process.send_signal(number)
        begun = time.monotonic()
        _, errors = process.communicate(timeout=30)
        assert time.monotonic() - begun < 5
    assert process.returncode in (code, 0)
    assert b"Traceback" not in errors
    wait_for(lambda: not [pid for pid in workers if Path(f"/proc/{pid}").exists()], 5)
    hidden = [p.name for p in (tmp_path / "run").rglob(".*")]
    assert hidden == []
    told(run("tokenize", "in", "-o", tmp_path / "run", "-m", "m", "--shard-size", 2, cwd=place), 0)
    assert content(tmp_path / "run") == content(place / "whole")


def kill_once(place, tmp_path, rng, seconds):
    with start(place, tmp_path) as process:
        time.sleep(rng.uniform(0.0, seconds))
        workers = children(process.pid) if process.poll() is None else []
        process.kill()
        process.communicate(timeout=30)
    wait_for(lambda: not [pid for pid in workers if Path(f"/proc/{pid}").exists()], 5)
    whole = content(place / "whole")
    for name, data in content(tmp_path / "run").items() if (tmp_path / "run").exists() else ():
        assert "/." in f"/{name}" or whole[name] == data, name


def kills(place, tmp_path, count):
    rng = random.Random(0)
    for attempt in range(count):
        target = tmp_path / str(attempt)
        target.mkdir()
        kill_once(place, target, rng, 4.0)
        if attempt % 2:
            kill_once(place, target, rng, 4.0)  # and again, while it goes on
        told(run("tokenize", "in", "-o", target / "run", "-m", "m", "--shard-size", 2, cwd=place), 0)
        assert content(target / "run") == content(place / "whole"), attempt


def test_killed_at_random_and_going_on(place, tmp_path):
    kills(place, tmp_path, 4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_random_fifty_times(place, tmp_path):
    kills(place, tmp_path, 50)


def test_light_commands_need_no_torch(place):
    code = f"""
import sys
from click.testing import CliRunner
from vqtok.cli import group
for arguments in (["status", {str(place / "whole")!r}], ["verify", {str(place / "whole")!r}],
                  ["merge", {str(place / "whole")!r}], ["retry", "--help"]):
    assert CliRunner().invoke(group, arguments).exit_code == 0, arguments
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
