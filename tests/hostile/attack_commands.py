"""89 to 104: command lines and surroundings."""

from __future__ import annotations

import fcntl
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.hostile import test_token_files as token_files
from tests.hostile.attack import COMMANDS, Attack, good_png, run_line


def command(kind: int, name: str, *line: str, codes: set[int], **more: object) -> Attack:
    return Attack(kind, f"{kind}-{name}", line, frozenset(codes), **more)  # pyright: ignore[reportArgumentType]


def usage() -> Iterator[Attack]:
    """89 to 91, 100, 101: words that make no sense."""
    for name in COMMANDS:
        yield command(89, name, name, "--nope", codes={2})
        yield command(89, f"{name}-typo", name, "x", "--overwrit3", codes={2})
    for number, flag in enumerate(("-o", "-m", "--shard-size", "--crop", "--workers", "--rank", "--files-from")):
        yield command(90, f"{number}", "tokenize", "in", flag, codes={2})
    yield command(91, "nothing", "tokenize", "-o", "x.vqt", codes={2})
    yield command(91, "nothing-run", "tokenize", "-o", "x/", codes={2})
    yield command(91, "folder", "tokenize", "void", "-o", "x/", codes={4}, prepare=lambda: os.mkdir("void"))
    yield command(91, "pattern", "tokenize", "in/*.bmp", "-o", "x/", codes={4})
    yield command(91, "name", "tokenize", "", "-o", "x.vqt", "-m", "{m}", codes={4})
    yield command(91, "list", "tokenize", "l.txt", "-o", "x/", codes={4}, files={"l.txt": b"\n\n"})
    yield command(91, "stdin", "tokenize", "-", "-o", "x.vqt", "-m", "{m}", codes={3, 4})
    yield command(91, "output", "tokenize", "in", "-o", "", codes={2})
    for number, value in enumerate(("0", "-1", "x", "1e9", "9" * 30, "0x10", "1.5", " ")):
        for flag in ("--shard-size", "--workers", "--timeout"):
            right = {"--workers": ("0",), "--timeout": ("1e9", "9" * 30, "1.5")}
            if value not in right.get(flag, ()):
                yield command(100, f"{number}{flag}", "tokenize", "in", "-o", "x/", flag, value, codes={2})
    for rank, size in ((2, 2), (5, 1), (-1, 2), (0, 0), (0, -1), (1 << 40, 1)):
        line = ("tokenize", "in", "-o", "x/", "-m", "{m}", f"--rank={rank}", f"--world-size={size}")
        yield command(101, f"{rank}-{size}", *line, codes={2})
    for number, value in enumerate(("five", "random:0", "random:x", "ten:3", "random:" + "9" * 40)):
        yield command(100, f"crop-{number}", "tokenize", "in", "-o", "x/", "--crop", value, codes={2})


_NAMES = (b"a\nb.png", "ü🙂.png".encode(), b"\xff\xfe.png", b"-rf.png", b"a" * 251 + b".png", b"a.b.c.png", b" .png")
_NAMES += (b"%2e%2e.png", b"a#0.png", b"\x1b[31m.png", b"con.png", b"a\\b.png", b"~.png", b"$(touch BOMB).png")


def names() -> Iterator[Attack]:
    """92 to 96: file names."""
    for number, raw in enumerate(_NAMES):
        name = os.fsdecode(raw)
        path = {f"in/{name}": good_png()}
        yield command(92, f"folder-{number}", *run_line(), codes={0}, files=path)
        line = ("tokenize", "-o", "x.vqt", "-m", "{m}", "--", f"in/{name}")
        yield command(92, f"file-{number}", *line, codes={0}, files=path)
        missing = ("tokenize", "-o", "x.vqt", "-m", "{m}", "--", f"no/{name}")
        yield command(92, f"missing-{number}", *missing, codes={3, 4})
    for number, name in enumerate(("x" * 4096 + ".png", "a/" * 2100 + "b.png", "a\0b.png")):
        yield command(92, f"long-{number}", "tokenize", name, "-o", "x.vqt", "-m", "{m}", codes={3, 4})
        if "\0" not in name:  # which no command line can hold
            yield command(92, f"long-output-{number}", "tokenize", "in", "-o", f"{name}.vqt", "-m", "{m}", codes={5})
    twice = {"hard": lambda: os.link("in/good.png", "in/b.png"), "soft": lambda: os.symlink("good.png", "in/b.png")}
    for name, make in twice.items():
        yield command(93, name, *run_line(), codes={0}, prepare=make)
    yield command(93, "words", "tokenize", "in/good.png", "./in/good.png", "-o", "x/", "-m", "{m}", codes={0, 3})
    yield command(93, "folder-and-file", "tokenize", "in", "in/good.png", "-o", "x/", "-m", "{m}", codes={0, 3})
    for number, pair in enumerate((("a.jpg", "a.png"), ("a.png", "a.png.png"), ("a", "a.bmp"))):
        files = {f"in/{name}": good_png() for name in pair}
        yield command(94, f"{number}", *run_line(), codes={0}, files=files)
    for number, name in enumerate(("a.b.c.png", "..png", "a..png", "...a.png", ".hidden.png")):
        yield command(95, f"{number}", *run_line(), codes={0, 3}, files={f"in/{name}": good_png()})
    for number, pair in enumerate((("a.png", "A.png"), ("b.PNG", "b.png"), ("ß.png", "SS.png"))):
        files = {f"in/{name}": good_png() for name in pair}
        yield command(96, f"{number}", *run_line(), codes={0}, files=files)


