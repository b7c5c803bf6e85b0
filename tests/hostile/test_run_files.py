"""Hostile images and hostile run folders: a failure of a stable kind, or a documented error; the others are done."""

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import vqtok
from tests.faults.test_run import work
from tests.hostile.image_kinds import every
from vqtok.cli import group
from vqtok.dataset.decoding import Decoded, Failure, Recipe, decode_item
from vqtok.dataset.documents import checksum
from vqtok.dataset.exports import export, open_source, read_export
from vqtok.dataset.folder import RunFolder
from vqtok.dataset.items import Item, parse_item
from vqtok.dataset.listing import list_items, parse_list
from vqtok.dataset.numbering import Numbering
from vqtok.dataset.pool import Pool
from vqtok.dataset.tables import Columns
from vqtok.errors import ImageError, InputError, IntegrityError, VqtokError
from vqtok.images import PreprocessSpec, decode
from vqtok.store.canonical import pretty_json


def cases():
    return {f"{i:03}.png": case.data for i, case in enumerate(every()) if len(case.data) < 1 << 20}


@pytest.fixture(scope="module")
def expected():
    found = {}
    for name, data in cases().items():
        try:
            found[name] = decode(data).shape[:2]
        except ImageError as error:
            found[name] = error.kind
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("container", ["folder", "tar"])
def test_each_hostile_image_is_decoded_or_named_by_its_kind(container, workers, expected, tmp_path):
    if container == "folder":
        for name, data in cases().items():
            (tmp_path / name).write_bytes(data)
        items = list(list_items([str(tmp_path)]))
    else:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for name, data in cases().items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        items = list(list_items([str(tmp_path / "x.tar")]))
    with Pool(Recipe(PreprocessSpec(multiple=8)), workers) as pool:
        outcomes = list(pool.decode(items))
    found = {}
    for item, outcome in outcomes:
        name = item.key.rpartition("/")[2]
        found[name] = outcome.kind if isinstance(outcome, Failure) else outcome.arrays[0].shape[:2]
        if isinstance(outcome, Failure):
            assert name in outcome.message
            assert outcome.stage in ("read", "policy", "decode")
    assert found == expected


def test_a_folder_of_them_through_the_command(expected, tmp_path):
    (tmp_path / "in").mkdir()
    for name, data in cases().items():
        (tmp_path / "in" / name).write_bytes(data)
    vqtok.build("photo-f8", vocab_size=16, channels=(8, 8, 8)).save(tmp_path / "m")
    command = [sys.executable, "-m", "vqtok", "tokenize", "in", "-o", "run/", "-m", "m", "--json", "--shard-size", "50"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    folder = RunFolder(tmp_path / "run")
    count = len(folder.manifest().chunks)
    failed = {row["key"]: row["kind"] for i in range(count) for row in folder.read("failures", i)}
    assert failed == {name: kind for name, kind in expected.items() if isinstance(kind, str)}
    keys = [key for i in range(count) for key in folder.tokens(i).keys]
    assert keys == sorted(name for name, kind in expected.items() if not isinstance(kind, str))


def test_odd_names_become_keys_and_nothing_else(tmp_path):
    names = [
        b"a\nb.png",
        b"\xff\xfe.png",
        "ü 🙂.png".encode(),
        b"-rf.png",
        b"a#0.png",
        b"a" * 250 + b".png",
        b"a.b.c.png",
    ]
    for name in names:
        (tmp_path / Path(name.decode("utf-8", "surrogateescape"))).write_bytes(b"")
    items = list(list_items([str(tmp_path)]))
    assert len({item.key for item in items}) == len(names)
    for item in items:
        item.key.encode()
        assert parse_item(item.line().encode()) == item
        outcome = decode_item(item, Recipe(PreprocessSpec()))
        assert isinstance(outcome, Failure)
        assert outcome.kind == "empty"
        assert outcome.message.isprintable()


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "in/a.png").write_bytes(b"x")
    (tmp_path / "in/out.png").symlink_to("../secret.png")
    (tmp_path / "in/inside.png").symlink_to("a.png")
    (tmp_path / "in/loop").symlink_to(".")
    (tmp_path / "in/dangling.png").symlink_to("nothing.png")
    assert [item.key for item in list_items([str(tmp_path / "in")])] == ["a.png", "dangling.png", "inside.png"]


