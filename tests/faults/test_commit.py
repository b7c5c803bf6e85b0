"""Commits under fire: every call to the operating system fails or kills, one after the other.

Whatever happens, the final name holds the whole old content or the whole new content; no reader meets anything else.
Run as a program, this file plays the process that is killed.
"""

import errno
import importlib
import io
import os
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from vqtok.errors import ConfigError, IntegrityError, OutputError
from vqtok.store import load_tokens, reading, remove_stale_temporaries, save_tokens, temporary
from vqtok.types import Tokens

# By import_module, because the functions in them bear the same names.
commit = importlib.import_module("vqtok.store.commit")
commit_folder = importlib.import_module("vqtok.store.commit_folder")

OLD, NEW = b"old content", [b"new ", b"", memoryview(b"content"), b"!" * 5000]
NEW_BYTES = b"".join(NEW)
STEPS = {"open", "write", "fsync", "close", "lstat", "mkdir", "rmdir", "link", "unlink", "rename", "replace", "listdir"}
ALLOCATING = {"open", "write", "fsync", "mkdir", "link", "rename", "replace"}
PUBLISHING = {"link", "rename", "replace", "exchange"}


class System:
    """The os module with a step counter; ``fault`` is called at step ``at``, or at every step from there on."""

    def __init__(self, fault=None, at=0, forever=False, steps=STEPS):
        self.fault, self.at, self.forever, self.steps = fault, at, forever, steps
        self.count, self.calls, self.done = 0, [], []
        self.exchange = self.wrap("exchange", commit_folder._exchange)

    def __getattr__(self, name):
        function = getattr(os, name)
        return self.wrap(name, function) if name in STEPS else function

    def wrap(self, name, function):
        def step(*arguments):
            self.calls.append(name)
            if name in self.steps or (name == "exchange" and "rename" in self.steps):
                self.count += 1
                if self.fault and (self.count == self.at or (self.forever and self.count > self.at)):
                    return self.fault(name, function, *arguments)
            result = function(*arguments)
            self.done.append((name, arguments))
            return result

        return step

    @property
    def fired(self):
        return self.fault is not None and self.count >= self.at

    @property
    def published(self):
        return any(name in PUBLISHING for name, _ in self.done)


def die(*_):
    os._exit(137)


def fail(number):
    def fault(name, function, *arguments):
        if name == "close":
            function(*arguments)  # the descriptor is gone even when closing reports an error
        raise OSError(number, os.strerror(number))

    return fault


