"""1 to 36: images."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tests.hostile import image_kinds as pictures
from tests.hostile.attack import IMAGES, REFUSED, Attack, good_png, run_line


def image(kind: int, name: str, data: bytes, number: int = 0) -> Attack:
    """An image beside a sound one, in a run; now and then decoded in a process of its own."""
    suffix = ("png", "jpg", "webp", "bmp", "gif")[number % 5]
    files = {f"in/bad.{suffix}": data}
    return Attack(
        kind, f"{kind:02}-{name}", run_line(workers=int(number % 24 == 7)), IMAGES, files, "decode", next(iter(files))
    )


def listed_images() -> Iterator[Attack]:
    for number, case in enumerate(pictures.every()):
        kind, name = int(case.name[:2]), case.name[3:]
        cuts = {"header": 4, "25": 5, "50": 6, "99": 7, "last": 8}
        if kind == 4:
            kind = cuts.get(name.rpartition("-")[2], 4)
        yield image(kind, name, case.data, number)


def seeded_images(seed: int) -> Iterator[Attack]:
    """Other sizes, formats, cuts and flips: 31 a seed."""
    rng = np.random.default_rng(seed)
    height, width = (int(x) for x in rng.integers(2, 60, 2))
    array = pictures.picture(height, width, seed=seed)
    yield image(1, f"{seed}-nothing", b"", seed)
    yield image(2, f"{seed}-byte", rng.bytes(1), seed)
    for format in ("JPEG", "PNG", "WEBP"):
        data = pictures.save(array, format)
        yield image(3, f"{seed}-{format}", data[: int(rng.integers(2, 13))], seed)
        places = (int(rng.integers(13, 40)), len(data) // 4, len(data) // 2, len(data) * 99 // 100, len(data) - 1)
        for kind, at in enumerate(places, 4):
            yield image(kind, f"{seed}-{format}", data[:at], seed)
        flipped = bytearray(data)
        for at in rng.integers(len(data) // 2, len(data), 1 + seed % 5):
            flipped[at] ^= 1 << int(rng.integers(8))
        yield image(9, f"{seed}-{format}", bytes(flipped), seed)
    whole = pictures.png_of(array)
    at = whole.index(b"IDAT") - 4
    yield image(10, f"{seed}", whole[:-16] + rng.bytes(4) + whole[-12:], seed)
    yield image(11, f"{seed}", whole[:-12], seed)
    yield image(12, f"{seed}", whole[:at] + whole[at : at + 8] + rng.bytes(len(whole) - at - 8), seed)
    side = (int(rng.integers(9_500, 1 << 31)), int(rng.integers(9_500, 1 << 31)))
    yield image(13, f"{seed}", pictures.png([bytes(12)] * 4, *side), seed)
    yield image(19, f"{seed}", pictures.save(array[:1, :1], ("JPEG", "PNG", "WEBP", "BMP", "GIF")[seed % 5]), seed)
    yield image(32, f"{seed}-noise", rng.bytes(int(rng.integers(2, 5000))), seed)
    yield image(33, f"{seed}-both", pictures.save(array, "JPEG") + b"PK\x03\x04" + rng.bytes(300), seed)
    yield image(29, f"{seed}", pictures.save(array, "JPEG", exif=b"Exif\0\0II*\0" + rng.bytes(90)), seed)
    yield image(30, f"{seed}", pictures.save(array, "WEBP", icc_profile=rng.bytes(200), exif=rng.bytes(80)), seed)


def special_files() -> Iterator[Attack]:
    """35 and 36: what is no plain file, and files that change while they are read."""
    makes: dict[str, Callable[[], object]] = {
        "directory": lambda: os.mkdir("in/x.jpg"),
        "fifo": lambda: os.mkfifo("in/x.jpg"),
        "socket": lambda: socket.socket(socket.AF_UNIX).bind("in/x.jpg"),
        "device": lambda: os.symlink("/dev/zero", "in/x.jpg"),
        "dangling": lambda: os.symlink("gone.jpg", "in/x.jpg"),
        "loop": lambda: os.symlink("x.jpg", "in/x.jpg"),
        "folder-loop": lambda: os.symlink(".", "in/x"),
        "unreadable": lambda: (Path("in/x.jpg").write_bytes(b"x"), os.chmod("in/x.jpg", 0)),
        "unreadable-folder": lambda: os.mkdir("in/x", 0),
    }
    for name, make in makes.items():
        kind = 36 if name in ("dangling", "loop", "folder-loop", "unreadable", "unreadable-folder") else 35
        yield Attack(kind, f"{kind}-{name}", run_line(), IMAGES, {}, "decode", "in/x.jpg", make)
        if name in ("directory", "fifo", "socket", "device", "dangling", "loop"):
            line = ("tokenize", "in/x.jpg", "-o", "x.vqt", "-m", "{m}")
            codes = frozenset({3, 4}) if name != "directory" else REFUSED
            yield Attack(kind, f"{kind}-{name}-file", line, codes, {}, "decode", "in/x.jpg", make)
    for change in ("vanish", "shrink", "grow"):
        path = "in/x.png"
        yield Attack(
            36, f"36-{change}", run_line(), IMAGES, {path: good_png()}, "decode", path, lambda c=change: changing(c)
        )


def changing(change: str) -> None:
    """Let in/x.png change between the look at it and the reading."""
    from vqtok.images import files

    really = files.os.open

    class System:
        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def open(self, path: str, *rest: int) -> int:
            if str(path).endswith("in/x.png"):
                if change == "vanish":
                    os.unlink(path)
                else:
                    os.truncate(path, 99 if change == "shrink" else 9999)
            return really(path, *rest)

    files.os = System()