def test_members_of_archives_are_names_and_never_files(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in (
            ("../up.png", None),
            ("/abs.png", None),
            ("l.png", tarfile.LNKTYPE),
            ("d.png", tarfile.CHRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type = kind or tarfile.REGTYPE
            info.size = 0 if kind else 3
            tar.addfile(info, io.BytesIO(b"abc"))
    before = sorted(tmp_path.rglob("*"))
    found = {item.key.partition("x.tar/")[2]: item.refused[:1] for item in list_items([str(tmp_path / "x.tar")])}
    assert found == {"../up.png": (), "/abs.png": (), "l.png": ("unreadable",), "d.png": ("unreadable",)}
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_that_comes_twice_in_an_archive_is_a_failure(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for data in (b"abc", b"abcd"):
            info = tarfile.TarInfo("a.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    first, second = list_items([str(tmp_path / "x.tar")])
    assert (first.size, first.refused) == (3, ())
    assert second.refused[0] == "duplicate"
    assert second.key != first.key


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        (".txt", b"\n\n"),
        (".csv", b"a,b\n1,2\n"),
        (".csv", b"\xff\xfe"),
        (".jsonl", b"[1]\n"),
        (".jsonl", b'{"path": 3}\n'),
        (".jsonl", b"[" * 100_000),
        (".jsonl", b'{"path": "a"\n'),
    ],
)
def test_lists_that_are_none_are_refused(suffix, data):
    with pytest.raises(InputError):
        parse_list(data, suffix, Columns(), "list")


def test_damaged_tables_are_failures_of_their_own(tmp_path):
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(arrow.table({"image": [b"a" * 999, b"b"]}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    for damaged in (b"", b"PAR1", data[:-9], data[:4] + bytes(len(data) - 4), b"x" * 3000):
        (tmp_path / "b.parquet").write_bytes(damaged)
        (item,) = list_items([str(tmp_path / "b.parquet")])
        assert item.refused[0] == "corrupt"


# Run folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    work(path)
    return path


def deep(value=0, levels=200):
    return [deep(value, levels - 1)] if levels else value


CHANGES = {
    "unknown key": lambda x: {**x, "evil": 1},
    "missing key": lambda x: {k: v for k, v in x.items() if k not in ("chunks", "files")},
    "numbers as text": lambda x: {**x, "images": str(x["images"])},
    "true for one": lambda x: {**x, "images": True},
    "negative": lambda x: {**x, "images": -1},
    "list": lambda x: {**x, "settings": []},
    "path for a digest": lambda x: {**x, "chunks": ["../../../etc/passwd"], "plan": "/etc/passwd"},
    "other format": lambda x: {**x, "format": "vqtok.run/9"},
    "null": lambda x: dict.fromkeys(x),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["manifest.json", "shards/00001.json"])
def test_documents_that_lie_with_a_sound_checksum(change, name, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / name
    fields = CHANGES[change]({k: v for k, v in json.loads(path.read_bytes()).items() if k != "sha256"})
    path.write_bytes(pretty_json({**fields, "sha256": checksum(fields)}).encode())
    check(tmp_path / "run", fails=True)


RAW = {
    "empty": b"",
    "zeros": bytes(100),
    "no object": b"[]\n",
    "deep": b"[" * 100_000,
    "twice": b'{"a":1,"a":2}\n',
    "NaN": b'{"a":NaN}\n',
    "text": "größe".encode("latin-1"),
    "BOM": b"\xef\xbb\xbf{}\n",
}


@pytest.mark.parametrize("raw", RAW)
@pytest.mark.parametrize(
    "name",
    ["manifest.json", "plan/00000.jsonl", "shards/00000.json", "shards/00000.vqt", "rows/00000.jsonl", "index.json"],
)
def test_files_that_are_something_else(raw, name, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(RAW[raw])
    check(tmp_path / "run", fails=True)


def check(path, fails):
    for arguments in (["verify"], ["status"], ["merge"], ["convert"]):
        line = [*arguments, str(path)] + (
            [str(path.parent / "x.jsonl"), "--overwrite"] if arguments == ["convert"] else []
        )
        result = CliRunner().invoke(group, line)
        if isinstance(result.exception, SystemExit) or result.exception is None:
            code = result.exit_code
        else:
            assert isinstance(result.exception, VqtokError), (arguments, result.exception)
            code = result.exception.exit_code
        assert code in (0, 3, 4, 6, 7), arguments
        if arguments == ["verify"]:
            assert (code != 0) == fails


ITEMS = [
    b"[]",
    b"{}",
    b'{"key":1,"path":"a"}',
    b'{"key":"a","path":"a","offset":true}',
    b'{"key":"a","path":"a","offset":-2}',
    b'{"key":"a","path":"a","refused":["x"]}',
    b'{"key":"a","path":"a","about":[]}',
    b'{"key":"a","path":"a","x":1}',
    b"[" * 10_000,
    b"\xff",
]


@pytest.mark.parametrize("line", ITEMS)
def test_items_that_are_none(line):
    with pytest.raises(IntegrityError):
        parse_item(line)


def test_a_sidecar_names_no_file_elsewhere(run, tmp_path):
    export(open_source(str(run)), tmp_path / "x.bin", "bin", Numbering())
    path = tmp_path / "x.bin.json"
    fields = {k: v for k, v in json.loads(path.read_bytes()).items() if k != "sha256"}
    fields["files"]["../x.bin"] = fields["files"].pop("x.bin")
    path.write_bytes(pretty_json({**fields, "sha256": checksum(fields)}).encode())
    with pytest.raises(IntegrityError, match="plain file names"):
        list(read_export(tmp_path / "x.bin"))


def test_pixels_from_workers_are_whole(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    from PIL import Image

    Image.fromarray(array).save(tmp_path / "a.png")
    with Pool(Recipe(PreprocessSpec()), 1) as pool:
        ((_, outcome),) = pool.decode([Item("a", str(tmp_path / "a.png"))])
    assert isinstance(outcome, Decoded)
    np.testing.assert_array_equal(outcome.arrays[0], array)