def short_write(name, function, *arguments):
    if name == "write":
        descriptor, data = arguments
        return function(descriptor, data[: max(1, len(data) // 2)])
    return function(*arguments)


def rotten_write(_, function, descriptor, data):
    return function(descriptor, bytes([data[0] ^ 1]) + bytes(data[1:]))


class FileCase:
    """Commit one file."""

    def __init__(self, folder, old):
        self.folder, self.old, self.path = folder, old, folder / "file.bin"
        if old and not self.path.exists():
            self.path.write_bytes(OLD)

    def run(self):
        commit.commit(self.path, NEW, overwrite=self.old)

    def content(self):
        if not self.path.exists():
            return None
        data = self.path.read_bytes()
        return "new" if data == NEW_BYTES else "old" if data == OLD else "partial"

    before = property(lambda self: "old" if self.old else None)

    def leftovers(self):
        return [path.name for path in self.folder.iterdir() if path != self.path]


class FolderCase(FileCase):
    """Commit a folder of two files."""

    def __init__(self, folder, old):
        self.folder, self.old, self.path = folder, old, folder / "model"
        if old and not self.path.exists():
            self.path.mkdir()
            for name in ("a", "b"):
                (self.path / name).write_bytes(OLD)

    def run(self):
        commit_folder.commit_folder(self.path, {"a": NEW, "b": [b"b"]}, overwrite=self.old)

    def content(self):
        if not self.path.exists():
            return None
        data = {path.name: path.read_bytes() for path in self.path.iterdir()}
        whole = {"new": {"a": NEW_BYTES, "b": b"b"}, "old": {"a": OLD, "b": OLD}}
        return next((name for name, files in whole.items() if files == data), "partial")


CASES = {"file": FileCase, "folder": FolderCase}


def install(system, patch):
    for module in (commit, commit_folder):
        patch(module, "os", system)
    patch(commit_folder, "_exchange", system.exchange)


def run_with(case, monkeypatch, system):
    """Return the OutputError, or None; any other error fails the test."""
    with monkeypatch.context() as patch:
        install(system, patch.setattr)
        try:
            case.run()
        except OutputError as error:
            return error
    return None


@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("old", [False, True], ids=["fresh", "overwrite"])
@pytest.mark.parametrize("kind", CASES)
def test_failing_calls_leave_all_or_nothing(kind, old, number, forever, tmp_path, monkeypatch):
    for at in range(1, 200):
        folder = tmp_path / str(at)
        folder.mkdir()
        case = CASES[kind](folder, old)
        system = System(fail(number), at, forever, ALLOCATING)
        error = run_with(case, monkeypatch, system)
        assert case.leftovers() == [], at
        if not system.fired:
            assert error is None
            assert at > 5
            assert case.content() == "new"
            return
        assert case.content() == ("new" if system.published else case.before), at
        assert error is not None, at
        assert os.strerror(number) in str(error)
        assert str(case.path) in str(error)
    pytest.fail("never completed")


@pytest.mark.parametrize("old", [False, True], ids=["fresh", "overwrite"])
@pytest.mark.parametrize("kind", CASES)
def test_any_other_call_that_fails_does_no_harm(kind, old, tmp_path, monkeypatch):
    """Closing, looking and tidying up may fail too; then a hidden file may stay, but nothing visible is wrong."""
    for at in range(1, 200):
        folder = tmp_path / str(at)
        folder.mkdir()
        case = CASES[kind](folder, old)
        system = System(fail(errno.EIO), at)
        error = run_with(case, monkeypatch, system)
        assert case.content() == ("new" if system.published else case.before), at
        assert all(name.startswith(".") for name in case.leftovers()), at
        if not system.fired:
            assert error is None
            return
    pytest.fail("never completed")


@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize("kind", CASES)
def test_short_writes_are_continued(kind, forever, tmp_path, monkeypatch):
    for at in range(1, 8):
        folder = tmp_path / str(at)
        folder.mkdir()
        case = CASES[kind](folder, False)
        system = System(short_write, at, forever)
        assert run_with(case, monkeypatch, system) is None
        assert case.content() == "new"


@pytest.mark.parametrize("kind", CASES)
def test_what_does_not_read_back_is_never_published(kind, tmp_path, monkeypatch):
    case = CASES[kind](tmp_path, True)
    error = run_with(case, monkeypatch, System(rotten_write, 1, True, {"write"}))
    assert "did not read back" in str(error)
    assert (case.content(), case.leftovers()) == ("old", [])


@pytest.mark.parametrize("old", [False, True], ids=["fresh", "overwrite"])
@pytest.mark.parametrize("kind", CASES)
def test_kill_at_every_call(kind, old, tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, __file__, kind, str(int(old)), str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 8, "expected some calls to be killed at"


def kill_at_every_call(kind, old, folder):  # noqa: C901
    """Fork a child for each step, kill it there, and look at what it left."""
    for at in range(1, 200):
        place = folder / str(at)
        place.mkdir()
        case = CASES[kind](place, old)
        child = os.fork()
        if not child:
            install(System(die, at), setattr)
            case.run()
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if case.content() not in {case.before, "new"} or status not in {0, 137}:
            sys.exit(f"step {at}: status {status}, content {case.content()}, beside it {case.leftovers()}")
        if not all(name.startswith(".") for name in case.leftovers()):
            sys.exit(f"step {at}: visible leftovers {case.leftovers()}")
        remove_stale_temporaries(place)
        if case.leftovers() or case.content() not in {case.before, "new"}:
            sys.exit(f"step {at}: after tidying up, {case.leftovers()}, {case.content()}")
        if status == 0:
            sys.stdout.write(str(at - 1))
            return
        if case.content() != "new":
            case.run()
        if case.content() != "new" or case.leftovers():
            sys.exit(f"step {at}: a second run did not complete the first")


@pytest.mark.parametrize(("old", "publish"), [(False, "link"), (True, "replace")], ids=["fresh", "overwrite"])
def test_content_is_durable_before_its_name_and_its_name_before_success(old, publish, tmp_path, monkeypatch):
    case, system = FileCase(tmp_path, old), System()
    assert run_with(case, monkeypatch, system) is None
    order = [name for name in system.calls if name in {"write", "fsync", publish}]
    assert order == ["write", "write", "write", "fsync", publish, "fsync"]


@pytest.mark.parametrize(("old", "publish"), [(False, "rename"), (True, "exchange")], ids=["fresh", "overwrite"])
def test_folder_is_durable_before_its_name_and_old_files_go_last(old, publish, tmp_path, monkeypatch):
    case, system = FolderCase(tmp_path, old), System()
    assert run_with(case, monkeypatch, system) is None
    order = [name for name in system.calls if name in {"fsync", publish, "unlink"}]
    assert order == ["fsync", "fsync", "fsync", publish, "fsync", "unlink", "unlink"]


def test_folders_are_swapped_by_renames_where_no_exchange_exists(tmp_path, monkeypatch):
    for at in range(1, 5):
        folder = tmp_path / str(at)
        folder.mkdir()
        case = FolderCase(folder, True)
        system = System(fail(errno.EIO), at, False, {"rename"})
        system.exchange = lambda *_: fail(errno.ENOSYS)("exchange", None)
        error = run_with(case, monkeypatch, system)
        assert case.content() == ("old" if at < 3 else "new"), at
        assert (error is None) == (at == 4), at
        assert case.leftovers() == [] or at == 3, at


def test_without_hard_links_a_rename_publishes(tmp_path, monkeypatch):
    case = FileCase(tmp_path, False)
    assert run_with(case, monkeypatch, System(fail(errno.EPERM), 1, True, {"link"})) is None
    assert (case.content(), case.leftovers()) == ("new", [])


def test_somebody_faster_is_not_overwritten(tmp_path, monkeypatch):
    case = FileCase(tmp_path, False)

    def faster(_, function, *arguments):
        case.path.write_bytes(OLD)
        return function(*arguments)

    error = run_with(case, monkeypatch, System(faster, 1, False, {"link"}))
    assert "exists already" in str(error)
    assert (case.content(), case.leftovers()) == ("old", [])


@pytest.mark.parametrize("kind", CASES)
def test_one_of_many_writers_wins(kind, tmp_path):
    errors = []

    def write():
        try:
            CASES[kind](tmp_path, False).run()
        except OutputError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 7
    assert all("exists already" in error for error in errors)
    case = CASES[kind](tmp_path, False)
    assert (case.content(), case.leftovers()) == ("new", [])


def test_a_real_limit_of_the_system_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OutputError, match="File too large"):
            commit.commit(tmp_path / "a", NEW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_interrupt_leaves_nothing(tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        commit.commit(tmp_path / "a", b"data", verify=interrupt)
    with pytest.raises(KeyboardInterrupt):
        commit_folder.commit_folder(tmp_path / "b", {"x": b"data"}, verify=interrupt)
    assert not list(tmp_path.iterdir())


def test_verify_sees_the_temporary_file_and_its_refusal_is_final(tmp_path):
    seen = []

    def refuse(path):
        seen.append((path.parent, path.read_bytes()))
        raise IntegrityError("expected something else")

    with pytest.raises(OutputError, match="expected something else"):
        commit.commit(tmp_path / "a", b"data", verify=refuse)
    assert seen == [(tmp_path.resolve(), b"data")]
    assert not list(tmp_path.iterdir())


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        commit.commit(tmp_path / "a", b"")
        commit_folder.commit_folder(tmp_path / "b", {"x": b""})
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "b", "b/x")]
    assert modes == [0o640, 0o750, 0o640]


MESSAGES = {
    "missing/a": "create the folder first",
    "file/a": "is a file, not a folder",
    "folder": "exists already",
    "x" * 300: "too long",
    "a\0b": "NUL",
    "": "path",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_say_what_why_and_what_to_do(name, tmp_path):
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_bytes(OLD)
    path = f"{tmp_path}/{name}" if name else ""
    with pytest.raises(OutputError, match=MESSAGES[name]):
        commit.commit(path, b"")
    with pytest.raises(OutputError, match=MESSAGES[name]):
        commit_folder.commit_folder(path, {"x": b""})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_only_regular_files_are_overwritten(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "null", "folder"):
        with pytest.raises(OutputError, match="not a regular file"):
            commit.commit(tmp_path / name, b"", overwrite=True)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_folder_with_anything_else_in_it_is_never_deleted(tmp_path):
    case = FolderCase(tmp_path, True)
    (case.path / "photo.jpg").write_bytes(OLD)
    with pytest.raises(OutputError, match=r"photo\.jpg"):
        case.run()
    assert len(list(case.path.iterdir())) == 3
    with pytest.raises(OutputError, match="exists already"):
        commit_folder.commit_folder(case.path, {"a": b""})


def test_empty_folder_is_filled_and_links_are_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for overwrite in (False, True):
        commit_folder.commit_folder(tmp_path / "link", {"x": b"%d" % overwrite}, overwrite=overwrite)
        assert (tmp_path / "real" / "x").read_bytes() == b"%d" % overwrite
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\0"])
def test_files_stay_in_their_folder(name, tmp_path):
    with pytest.raises(ConfigError, match="plain file name"):
        commit_folder.commit_folder(tmp_path / "b", {name: b""})
    assert not list(tmp_path.iterdir())


def test_only_own_and_dead_temporaries_are_swept(tmp_path, monkeypatch):
    host, dead = temporary._host(), subprocess.Popen(["true"])
    dead.wait()
    names = {
        f".a.{dead.pid}.{host}01234567.tmp": False,
        f".a.b.{dead.pid}.{host}01234567.tmp": False,
        f".a.{os.getpid()}.{host}01234567.tmp": True,
        f".a.{dead.pid}.{'0' * 16}.tmp": True,
        f".a.{dead.pid}.{host}01234567.old": True,
        f".a.{'9' * 30}.{host}01234567.tmp": True,
        f"a.{dead.pid}.{host}01234567.tmp": True,
        ".a.tmp": True,
    }
    for name in names:
        (tmp_path / name).write_bytes(b"")
    folder = tmp_path / f".m.{dead.pid}.{host}76543210.tmp"
    folder.mkdir()
    (folder / "x").write_bytes(b"")
    assert remove_stale_temporaries(tmp_path) == 3
    assert {path.name for path in tmp_path.iterdir()} == {name for name, kept in names.items() if kept}
    assert remove_stale_temporaries(tmp_path / "missing") == 0
    assert temporary._PATTERN.fullmatch(temporary.temporary_path(Path("é" * 80)).name)


def test_token_file_that_cannot_be_read_back_is_not_published(tmp_path, monkeypatch):
    tokens = Tokens(np.arange(4), np.array([0, 4]), np.array([[1, 2, 2]]), np.array([[8, 8]]), 4, ("a",), "")
    path = tmp_path / "a.vqt"
    for fault in (OSError(errno.EIO, "Input/output error"), IntegrityError("expected more")):

        def broken(*_, fault=fault):
            raise fault

        with monkeypatch.context() as patch:
            patch.setattr("vqtok.store.token_file.read_exactly", broken)
            with pytest.raises(OutputError, match="did not read back"):
                save_tokens(path, tokens)
        assert not list(tmp_path.iterdir())
    save_tokens(path, tokens)
    assert load_tokens(path).keys == ("a",)


def test_short_reads_are_continued(tmp_path):
    class Trickle(io.FileIO):
        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[:3])

    (tmp_path / "a").write_bytes(NEW_BYTES)
    with Trickle(tmp_path / "a") as file:
        assert bytes(reading.read_exactly(file, len(NEW_BYTES))) == NEW_BYTES


def test_file_that_shrinks_while_read_is_damaged(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"1234")
    with reading.open_regular(path, "a file") as file, pytest.raises(IntegrityError, match="ended after 4"):
        reading.read_exactly(file, 5)


if __name__ == "__main__":
    kill_at_every_call(sys.argv[1], sys.argv[2] == "1", Path(sys.argv[3]))
