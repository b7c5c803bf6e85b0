"""A run of three shards under fire: every call to the operating system fails or kills, one after the other.

Afterwards what is at a final name is whole, and the run that goes on gives the bytes of one that was never disturbed.
Run as a program, this file plays the process that is killed.
"""

import errno
import hashlib
import importlib
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.faults.test_commit import ALLOCATING, System, die, fail, short_write
from vqtok.dataset import folder as folder_module
from vqtok.dataset.checking import check_all
from vqtok.dataset.decoding import failure
from vqtok.dataset.documents import Settings
from vqtok.dataset.engine import Share, finish, missing_shards, run_shards
from vqtok.dataset.folder import RunFolder, Shard
from vqtok.dataset.items import Item
from vqtok.dataset.planning import Request, prepare
from vqtok.dataset.tables import Columns
from vqtok.errors import OutputError, ReproducibilityError, VqtokError
from vqtok.types import Tokens

commit = importlib.import_module("vqtok.store.commit")
SHA, WHOLE = "0" * 64, Share()
FAULTS = {"ENOSPC": fail(errno.ENOSPC), "EIO": fail(errno.EIO), "short": short_write}


def settings(**changes):
    fields = {
        **{"model": SHA, "codebook": SHA, "preprocess": SHA, "vocab_size": 64, "precision": "float32"},
        **{"repro": "stable", "crop": "none", "size": 0, "seed": 0, "source_hash": True},
        **{"limits": {"max_bytes": 9}, "shard_size": 3},
    }
    return Settings(**{**fields, **changes})


def request(names="abcdefgh", **changes):
    items = tuple(Item(f"{x}.jpg", f"/in/{x}.jpg", about={"label": ord(x)} if x < "d" else {}) for x in names)
    return Request((), Columns(), settings(**changes), "", {"threads": 1}, "test", items)


def encode(outcomes):
    """A model whose tokens are a hash of the name; it fails on "e"."""
    rows = [item for item, _ in outcomes]
    good = [item for item in rows if "e." not in item.key]
    digests = [hashlib.sha256(item.key.encode()).digest() for item in good]
    ids = np.concatenate([np.zeros(0, np.int64), *(np.frombuffer(x[:4], np.uint8) % 64 for x in digests)])
    count = len(good)
    return Shard(
        Tokens(
            ids.astype(np.int64),
            np.arange(count + 1) * 4,
            np.tile([1, 2, 2], (count, 1)),
            np.full((count, 2), 16),
            64,
            tuple(item.key for item in good),
            SHA,
            {"fingerprints": {"settings": settings().fingerprint()}},
        ),
        np.frombuffer(b"".join(digests), np.uint8).reshape(count, 32),
        [failure(item.key, "truncated", "half a file") for item in rows if item not in good],
        [{"key": item.key, **item.about} for item in good if item.about],
    )


def work(path, share=WHOLE):
    folder = RunFolder(path)
    with folder.locked(share.rank, share.world_size):
        manifest = prepare(folder, request())
        decode = lambda items: ((item, None) for item in items)  # noqa: E731
        run_shards(folder, manifest, missing_shards(folder, manifest, share), decode, encode)
        finish(folder, manifest)


def content(path):
    """All files but the lock, by name."""
    return {
        str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file() and p.name != "LOCK"
    }


def visible(path):
    return {name: data for name, data in content(path).items() if "/." not in f"/{name}"}


def install(system, patch):
    patch(commit, "os", system)
    patch(folder_module, "os", system)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    work(path)
    return content(path)


