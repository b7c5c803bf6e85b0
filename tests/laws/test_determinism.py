"""The determinism matrix: tokens of a run over batch size, threads, containers and surroundings, family by family.

Cells for order, neighbours, workers, ranks, shard size and interruptions are in test_dataset.py.
"""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vqtok
from tests.laws.test_dataset import all_tokens, assert_equal, tokenize
from vqtok.dataset.folder import RunFolder
from vqtok.dataset.tables import Columns

FAMILIES = {
    "vq-vae": lambda: vqtok.build("photo-f8", vocab_size=64, channels=(8, 8, 16)),
    "vqgan": lambda: vqtok.build("vqgan-tiny"),
    "vit-vqgan": lambda: vqtok.build("vit-vqgan-tiny"),
    "vq-vae-2": lambda: vqtok.build("vqvae2-tiny"),
    "dynamic": lambda: vqtok.build("dynamic-tiny"),
}
SIDE = 32


def arrays():
    """Flat, striped, sloping and noisy pictures, uint8 [32, 32, 3], with some of one pixel or odd sides."""
    rng = np.random.default_rng(0)
    flat = [np.full((SIDE, SIDE, 3), level, np.uint8) for level in (0, 128, 255)]
    places = np.indices((SIDE, SIDE)).sum(0)
    board = np.repeat((places % 2 * 255).astype(np.uint8)[..., None], 3, 2)
    slope = np.repeat((places * 4).astype(np.uint8)[..., None], 3, 2)
    noise = [rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(8)]
    coarse = [np.asarray(Image.fromarray(x[:4, :4]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for x in noise[:4]]
    return [*flat, board, slope, *noise, *coarse]


def odd_sizes():
    return [np.full((1, 1, 3), 90, np.uint8), arrays()[5][:17, :23], arrays()[6][:9], arrays()[7][:, :30]]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    torch.manual_seed(0)
    return FAMILIES[request.param]().eval()


@pytest.fixture(scope="module")
def golden(model, photos, tmp_path_factory):
    return all_tokens(tokenize(model, [photos], tmp_path_factory.mktemp("golden") / "run", shard_size=99))


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files():
    return {f"{i:02d}.png": png(array) for i, array in enumerate([*arrays(), *odd_sizes()])}


@pytest.fixture(scope="module")
def photos(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("photos")
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def fits(model, array):
    """Tell whether a model takes an image of that size."""
    try:
        model.tokenize(array)
    except vqtok.errors.VqtokError:
        return False
    return True


@pytest.fixture(scope="module")
def alone(model):
    """Some of the images a model takes, each tokenized by itself."""
    taken = [array for array in [*odd_sizes(), *arrays()[2:9]] if fits(model, array)]
    assert len(taken) >= 7
    return [(array, model.tokenize(array)) for array in taken]


@pytest.mark.parametrize("size", [2, 3, 7, 64])
def test_the_callers_batch_changes_no_token(size, model, alone):
    for start in range(0, len(alone), size):
        part = alone[start : start + size]
        together = model.tokenize([array for array, _ in part])
        for row, (_, expected) in zip(together, part, strict=True):
            np.testing.assert_array_equal(row.ids, expected.ids)
            np.testing.assert_array_equal(row.keep, expected.keep)


def with_threads(count, work):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return work()
    finally:
        torch.set_num_threads(before)


def test_exact_runs_are_equal_bytes_with_any_number_of_threads(model, photos, tmp_path):
    runs = [
        with_threads(n, lambda n=n: tokenize(model, [photos], tmp_path / f"{n}", repro="exact", shard_size=9))
        for n in (1, 2)
    ]
    first = shard_files(runs[0])
    assert all(shard_files(run) == first for run in runs[1:])


def test_stable_runs_differ_over_threads_at_near_ties_only(model, photos, tmp_path):
    one, two = (
        with_threads(n, lambda n=n: tokenize(model, [photos], tmp_path / f"{n}", shard_size=99)) for n in (1, 2)
    )
    ties, before, now = one.ties(0), one.tokens(0), two.tokens(0)
    assert before.keys == now.keys
    for row, again in zip(before, now, strict=True):
        differing = set() if row.ids.shape != again.ids.shape else {*np.flatnonzero(row.ids != again.ids).tolist()}
        assert differing <= {*(ties.places.get(row.keys[0], ()) if ties else ())}


def shard_files(folder):
    return {p.name: p.read_bytes() for name in ("shards", "ties", "failures") for p in (folder.path / name).iterdir()}


def in_tar(place, files):
    with tarfile.open(place / "x.tar", "w") as tar:
        for name, data in sorted(files.items(), reverse=True):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return place / "x.tar", {}


def in_parquet(place, files):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"image": [*files.values()], "name": [*files]})
    parquet.write_table(table, place / "x.parquet", row_group_size=5)
    return place / "x.parquet", {"columns": Columns(key="name")}


def in_arrow(place, files):
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"image": [*files.values()], "name": [*files]})
    with arrow.OSFile(str(place / "x.arrow"), "wb") as sink, arrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    return place / "x.arrow", {"columns": Columns(key="name")}