def outputs() -> Iterator[Attack]:
    """97 to 99: where the output goes."""
    m = ("-m", "{m}")
    yield command(97, "run", "tokenize", "in", "-o", "in/run/", *m, codes={0})
    yield command(97, "file", "tokenize", "in", "-o", "in/x.vqt", *m, codes={0})
    yield command(97, "reconstruct", "reconstruct", "in/good.png", "-o", "in/x.png", *m, codes={0})
    sound = {"a.vqt": token_files.GOOD}
    yield command(98, "image", "tokenize", "in/good.png", "-o", "in/good.png", *m, codes={2})
    yield command(98, "folder", "tokenize", "in", "-o", "in/", *m, codes={5})
    yield command(98, "convert", "convert", "a.vqt", "a.vqt", codes={5}, files=sound)
    yield command(98, "detokenize", "detokenize", "a.vqt", "-o", "a.vqt", *m, codes={2, 5, 7}, files=sound)
    yield command(98, "reconstruct", "reconstruct", "in/good.png", "-o", "in/good.png", *m, codes={5})
    yield command(98, "merge", "merge", "in", "-o", "in", codes={2, 4, 5})
    yield command(99, "file", "tokenize", "in", "-o", "a.vqt", *m, codes={5}, files=sound)
    yield command(99, "folder", "tokenize", "in", "-o", "d.vqt", *m, codes={0, 2, 5}, prepare=lambda: os.mkdir("d.vqt"))
    yield command(99, "full", "tokenize", "in", "-o", "d/", *m, codes={5}, files={"d/x": b"x"})
    yield command(99, "below-a-file", "tokenize", "in", "-o", "f/x/", *m, codes={5}, files={"f": b"x"})
    yield command(99, "no-folder", "tokenize", "in", "-o", "no/x.vqt", *m, codes={5})
    yield command(99, "convert", "convert", "a.vqt", "b.jsonl", codes={5}, files={**sound, "b.jsonl": b"x"})
    yield command(99, "device", "tokenize", "in", "-o", "/dev/null/x.vqt", *m, codes={5})


def surroundings() -> Iterator[Attack]:
    """102 to 104: streams, limits, and others at work."""
    line = ("tokenize", "in", "-o", "x.vqt", "-m", "{m}")
    for name, (number, words, code) in {
        "stdin": (0, ("tokenize", "-", "-o", "x.vqt", "-m", "{m}"), {3, 4}),
        "stdout": (1, (*line, "--json"), {5}),
        "stderr": (2, line, {0}),
    }.items():
        yield command(102, f"closed-{name}", *words, codes=code, prepare=lambda n=number: close(n))
    yield command(102, "head", *line, "--json", codes={141}, prepare=lambda: os.dup2(no_reader(), 1))
    yield command(102, "head-of-help", "--help", codes={141}, prepare=lambda: os.dup2(no_reader(), 1))
    yield command(102, "full", *line, "--json", codes={5}, prepare=lambda: os.dup2(os.open("/dev/full", 1), 1))
    yield command(102, "full-stderr", *line, codes={0}, prepare=lambda: os.dup2(os.open("/dev/full", 1), 2))
    limits = {
        "files": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
        "written": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64)),
        "memory": lambda: resource.setrlimit(resource.RLIMIT_AS, (mapped() + (8 << 20),) * 2),
        "no-core": lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    }
    codes = {"files": {0}, "written": {5}, "memory": {0, 3, 8}, "no-core": {0}}
    for name, limit in limits.items():
        yield command(103, name, *line, codes=codes[name], prepare=limit)
        run_codes = codes[name] if name != "memory" else {0, 3, 4, 5, 8}
        yield command(103, f"{name}-run", *run_line(), codes=run_codes, prepare=limit)
    yield command(103, "environment", *line, codes={0}, prepare=os.environ.clear)
    for number, words in enumerate(("xx_XX", "tr_TR.UTF-8", "C", "\udcff")):
        change = lambda w=words: os.environ.update(LC_ALL=w, LANG=w, TERM=w, TZ=w)  # noqa: E731
        yield command(103, f"locale-{number}", *line, codes={0}, prepare=change)
    yield command(103, "umask", *line, codes={0}, prepare=lambda: os.umask(0o777))
    yield command(103, "gone-folder", "tokenize", "in", "-o", "x.vqt", codes={4, 5}, prepare=leave)
    for number in range(3):
        yield command(104, f"lock-{number}", *run_line(), codes={5}, prepare=hold)
    yield command(104, "foreign", *run_line(), codes={5}, files={"run/notes.txt": b"mine"})
    yield command(104, "broken-manifest", *run_line(), codes={6}, files={"run/manifest.json": b"{}"})
    yield command(104, "other-job", *run_line("--resume"), codes={4}, files={"run/LOCK": b"process 1 on mars\n"})


def close(number: int) -> None:
    """Close a standard stream, as Python finds it when it starts without one."""
    os.close(number)
    setattr(sys, ("stdin", "stdout", "stderr")[number], None)


def no_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def mapped() -> int:
    """Address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def leave() -> None:
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")


def hold() -> None:
    """Be another process at work in the run."""
    os.mkdir("run")
    fcntl.flock(os.open("run/LOCK", os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
