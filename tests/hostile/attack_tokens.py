"""37 to 62: token files, arrays, archives and tables."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterator

import numpy as np

from tests.hostile import test_model_folders as folders
from tests.hostile import test_token_files as token_files
from tests.hostile.attack import IMAGES, REFUSED, Attack, good_png, tar_of

_READERS = (
    ("verify", "bad.vqt"),
    ("inspect", "bad.vqt"),
    ("convert", "bad.vqt", "x.jsonl"),
    ("detokenize", "bad.vqt", "-o", "out", "-m", "{m}"),
)


def token_file(kind: int, name: str, data: bytes, number: int, codes: frozenset[int] = frozenset({6})) -> Attack:
    return Attack(kind, f"{kind}-{name}", _READERS[number % 4], codes, {"bad.vqt": data}, "load_tokens", "bad.vqt")


def listed_token_files() -> Iterator[Attack]:
    for number, (name, data) in enumerate(token_files.KINDS.items()):
        first = name.partition("_")[0]
        yield token_file(int(first) if first.isdigit() else 59, name, data, number)
    for number, version in enumerate(["2", "0", "abc", "", "1.1"]):
        data = token_files.build(*token_files.valid(), version=version)
        yield token_file(61, f"version-{number}", data, number, frozenset({7}))
    strangers = {"codebook": "", "model": "ab" * 32, "preprocess": ""}
    data = token_files.changed(token_files.say(fingerprints=strangers))
    yield Attack(62, "62-another-model", _READERS[3], frozenset({7}), {"bad.vqt": data})


def seeded_token_files(seed: int) -> Iterator[Attack]:
    """Flips, cuts and splices of a sound file: four a seed."""
    rng, good = np.random.default_rng(seed), token_files.GOOD
    flipped = bytearray(good)
    flipped[rng.integers(len(good))] ^= 1 << int(rng.integers(8))
    yield token_file(58, f"{seed}-flip", bytes(flipped), seed)
    yield token_file(38, f"{seed}-cut", good[: int(rng.integers(len(good)))], seed + 1)
    first, last = sorted(int(x) for x in rng.integers(0, len(good), 2))
    yield token_file(51, f"{seed}-doubled", good[:last] + good[min(first, last - 1) :], seed + 2)
    yield token_file(43, f"{seed}-noise", struct.pack("<Q", 64) + rng.bytes(len(good)), seed + 3)


def arrays() -> Iterator[Attack]:
    """62: what other programs' token files may hold."""
    npy = io.BytesIO()
    np.save(npy, np.array([{"a": 1}], object))
    sound = io.BytesIO()
    np.save(sound, np.arange(16)[None])
    header = b"\x93NUMPY\x01\0" + struct.pack("<H", 118)
    huge = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117) + b"\n"
    files = {
        "object": npy.getvalue(),
        "pickle": pickle.dumps(folders.Bomb()),
        "huge": header + huge,
        "code": header + b"__import__('os').system('touch BOMB')".ljust(117) + b"\n",
        "empty": b"",
        "large-ids": sound.getvalue()[:-8] + struct.pack("<q", 1 << 40),
        "negative-ids": sound.getvalue()[:-8] + struct.pack("<q", -1),
        **{f"cut-{at}": sound.getvalue()[:at] for at in (1, 8, 20, 127, 200)},
    }
    for name, data in files.items():
        line = ("convert", "bad.npy", "out", "--vocab-size", "64")
        yield Attack(62, f"62-npy-{name}", line, REFUSED, {"bad.npy": data}, "read_foreign", "bad.npy")
    bomb, pickled = io.BytesIO(), io.BytesIO()
    for file, content in ((bomb, bytes(300 << 20)), (pickled, pickle.dumps(folders.Bomb()))):
        entry = zipfile.ZipInfo("tokens.npy")
        entry.compress_type = zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(entry, content)
    for name, data in {"bomb": bomb.getvalue(), "pickle": pickled.getvalue(), "object": npy.getvalue()}.items():
        line = ("convert", "bad.npz", "out", "--vocab-size", "64")
        yield Attack(62, f"62-npz-{name}", line, REFUSED, {"bad.npz": data}, "read_foreign", "bad.npz")
    lines = {
        "no": b"x",
        "list": b"[]\n",
        "deep": b"[" * 99_999,
        "big": b'{"tokens":[1e400]}\n',
        "neg": b'{"tokens":[-1]}\n',
    }
    for name, data in {**lines, "text": b'{"tokens":"ab"}\n', "utf": b"\xff\xfe", "null": b'{"tokens":null}\n'}.items():
        line = ("convert", "bad.jsonl", "x.vqt", "--vocab-size", "64")
        yield Attack(62, f"62-jsonl-{name}", line, REFUSED, {"bad.jsonl": data}, "read_foreign", "bad.jsonl")


def archives() -> Iterator[Attack]:
    """62: tars and parquet files of images, beside a folder with a sound one."""
    strange = {
        "up": ("../up.png", tarfile.REGTYPE),
        "absolute": ("/abs.png", tarfile.REGTYPE),
        "hard-link": ("l.png", tarfile.LNKTYPE),
        "soft-link": ("s.png", tarfile.SYMTYPE),
        "device": ("d.png", tarfile.CHRTYPE),
        "fifo": ("f.png", tarfile.FIFOTYPE),
        "twice": ("good.png", tarfile.REGTYPE),
        "sparse": ("h.png", tarfile.GNUTYPE_SPARSE),
    }
    line = ("tokenize", "x.tar", "in", "-o", "run/", "-m", "{m}", "--json", "--workers", "0")
    for name, (member, type) in strange.items():
        yield Attack(62, f"62-tar-{name}", line, IMAGES, {"x.tar": tar_of(member, type)}, "list_items", "x.tar")
    sound = tar_of("b.png", tarfile.REGTYPE)
    for cut in (1, 511, 513, 700, 1024, 1100, 1537, 2000):
        codes = IMAGES | {4}
        yield Attack(62, f"62-tar-cut-{cut}", line, codes, {"x.tar": sound[:cut]}, "list_items", "x.tar")
    for seed in range(20):
        data, rng = bytearray(sound), np.random.default_rng(seed)
        data[int(rng.integers(1024, 1536))] ^= 1 << int(rng.integers(8))
        yield Attack(62, f"62-tar-flip-{seed}", line, IMAGES | {4}, {"x.tar": bytes(data)}, "list_items", "x.tar")
    claimed = tarfile.TarInfo("big.png")
    claimed.size = 2 << 30
    data = sound[:1536] + claimed.tobuf() + bytes(4096)
    yield Attack(62, "62-tar-2-GiB", line, IMAGES, {"x.tar": data}, "list_items", "x.tar")
    import pyarrow as arrow
    from pyarrow import parquet

    sink = io.BytesIO()
    rng = np.random.default_rng(0)
    table = arrow.table(
        {"image": [good_png(), *(rng.bytes(3000) for _ in range(3))], "key": ["good.png", "b", "c", "d"]}
    )
    parquet.write_table(table, sink, write_page_checksum=True)
    whole = sink.getvalue()
    line = ("tokenize", "x.parquet", "in", "-o", "run/", "-m", "{m}", "--json", "--workers", "0", "--key-col", "key")
    for seed in range(24):
        data, at = bytearray(whole), np.random.default_rng(seed).integers(4, len(whole))
        data[at] ^= 0x20
        files = {"x.parquet": bytes(data) if seed % 3 else whole[:at]}
        yield Attack(62, f"62-parquet-{seed}", line, IMAGES | {4}, files, "list_items", "x.parquet")