def in_list(place, files):
    for number, (name, data) in enumerate(files.items()):
        (place / f"{number}.dat").write_bytes(data)
        files = {**files, name: data}
    lines = [f"{place / f'{number}.dat'},{name}" for number, name in enumerate(files)]
    (place / "x.csv").write_text("path,name\n" + "\n".join(reversed(lines)) + "\n")
    return place / "x.csv", {"columns": Columns(key="name")}


def in_bitmaps(place, files):
    (place / "in").mkdir()
    for name, data in files.items():
        Image.open(io.BytesIO(data)).save(place / "in" / f"{name[:-4]}.bmp")
    return place / "in", {}


def in_webp(place, files):
    (place / "in").mkdir()
    for name, data in files.items():
        Image.open(io.BytesIO(data)).save(place / "in" / f"{name[:-4]}.webp", lossless=True, exact=True)
    return place / "in", {}


@pytest.mark.parametrize("container", [in_tar, in_parquet, in_arrow, in_list, in_bitmaps, in_webp])
def test_containers_of_equal_pixels_give_equal_tokens(container, model, golden, files, tmp_path):
    expected = {row.keys[0][:-4]: row for row in golden}
    (tmp_path / "other").mkdir()
    source, options = container(tmp_path / "other", files)
    found = {
        row.keys[0].rpartition("/")[2].rpartition(".")[0]: row
        for row in all_tokens(tokenize(model, [source], tmp_path / "run", shard_size=6, **options))
    }
    assert found.keys() == expected.keys()
    for name, row in found.items():
        np.testing.assert_array_equal(row.ids, expected[name].ids)
        np.testing.assert_array_equal(row.keep, expected[name].keep)


SURROUNDINGS = {
    "C": {"PYTHONHASHSEED": "0", "LC_ALL": "C", "LANG": "C", "TZ": "Pacific/Kiritimati"},
    "Turkey": {"PYTHONHASHSEED": "1", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"},
    "threads": {
        "OMP_NUM_THREADS": "2",
        "MKL_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "2",
        "PYTHONHASHSEED": "random",
    },
    "OpenMP": {"OMP_SCHEDULE": "dynamic", "OMP_DYNAMIC": "true", "OMP_PROC_BIND": "true", "LC_ALL": "xx_XX.KOI9"},
    "nowhere": {"HOME": "/nowhere", "TMPDIR": "/nowhere", "XDG_CACHE_HOME": "/nowhere", "PYTHONIOENCODING": "latin-1"},
}

_WORK = """
import os, sys
os.umask(int(sys.argv[1], 8))
os.chdir(sys.argv[2])
sys.argv = ["vqtok", *sys.argv[3:]]
from vqtok.cli import main
main()
"""


@pytest.fixture(scope="module")
def place(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("place")
    (path / "in/ü").mkdir(parents=True)
    for number, (name, data) in enumerate(files.items()):
        (path / "in" / ("ü" if number % 3 else "") / name).write_bytes(data)
    torch.manual_seed(0)
    vqtok.build("vqgan-tiny").save(path / "m")
    run(path, path / "whole")
    return path


def run(place, target, env=None, umask="022", cwd=None):
    line = ["tokenize", str(place / "in"), "-o", f"{target}/", "-m", str(place / "m"), "--repro", "exact"]
    command = [sys.executable, "-c", _WORK, umask, str(cwd or place), *line, "--shard-size", "8", "--workers", "1"]
    done = subprocess.run(command, env={**os.environ, **(env or {})}, capture_output=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return RunFolder(target)


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_surroundings_change_no_byte(name, place, tmp_path):
    folder = run(place, tmp_path / "run", SURROUNDINGS[name])
    assert shard_files(folder) == shard_files(RunFolder(place / "whole"))
    assert (folder.path / "manifest.json").read_bytes() == (place / "whole/manifest.json").read_bytes()


def test_another_encoding_of_file_names_changes_no_token(place, tmp_path):
    """Plans hold paths as Python spells them, and records name their plan: those differ, what is in shards does not."""
    folder = run(place, tmp_path / "run", {"PYTHONUTF8": "0", "LC_ALL": "xx_XX.UTF-8", "PYTHONCOERCECLOCALE": "0"})
    whole = RunFolder(place / "whole")
    assert {p.name: p.read_bytes() for p in (folder.path / "shards").glob("*.vqt")} == {
        p.name: p.read_bytes() for p in (whole.path / "shards").glob("*.vqt")
    }
    assert folder.manifest().job() == whole.manifest().job()


def test_umask_and_folder_change_no_byte_and_the_umask_is_obeyed(place, tmp_path):
    folder = run(place, tmp_path / "run", umask="077", cwd=tmp_path)
    assert shard_files(folder) == shard_files(RunFolder(place / "whole"))
    assert {p.stat().st_mode & 0o777 for p in folder.path.rglob("*.vqt")} == {0o600}


def test_what_is_compared_is_not_one_code_over_and_over(place):
    tokens = all_tokens(RunFolder(place / "whole"))
    assert len(np.unique(tokens.ids)) > 5
    assert len(tokens) == len(arrays()) + len(odd_sizes())
    assert_equal(tokens, tokens)
    assert Path(place / "whole/index.json").exists()