def test_the_undisturbed_run_is_sound(tmp_path, whole):
    work(tmp_path / "run")
    assert content(tmp_path / "run") == whole
    folder = RunFolder(tmp_path / "run")
    report = check_all(folder, folder.manifest())
    assert (report.problems, report.ok, report.failed, report.shards) == ([], 7, 1, 3)
    assert sorted(whole) == sorted(
        ["manifest.json", "index.json", "rows/00000.jsonl", "failures/00001.jsonl"]
        + [
            name.format(i)
            for i in range(3)
            for name in ("plan/0000{}.jsonl", "shards/0000{}.vqt", "shards/0000{}.json")
        ]
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("forever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_at_every_call_and_the_run_that_goes_on(name, forever, tmp_path, whole, monkeypatch):
    steps = {"write"} if name == "short" else ALLOCATING
    for at in range(1, 400):
        path = tmp_path / str(at)
        system = System(FAULTS[name], at, forever, steps)
        error = None
        with monkeypatch.context() as patch:
            install(system, patch.setattr)
            try:
                work(path)
            except VqtokError as caught:
                error = caught
        found = visible(path) if path.exists() else {}
        assert all(whole[x] == data for x, data in found.items()), at  # I1: whole, or not there
        if name == "short" or not system.fired:
            assert error is None, (at, error)
            assert found == whole
        else:
            assert isinstance(error, OutputError), (at, error)
        if not system.fired:
            assert at > (15 if name == "short" else 60)
            return
        work(path)
        assert content(path) == whole, at  # I4
    pytest.fail("never completed")


@pytest.mark.timeout(300)
def test_kill_at_every_call_and_the_run_that_goes_on(tmp_path, whole):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env=env, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


def kill_at_every_call(place):
    work(place / "whole")
    whole = content(place / "whole")
    for at in range(1, 1000):
        path = place / str(at)
        child = os.fork()
        if not child:
            install(System(die, at), setattr)
            work(path)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = visible(path) if path.exists() else {}
        if status not in {0, 137} or any(whole[x] != data for x, data in found.items()):
            sys.exit(f"step {at}: status {status}, {sorted(x for x in found if whole.get(x) != found[x])}")
        work(path)
        if content(path) != whole:
            sys.exit(f"step {at}: the run that went on differs: {sorted(set(content(path)) ^ set(whole))}")
        if status == 0:
            sys.stdout.write(str(at - 1))
            return
    sys.exit("never completed")


@pytest.mark.parametrize(
    "name", ["shards/00001.vqt", "shards/00001.json", "failures/00001.jsonl", "rows/00000.jsonl", "index.json"]
)
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_what_was_damaged_is_found_and_made_again(name, how, tmp_path, whole):
    path = tmp_path / "run"
    work(path)
    data = bytearray(whole[name])
    if how == "gone":
        (path / name).unlink()
    else:
        data[len(data) // 2] ^= 4
        (path / name).write_bytes(data if how == "flip" else data[: len(data) // 2])
    folder = RunFolder(path)
    report = check_all(folder, folder.manifest())
    shard = -1 if name == "index.json" else int(name.split("/")[1][:5])
    expected = "missing" if how == "gone" and name == "shards/00001.json" else "corrupt"
    assert [(problem.shard, problem.kind) for problem in report.problems] == [(shard, expected)]
    work(path)
    assert content(path) == whole


@pytest.mark.parametrize("name", ["manifest.json", "plan/00001.jsonl"])
def test_a_damaged_plan_stops_the_run_and_changes_nothing(name, tmp_path, whole):
    path = tmp_path / "run"
    work(path)
    data = bytearray(whole[name])
    data[len(data) // 2] ^= 4
    (path / name).write_bytes(data)
    (path / "shards/00001.json").unlink()
    before = content(path)
    with pytest.raises(VqtokError) as caught:
        work(path)
    assert caught.value.exit_code == 6
    assert content(path) == before


def test_every_flipped_bit_is_found(tmp_path, whole):
    path = tmp_path / "run"
    work(path)
    folder = RunFolder(path)
    rng = np.random.default_rng(0)
    for name, data in whole.items():
        for _ in range(60):
            damaged = bytearray(data)
            damaged[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            (path / name).write_bytes(damaged)
            codes = {6, 7}
            try:
                codes = {problem.kind for problem in check_all(folder, folder.manifest()).problems}
            except VqtokError as error:
                codes &= {error.exit_code}
            assert codes, name
        (path / name).write_bytes(data)


@pytest.mark.parametrize("how", ["lost", "doubled", "swapped", "stranger", "failed and there"])
def test_an_image_that_is_lost_doubled_or_swapped_is_found_behind_sound_checksums(how, tmp_path):
    work(tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    manifest = folder.manifest()
    items = folder.items(manifest, 2)
    rows = {
        "lost": items[:1],
        "doubled": [items[0], Item("g.jpg#2", ""), items[1]],
        "swapped": items[::-1],
        "stranger": [items[0], Item("z.jpg", "")],
        "failed and there": items,
    }[how]
    shard = encode((item, None) for item in rows)
    if how == "failed and there":
        shard = replace(shard, failures=[failure(items[0].key, "truncated", "half a file")])
    folder.discard(2)
    folder.commit_shard(manifest, 2, shard, items)
    problems = check_all(folder, manifest).problems
    assert [(problem.shard, problem.kind) for problem in problems] == [(2, "corrupt")]
    assert "every listed image once" in problems[0].message


def test_ranks_at_once_give_the_same_folder(tmp_path, whole):
    errors = []

    def one(rank):
        try:
            work(tmp_path / "run", Share(rank, 3))
        except VqtokError as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert {x: data for x, data in content(tmp_path / "run").items() if not x.startswith("LOCK")} == whole


def test_two_writers_of_one_shard_agree_or_the_second_is_told(tmp_path, whole):
    work(tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    manifest = folder.manifest()
    items = folder.items(manifest, 2)
    shard = encode((item, None) for item in items)
    folder.commit_shard(manifest, 2, shard, items)
    assert content(tmp_path / "run") == whole
    other = Shard(shard.tokens, None, [], [])
    with pytest.raises(ReproducibilityError):
        folder.commit_shard(manifest, 2, other, items)


def test_a_second_process_is_refused_and_a_dead_ones_lock_is_not(tmp_path, whole):
    folder = RunFolder(tmp_path / "run")
    with folder.locked(), pytest.raises(OutputError, match=f"process {os.getpid()} on"):
        work(tmp_path / "run")
    (tmp_path / "run/LOCK").write_text("process 1 on elsewhere\n")
    work(tmp_path / "run")
    assert content(tmp_path / "run") == whole


def test_a_folder_with_anything_else_in_it_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_text("precious")
    with pytest.raises(OutputError, match=r"photo\.jpg"):
        work(tmp_path)
    assert (tmp_path / "photo.jpg").read_text() == "precious"


def test_temporaries_lie_beside_their_target_whatever_tmpdir_says(tmp_path, whole, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/proc/none")
    work(tmp_path / "run")
    assert content(tmp_path / "run") == whole


if __name__ == "__main__":
    kill_at_every_call(Path(sys.argv[1]))
