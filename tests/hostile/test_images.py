"""Hostile images: the right pixels, or an ImageError of a known kind; quickly, quietly, in bounded memory."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.hostile.image_kinds import Case, bombs, every, picture, save
from vqtok.errors import ImageError
from vqtok.images import Limits, decode

KINDS = {"missing", "unreadable", "empty", "format", "truncated", "corrupt"}
KINDS |= {"too_large", "too_many_pixels", "depth", "memory", "decode"}
CASES = every()
LOSSY = re.compile("23-|19-JPEG|20-JPEG|27-grey-jpeg")


def refusal(source, **options) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(source, **options)
    error = caught.value
    text = str(error)
    assert error.kind in KINDS
    assert text.isprintable(), "one line, nothing that steers a terminal"
    assert "object at 0x" not in text, "the same message every time"
    return error


def check(case: Case, source) -> None:
    try:
        array = decode(source)
    except ImageError:
        assert case.kinds, "a sound image was refused"
        error = refusal(source)
        assert error.kind in case.kinds
        assert case.says in str(error)
        return
    assert array.dtype == np.uint8
    assert array.ndim == 3
    assert array.shape[2] == 3
    if case.pixels is None:
        assert not case.kinds or len(case.kinds) > 1, "a hostile image was accepted"
    else:
        assert array.shape == case.pixels.shape
        far = np.abs(array.astype(int) - case.pixels).max()
        assert far <= (2 if LOSSY.match(case.name) else 0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_bytes(case, capfd, recwarn):
    start = time.process_time()
    check(case, case.data)
    assert time.process_time() - start < 5
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_hostile_files_whatever_they_are_called(tmp_path):
    for number, case in enumerate(CASES[::5]):
        path = tmp_path / f"{number}.{('jpg', 'png', 'tiff', 'txt')[number % 4]}"
        path.write_bytes(case.data)
        check(case, path if number % 2 else str(path))


def test_the_list_of_kinds_is_covered():
    assert {int(case.name[:2]) for case in CASES} >= set(range(1, 35)) - {5, 6, 7, 8}, "5 to 8 are cuts, as 4 is"
    assert len({case.name for case in CASES}) == len(CASES) > 200
    assert {kind for case in CASES for kind in case.kinds} <= KINDS


def outcome(data: bytes, whole: np.ndarray) -> str:
    try:
        return "same" if np.array_equal(decode(data), whole) else "other pixels"
    except ImageError as error:
        return error.kind


def test_every_cut_of_a_file_is_an_error_or_changes_nothing():
    for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        data = save(picture(9, 11), format)
        whole = decode(data)
        for cut in range(len(data)):
            assert outcome(data[:cut], whole) in ("same", "empty", "format", "truncated", "corrupt")


def test_every_flipped_byte_of_a_png_is_an_error_or_changes_nothing():
    data = save(picture(9, 11), "PNG")
    whole = decode(data)
    for at in range(len(data)):
        flipped = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        assert outcome(flipped, whole) in ("same", "format", "truncated", "corrupt")


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.png"
    path.write_bytes(save(picture(), "PNG"))
    return path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX files")
def test_special_files_are_refused_without_blocking(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("dir.jpg")
    os.mkfifo("fifo.jpg")
    os.symlink("fifo.jpg", "link.jpg")
    os.symlink("loop.jpg", "loop.jpg")
    os.symlink("gone.jpg", "dangling.jpg")
    with socket.socket(socket.AF_UNIX) as end:
        end.bind("socket.jpg")
        says = {"dir": "directory", "fifo": "FIFO", "link": "FIFO", "socket": "socket", "loop": "symbolic links"}
        for name, words in says.items():
            error = refusal(f"{name}.jpg")
            assert error.kind == "unreadable"
            assert words in str(error)
    assert refusal("/dev/zero").kind == "unreadable"
    assert refusal("gone.jpg").kind == "missing"
    assert "target is gone" in str(refusal("dangling.jpg"))


def test_a_fifo_swapped_in_after_the_look_does_not_block(good, monkeypatch):
    look = os.stat(good)
    fifo = good.with_name("fifo.jpg")
    os.mkfifo(fifo)
    monkeypatch.setattr("vqtok.images.files.os.stat", lambda path: look)
    assert refusal(fifo).kind == "unreadable"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_file_without_rights(good):
    good.chmod(0)
    assert refusal(good).kind == "unreadable"


def test_file_that_may_not_be_opened(good, monkeypatch):
    def deny(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("vqtok.images.files.os.open", deny)
    error = refusal(good)
    assert error.kind == "unreadable"
    assert "Permission denied" in str(error)


@pytest.mark.parametrize("change", ["vanish", "shrink", "grow"])
def test_a_file_that_changes_while_read(good, monkeypatch, change):
    really, size = os.open, good.stat().st_size

    def swap(path, flags, *rest):
        if change == "vanish":
            good.unlink()
        return really(path, flags, *rest)

    def resize(handle, really=os.fstat):
        info = really(handle)
        os.truncate(good, size + (9 if change == "grow" else -9))
        return info

    monkeypatch.setattr("vqtok.images.files.os.open", swap)
    if change != "vanish":
        monkeypatch.setattr("vqtok.images.files.os.fstat", resize)
    assert refusal(good).kind == ("missing" if change == "vanish" else "unreadable")


def test_odd_names(tmp_path):
    error = refusal(tmp_path / "a\x1b[31m\nb\u202egnp.jpg")
    assert error.kind == "missing"
    assert r"\x1b[31m\nb\u202egnp.jpg" in str(error)
    assert refusal("a\0b.jpg").kind == "unreadable"
    assert refusal("x" * 5000).kind == "unreadable"
    assert len(str(refusal("x" * 5000))) < 500
    assert r"\udcff" in str(refusal(os.fsdecode(b"/nowhere/\xff.jpg")))
    assert str(refusal(b"", name="shard.tar/a\tb.jpg")).startswith(r"shard.tar/a\tb.jpg: ")


def test_limits_are_asked_before_the_work(good, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded before its size was checked"))
    assert refusal(good, limits=Limits(max_pixels=24 * 31 - 1)).kind == "too_many_pixels"
    assert refusal(good, limits=Limits(max_side=30)).kind == "too_many_pixels"
    monkeypatch.setattr("vqtok.images.files.os.open", lambda *_: pytest.fail("opened before its size was checked"))
    assert refusal(good, limits=Limits(max_bytes=50)).kind == "too_large"
    assert refusal(bytes(51), limits=Limits(max_bytes=50)).kind == "too_large"


def test_what_a_decoder_throws_becomes_an_image_error(monkeypatch):
    data = save(picture(), "PNG")
    thrown = {
        MemoryError(): "memory",
        RecursionError("deep"): "decode",
        ZeroDivisionError(): "decode",
        OSError("x"): "corrupt",
    }
    for error, kind in thrown.items():

        def fail(self, error=error):
            raise error

        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
        assert refusal(data).kind == kind


MEASURE = """
import resource, sys
from tests.hostile.image_kinds import bombs
from vqtok.errors import ImageError
from vqtok.images import decode
cases = list(bombs())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for case in cases:
    try: decode(case.data)
    except ImageError: pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is counted otherwise elsewhere")
def test_bombs_stay_small_in_memory():
    assert len(list(bombs())) > 30
    root = Path(__file__).resolve().parents[2]
    run = [sys.executable, "-W", "error", "-c", MEASURE]
    out = subprocess.run(run, cwd=root, capture_output=True, text=True, timeout=50, check=True)
    assert out.stderr == ""
    assert int(out.stdout) < 200, "MiB above what was there before"
