"""Images in object stores: the same shards as from a folder, and what a store refuses is a failure of a known kind."""

import io
import sys
import tarfile

import numpy as np
import pytest

from tests.laws.test_dataset import all_tokens, photos, tiny, tokenize  # noqa: F401
from vqtok.cli import group
from vqtok.dataset import remote
from vqtok.dataset.decoding import Decoded, Recipe, decode_item
from vqtok.dataset.items import Item
from vqtok.dataset.listing import list_items
from vqtok.errors import ConfigError, InputError, ResourceError
from vqtok.images import Limits, PreprocessSpec

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def bucket(photos):  # noqa: F811
    """The photos in a store in memory."""
    system = fsspec.filesystem("memory")
    for path in photos.rglob("*.png"):
        system.pipe(f"/bucket/in/{path.relative_to(photos)}", path.read_bytes())
    system.pipe("/bucket/in/notes.txt.bak", b"no image")
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


def shards(folder):
    return {
        f"{name}/{p.name}": p.read_bytes()
        for name in ("shards", "ties", "failures")
        for p in (folder.path / name).iterdir()
        if p.suffix != ".json"  # records name the plan, and so where images lie
    }


def test_a_folder_in_a_store_gives_the_shards_of_a_folder(bucket, tiny, photos, tmp_path):  # noqa: F811
    here = tokenize(tiny, [photos], tmp_path / "here")
    there = tokenize(tiny, [f"{bucket}/in"], tmp_path / "there")
    assert shards(there) == shards(here)
    assert there.manifest().job() == here.manifest().job()
    again = tokenize(tiny, [f"{bucket}/in/"], tmp_path / "there")
    assert shards(again) == shards(here)


def test_worker_processes_read_addresses(tiny, photos, tmp_path):  # noqa: F811
    here = tokenize(tiny, [photos], tmp_path / "here")
    there = tokenize(tiny, [f"file://{photos}"], tmp_path / "there", workers=1)
    assert shards(there) == shards(here)


def test_patterns_single_images_and_lists(bucket, tiny, photos, tmp_path):  # noqa: F811
    found = [item.path for item in list_items([f"{bucket}/in/0*.png"])]
    assert found == sorted(f"memory:///bucket/in/{p.name}" for p in photos.glob("0*.png"))
    (one,) = list_items([f"{bucket}/in/flat.png"])
    assert one.key == "memory://bucket/in/flat.png"
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/list.csv", b"path,label\nmemory://bucket/in/flat.png,3\nmemory://bucket/in/01.png,4\n")
    items = list(list_items([f"{bucket}/list.csv"]))
    assert [item.about["label"] for item in items] == ["4", "3"]
    assert all(isinstance(decode_item(item, Recipe(PreprocessSpec(multiple=8))), Decoded) for item in items)


def test_tars_in_a_store_are_read_by_range(bucket, tiny, photos, tmp_path):  # noqa: F811
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(photos.rglob("*.png")):
            tar.add(path, path.name)
    for name in ("00", "01"):
        fsspec.filesystem("memory").pipe(f"/bucket/x-{name}.tar", buffer.getvalue())
    (tmp_path / "x-00.tar").write_bytes(buffer.getvalue())
    here = all_tokens(tokenize(tiny, [tmp_path / "x-00.tar"], tmp_path / "here"))
    there = all_tokens(tokenize(tiny, [f"{bucket}/x-{{00..01}}.tar"], tmp_path / "there"))
    assert len(there) == 2 * len(here)
    np.testing.assert_array_equal(there[: len(here)].ids, here.ids)
    np.testing.assert_array_equal(there[len(here) :].ids, here.ids)


class Store:
    """A store that fails as it is told."""

    def __init__(self, error=None, data=b"", size=0):
        self.error, self.data, self.size = error, data, size

    def _strip_protocol(self, url):
        return url.partition("://")[2]

    def info(self, path):
        return {"size": self.size}

    def cat_file(self, path, start=None, end=None):
        if self.error:
            raise self.error
        return self.data


@pytest.mark.parametrize(
    ("store", "kind"),
    [
        (Store(FileNotFoundError("x")), "missing"),
        (Store(PermissionError("no")), "unreadable"),
        (Store(RuntimeError("a\x1b[2J\nb" * 99)), "unreadable"),
        (Store(data=b"abc", size=4), "truncated"),
        (Store(data=b"abc", size=1 << 40), "too_large"),
        (Store(data=b"abc", size=3), "format"),
    ],
)
@pytest.mark.parametrize("item", [Item("k", "s3://b/k.png"), Item("k", "s3://b/x.tar", 512, 4)], ids=["file", "member"])
def test_what_a_store_refuses_is_a_failure_of_a_known_kind(store, kind, item, monkeypatch):
    monkeypatch.setattr(remote, "file_system", lambda url: store)
    if item.offset >= 0 and kind in ("too_large", "format"):
        kind = "truncated"
    outcome = decode_item(item, Recipe(PreprocessSpec(), limits=Limits(max_bytes=1 << 20)))
    assert (outcome.kind, outcome.key) == (kind, "k")
    assert outcome.message.isprintable()
    assert len(outcome.message) < 400


def test_a_member_beyond_the_limit_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(remote, "file_system", lambda url: Store(AssertionError("asked")))
    item = Item("k", "s3://b/x.tar", 512, 1 << 30)
    assert decode_item(item, Recipe(PreprocessSpec(), limits=Limits(max_bytes=99))).kind == "too_large"


@pytest.mark.parametrize("url", ["zip://a.png::s3://b/x.zip", "ssh://h/x", "s3://b::c://d", "git://x/y.png"])
def test_other_protocols_and_chains_are_refused(url, tmp_path):
    (tmp_path / "l.txt").write_text(f"{url}\n")
    for argument in (url, str(tmp_path / "l.txt")):
        with pytest.raises(ConfigError, match="expected one of s3://"):
            list(list_items([argument]))


def test_a_chain_that_begins_without_a_protocol_is_a_local_name():
    (item,) = list_items(["simplecache::s3://b/x.png"])
    assert decode_item(item, Recipe(PreprocessSpec())).kind == "missing"


def test_nothing_there_is_an_error(bucket):
    for name in ("gone", "gone/*.png", "gone.tar", "gone.txt"):
        with pytest.raises(InputError, match="found none there"):
            list(list_items([f"{bucket}/{name}"]))
    fsspec.filesystem("memory").pipe("/bucket/x.parquet", b"PAR1")
    with pytest.raises(ConfigError, match="fetch it"):
        list(list_items([f"{bucket}/x.parquet"]))


def test_what_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    remote._file_system.cache_clear()
    (tmp_path / "l.txt").write_text("s3://b/a.png\n")
    for argument in ("s3://b/a.png", str(tmp_path / "l.txt")):
        with pytest.raises(ResourceError, match=r"pip install 'vqtok\[fsspec\]'"):
            list(list_items([argument]))


def test_no_run_is_written_to_a_store():
    with pytest.raises(ConfigError, match="local folder"):
        group(["tokenize", "in", "-o", "s3://b/run/"], standalone_mode=False)
