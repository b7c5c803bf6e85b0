"""Lists, archives, tables and addresses into one token file."""

import tarfile

import numpy as np
import pytest
from click.testing import CliRunner

import vqtok
from tests.laws.test_dataset import photos, tiny  # noqa: F401
from vqtok.cli import group


def tar_of(place, photos):  # noqa: F811
    with tarfile.open(place / "x.tar", "w") as tar:
        for path in photos.rglob("*.png"):
            tar.add(path, path.name)
    return "x.tar"


def list_of(place, photos):  # noqa: F811
    (place / "x.txt").write_text("".join(f"{path}\n" for path in photos.rglob("*.png")))
    return "x.txt"


def table_of(place, photos):  # noqa: F811
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"image": {"bytes": path.read_bytes(), "path": path.name}} for path in photos.rglob("*.png")]
    parquet.write_table(arrow.Table.from_pylist(rows), place / "x.parquet")
    return "x.parquet"


def address_of(place, photos):  # noqa: F811
    fsspec = pytest.importorskip("fsspec")
    for path in photos.rglob("*.png"):
        fsspec.filesystem("memory").pipe(f"/single/{path.name}", path.read_bytes())
    return "memory://single"


@pytest.mark.parametrize("container", [tar_of, list_of, table_of, address_of])
def test_what_holds_several_images_gives_one_token_file(container, tiny, photos, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    tiny.save("m")
    source = container(tmp_path, photos)
    result = CliRunner().invoke(group, ["tokenize", source, "-o", "x.vqt", "-m", "m", "--json"])
    assert type(result.exception).__name__ == "TooManyFailures", "grey.png is empty, the others are done"
    assert "grey.png" in result.output
    found = {row.keys[0].rpartition("/")[2]: row.ids for row in vqtok.load_tokens("x.vqt")}
    names = {path.name: path for path in photos.rglob("*.png") if path.name != "grey.png"}
    assert found.keys() == names.keys()
    for name, ids in found.items():
        np.testing.assert_array_equal(ids, tiny.tokenize(names[name]).ids)


def test_a_damaged_archive_names_what_is_lost(tiny, photos, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    tiny.save("m")
    (tmp_path / tar_of(tmp_path, photos)).write_bytes((tmp_path / "x.tar").read_bytes()[:4000])
    result = CliRunner().invoke(group, ["tokenize", "x.tar", "-o", "x.vqt", "-m", "m", "--json"])
    assert result.exception.exit_code == 3
    assert '"truncated"' in result.output
