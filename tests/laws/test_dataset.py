"""The shards of a run depend on the job alone: the determinism matrix, crops, containers, and what travels along."""

import io
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vqtok
from tests.faults.test_run import settings
from vqtok.dataset import pool as pool_module
from vqtok.dataset.checking import Comparison, check_all
from vqtok.dataset.crops import Box, boxes, cut, views
from vqtok.dataset.decoding import Decoded, Failure, Recipe, decode_item
from vqtok.dataset.documents import Settings
from vqtok.dataset.encoding import execution_of, settings_of
from vqtok.dataset.engine import Share, missing_shards, run
from vqtok.dataset.folder import RunFolder
from vqtok.dataset.items import Item
from vqtok.dataset.planning import Request, prepare
from vqtok.dataset.pool import Pool
from vqtok.dataset.repairing import merge_runs, retry_failed, to_retry
from vqtok.dataset.tables import Columns
from vqtok.errors import ConfigError, MismatchError
from vqtok.images import PreprocessSpec
from vqtok.store import mapping_fingerprint
from vqtok.types import concatenate

WHOLE = Share()
SIZES = [(16, 24), (24, 16), (16, 24), (8, 8), (33, 17)]


def picture(i, size):
    rng = np.random.default_rng(i)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return vqtok.build("photo-f8", vocab_size=64, channels=(8, 8, 16)).eval()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos")
    (path / "sub").mkdir()
    for i in range(11):
        picture(i, SIZES[i % len(SIZES)]).save(path / ("sub" if i % 3 == 0 else "") / f"{i:02d}.png")
    (path / "grey.png").write_bytes(b"")
    Image.new("RGB", (16, 16), (128, 128, 128)).save(path / "flat.png")
    return path


def tokenize(model, inputs, target, *, share=WHOLE, workers=0, limit=None, extend=False, repro="stable", **options):
    shard_size = options.pop("shard_size", 4)
    columns = options.pop("columns", Columns())
    recipe = Recipe(model.spec, columns=columns, **options)
    job = settings_of(model, recipe, repro, shard_size)
    request = Request(tuple(map(str, inputs)), columns, job, "", execution_of(model, repro), "test")
    folder = RunFolder(target)
    with folder.locked(share.rank, share.world_size):
        manifest = prepare(folder, request, extend=extend)
        run(folder, manifest, model, recipe, missing_shards(folder, manifest, share)[:limit], workers=workers)
    return folder


def files(folder):
    return {
        str(p.relative_to(folder.path)): p.read_bytes()
        for p in folder.path.rglob("*")
        if p.is_file() and not p.name.startswith("LOCK")
    }


def all_tokens(folder):
    manifest = folder.manifest()
    assert check_all(folder, manifest).problems == []
    return concatenate([folder.tokens(i) for i in range(len(manifest.chunks))])


def assert_equal(a, b):
    assert a.keys == b.keys
    for name in ("ids", "offsets", "grids", "sizes"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.fixture(scope="module")
def golden(tiny, photos, tmp_path_factory):
    return tokenize(tiny, [photos], tmp_path_factory.mktemp("golden") / "run")


def test_every_image_is_there_once_in_order_with_the_tokens_that_tokenize_gives(tiny, photos, golden):
    tokens = all_tokens(golden)
    paths = sorted(photos.rglob("*.png"), key=lambda p: os.fsencode(p.relative_to(photos)))
    names = [str(p.relative_to(photos)) for p in paths]
    assert list(tokens.keys) == [name for name in names if name != "grey.png"]
    direct = tiny.tokenize([p for p in paths if p.name != "grey.png"])
    np.testing.assert_array_equal(tokens.ids, direct.ids)
    np.testing.assert_array_equal(tokens.sizes, direct.sizes)
    failures = [row for i in range(4) for row in golden.read("failures", i)]
    assert [(row["key"], row["kind"], row["stage"]) for row in failures] == [("grey.png", "empty", "read")]


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(workers, tiny, photos, golden, tmp_path):
    assert files(tokenize(tiny, [photos], tmp_path / "run", workers=workers)) == files(golden)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_change_nothing(world_size, tiny, photos, golden, tmp_path):
    for rank in reversed(range(world_size)):
        folder = tokenize(tiny, [photos], tmp_path / "run", share=Share(rank, world_size))
    assert files(folder) == files(golden)


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_interruptions_change_nothing(done, tiny, photos, golden, tmp_path):
    tokenize(tiny, [photos], tmp_path / "run", limit=done)
    assert len([name for name in files(RunFolder(tmp_path / "run")) if name.endswith(".vqt")]) == done
    assert files(tokenize(tiny, [photos], tmp_path / "run")) == files(golden)


@pytest.mark.parametrize("shard_size", [1, 7, 100])
def test_shard_sizes_change_no_token(shard_size, tiny, photos, golden, tmp_path):
    folder = tokenize(tiny, [photos], tmp_path / "run", shard_size=shard_size)
    assert len(folder.manifest().chunks) == -(-13 // shard_size)
    assert_equal(all_tokens(folder), all_tokens(golden))


def test_order_neighbours_and_place_change_no_token(tiny, photos, golden, tmp_path):
    tokens = all_tokens(golden)
    by_key = {row.keys[0]: row.ids for row in tokens}
    copy = tmp_path / "elsewhere"
    shutil.copytree(photos, copy)
    for number, name in enumerate(["flat.png", "05.png", "01.png"]):
        (copy / name).rename(copy / f"zz{number}-{name}")
    for path in sorted(copy.glob("0*.png"))[::2]:
        path.unlink()
    for row in all_tokens(tokenize(tiny, [copy], tmp_path / "run", shard_size=3)):
        np.testing.assert_array_equal(row.ids, by_key[row.keys[0].split("-")[-1]])


def test_containers_with_equal_pixels_give_equal_tokens(tiny, photos, golden, tmp_path):
    expected = {row.keys[0].split("/")[-1][:-4]: row.ids for row in all_tokens(golden)}
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for path in photos.rglob("*.png"):
            tar.add(path, path.name)
    for suffix in ("bmp", "webp"):
        (tmp_path / suffix).mkdir()
        for path in photos.rglob("*.png"):
            if path.stat().st_size:
                Image.open(path).save(tmp_path / suffix / f"{path.stem}.{suffix}", lossless=True)
    for name in ("all.tar", "bmp", "webp"):
        tokens = all_tokens(tokenize(tiny, [tmp_path / name], tmp_path / f"run-{name}"))
        found = {row.keys[0].split("/")[-1].rpartition(".")[0]: row.ids for row in tokens}
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[key], expected[key]) for key in expected), name


def test_exact_does_not_depend_on_threads_and_goes_on_only_where_it_began(tiny, photos, golden, tmp_path):
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            runs.append(files(tokenize(tiny, [photos], tmp_path / f"{threads}", repro="exact")))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert runs[0] == runs[1]
    folder = RunFolder(tmp_path / "1")
    manifest = folder.manifest()
    assert manifest.execution["threads"] == 1
    folder.commit_manifest(
        manifest.model_copy(update={"execution": {**manifest.execution, "torch": "1.0"}}), overwrite=True
    )
    with pytest.raises(MismatchError, match="torch"):
        tokenize(tiny, [photos], tmp_path / "1", repro="exact")


def test_another_job_is_refused_and_named_and_nothing_is_written(tiny, photos, golden, tmp_path):
    shutil.copytree(golden.path, tmp_path / "run")
    torch.manual_seed(1)
    other = vqtok.build("photo-f8", vocab_size=64, channels=(8, 8, 16)).eval()
    cases = {
        "model": {"model": other},
        "shard_size 4 -> 5": {"shard_size": 5},
        "source_hash": {"source_hash": False},
        "crop none -> ten": {"crop": "ten", "size": 16},
        "images 13": {"inputs": [photos / "sub"]},
        "repro": {"repro": "exact"},
    }
    for words, change in cases.items():
        options = {"model": tiny, "inputs": [photos], **change}
        with pytest.raises(MismatchError, match=words):
            tokenize(options.pop("model"), options.pop("inputs"), tmp_path / "run", **options)
    assert files(RunFolder(tmp_path / "run")) == files(golden)


def test_a_setting_at_its_default_changes_no_older_job():
    """What a later version adds leaves the fingerprints of runs that were made before as they are."""
    fields = settings().model_dump(mode="json")
    assert "tile" not in fields
    assert settings().fingerprint() == mapping_fingerprint(fields)
    assert Settings.model_validate(fields) == settings()
    assert settings(tile=8).fingerprint() != settings().fingerprint()
    assert Settings.model_validate(settings(tile=8).model_dump(mode="json")).tile == 8


def test_extending_adds_shards_and_leaves_the_others(tiny, photos, golden, tmp_path):
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    first = tokenize(tiny, [copy], tmp_path / "run")
    before = {name: data for name, data in files(first).items() if name.startswith(("shards", "plan"))}
    picture(99, (24, 24)).save(copy / "00new.png")
    folder = tokenize(tiny, [copy], tmp_path / "run", extend=True)
    after = files(folder)
    assert all(after[name] == data for name, data in before.items())
    tokens = all_tokens(folder)
    assert tokens.keys[-1] == "00new.png"
    np.testing.assert_array_equal(tokens[len(tokens) - 1].ids, tiny.tokenize(copy / "00new.png").ids)
    assert files(tokenize(tiny, [copy], tmp_path / "run", extend=True)) == after


def test_trying_failed_images_again_gives_what_a_fresh_run_gives(tiny, photos, tmp_path):
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    folder = tokenize(tiny, [copy], tmp_path / "run", crop="ten", size=16)
    manifest = folder.manifest()
    picture(7, (40, 24)).save(copy / "grey.png")
    recipe = Recipe(tiny.spec, "ten", 16)
    from vqtok.dataset.encoding import encode_shard

    numbers = to_retry(folder, manifest, "failed")
    with Pool(recipe, 0) as pool, folder.locked():
        for number in numbers:
            retry_failed(folder, manifest, number, pool.decode, lambda x: encode_shard(tiny, x, manifest.settings))
        folder.commit_index(manifest)
    assert len(numbers) == 1
    assert files(folder) == files(tokenize(tiny, [copy], tmp_path / "fresh", crop="ten", size=16))


def test_merging_ranks_and_merging_runs(tiny, photos, golden, tmp_path):
    parts = [tokenize(tiny, [photos], tmp_path / f"{rank}", share=Share(rank, 2)) for rank in range(2)]
    target = RunFolder(tmp_path / "both")
    with target.locked():
        merge_runs(parts, target)
    assert files(target) == files(golden)
    sub = tokenize(tiny, [photos / "sub"], tmp_path / "sub")
    with RunFolder(tmp_path / "no").locked(), pytest.raises(ConfigError, match="several"):
        merge_runs(
            [sub, sub, tokenize(tiny, [photos / "sub", photos / "sub"], tmp_path / "b")], RunFolder(tmp_path / "no")
        )


def test_merged_runs_over_different_images_come_one_after_the_other(tiny, photos, tmp_path):
    tokens = []
    for name in ("sub", "more"):
        (tmp_path / name).mkdir()
        for i in range(3):
            picture(i, (8, 16)).save(tmp_path / name / f"{name}{i}.png")
        tokens.append(all_tokens(tokenize(tiny, [tmp_path / name], tmp_path / f"run-{name}", shard_size=2)))
    target = RunFolder(tmp_path / "both")
    with target.locked():
        merge_runs([RunFolder(tmp_path / "run-sub"), RunFolder(tmp_path / "run-more")], target)
    assert_equal(all_tokens(target), concatenate(tokens))


# Crops ---------------------------------------------------------------------------------------------------------------


def test_crops_are_the_boxes_that_are_recorded(tiny, photos, tmp_path):
    for crop in ("center", "ten", "random:3"):
        folder = tokenize(tiny, [photos], tmp_path / crop, crop=crop, size=16, seed=5)
        tokens, rows = all_tokens(folder), [row for i in range(4) for row in folder.read("rows", i)]
        assert [row["key"] for row in rows] == list(tokens.keys)
        assert len(tokens) == 12 * views(crop)
        for i, row in enumerate(rows):
            path = photos / str(row["key"]).split("#")[0]
            array = np.asarray(Image.open(path))
            box = Box(**row["crop"])
            part = Image.fromarray(array[box.top : box.top + box.side, box.left : box.left + box.side])
            pixels = np.asarray(part.resize((16, 16), Image.Resampling.BICUBIC))
            pixels = pixels[:, ::-1] if box.mirror else pixels
            np.testing.assert_array_equal(tokens[i].ids, tiny.tokenize(pixels.copy()).ids, err_msg=row["key"])


def test_ten_crops_are_four_corners_and_the_middle_of_the_middle_square_and_their_mirrors():
    found = boxes("ten", np.zeros((110, 130, 3), np.uint8), 0)
    places = [(0, 10), (0, 20), (10, 10), (10, 20), (5, 15)]
    assert [(b.top, b.left, b.side, b.mirror) for b in found] == [(*p, 100, m) for m in (False, True) for p in places]


def test_random_crops_follow_pixels_and_seed_and_stay_inside():
    a, b = (np.random.default_rng(i).integers(0, 256, (37, 91, 3), dtype=np.uint8) for i in range(2))
    many = boxes("random:400", a, 1)
    assert many == boxes("random:400", a.copy(), 1)
    assert many[:7] == boxes("random:7", a, 1)
    assert many != boxes("random:400", a, 2)
    assert many != boxes("random:400", b, 1)
    for box in many:
        assert 0 <= box.top <= 37 - box.side
        assert 0 <= box.left <= 91 - box.side
        assert 18 <= box.side <= 37
        assert cut(a, box, 8, "bicubic").shape == (8, 8, 3)
    assert 120 < sum(box.mirror for box in many) < 280
    assert len({box.left for box in many}) > 50


@pytest.mark.parametrize("crop", ["random:0", "random:", "five", "random:99999", ""])
def test_unknown_crops_are_refused(crop):
    with pytest.raises(ConfigError, match="center, ten or random"):
        views(crop)


def test_crops_need_a_size_of_the_models_grid(tiny):
    for size in (0, 12):
        with pytest.raises(ConfigError, match="multiple of 8"):
            settings_of(tiny, Recipe(tiny.spec, "center", size), "stable", 4)


def test_low_precision_needs_the_level_fast(tiny):
    model = replace_precision(tiny)
    try:
        with pytest.raises(ConfigError, match="--repro fast"):
            settings_of(model, Recipe(model.spec), "stable", 4)
        assert settings_of(model, Recipe(model.spec), "fast", 4).precision == "bfloat16"
    finally:
        model.precision = "float32"


def replace_precision(model):
    model.precision = "bfloat16"
    return model


# Containers ----------------------------------------------------------------------------------------------------------


def png(i, size=(16, 16)):
    buffer = io.BytesIO()
    picture(i, size).save(buffer, "PNG")
    return buffer.getvalue()


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_labels_and_captions_of_a_webdataset_travel_along(tiny, tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"x-{shard:03d}.tar", "w") as tar:
            for i in (1, 0):
                add(tar, f"s{i}.cls", b"%d\n" % (7 + i))
                add(tar, f"s{i}.png", png(i))
                add(tar, f"s{i}.txt", "ein Bär".encode())
    folder = tokenize(tiny, [f"{tmp_path}/x-{{000..001}}.tar"], tmp_path / "run")
    assert [row["key"].split("/")[-2:] for row in folder.read("rows", 0)] == [
        [f"x-00{shard}.tar", f"s{i}.png"] for shard in range(2) for i in range(2)
    ]
    assert [row["label"] for row in folder.read("rows", 0)] == [7, 8, 7, 8]
    assert {row["caption"] for row in folder.read("rows", 0)} == {"ein Bär"}
    np.testing.assert_array_equal(all_tokens(folder)[1].ids, tiny.tokenize(png(1)).ids)


@pytest.mark.parametrize("kind", ["bytes", "struct", "path"])
def test_parquet(kind, tiny, tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    cells = {
        "bytes": [png(i) for i in range(5)],
        "struct": [{"bytes": png(i), "path": f"{i}.png"} for i in range(5)],
        "path": [str(tmp_path / f"{i}.png") for i in range(5)],
    }[kind]
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    table = arrow.table({"image": cells, "label": list(range(5)), "note": ["x"] * 5})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    folder = tokenize(tiny, [tmp_path / "t.parquet"], tmp_path / "run", workers=2)
    tokens = all_tokens(folder)
    assert len(tokens) == 5
    for i in range(5):
        np.testing.assert_array_equal(tokens[i].ids, tiny.tokenize(png(i)).ids)
    assert [row["label"] for n in range(2) for row in folder.read("rows", n)] == list(range(5))
    assert tokens.keys[3].endswith({"bytes": "t.parquet/00000003", "struct": "/3.png", "path": "/3.png"}[kind])


def test_a_dataset_saved_to_disk(tiny, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    (tmp_path / "ds/train").mkdir(parents=True)
    (tmp_path / "ds/dataset_dict.json").write_text('{"splits": ["train"]}')
    names = [f"data-0000{i}-of-00002.arrow" for i in range(2)]
    (tmp_path / "ds/train/state.json").write_text(
        '{"_data_files": [' + ", ".join(f'{{"filename": "{name}"}}' for name in names) + "]}"
    )
    for number, name in enumerate(names):
        cells = [{"bytes": png(2 * number + i), "path": None} for i in range(2)]
        table = arrow.table({"image": cells, "text": ["a", "b"]})
        with (
            arrow.OSFile(str(tmp_path / "ds/train" / name), "wb") as sink,
            arrow.ipc.new_stream(sink, table.schema) as out,
        ):
            out.write_table(table)
    folder = tokenize(tiny, [tmp_path / "ds"], tmp_path / "run", workers=1)
    tokens = all_tokens(folder)
    for i in range(4):
        np.testing.assert_array_equal(tokens[i].ids, tiny.tokenize(png(i)).ids)
    assert [row["caption"] for row in folder.read("rows", 0)] == ["a", "b", "a", "b"]


def test_lists_carry_names_labels_and_captions(tiny, tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    (tmp_path / "l.csv").write_text("file,name,y\n2.png,b,1\n0.png,a,0\n", encoding="utf-8")
    (tmp_path / "l.jsonl").write_text('{"path": "1.png", "caption": "c"}\n')
    columns = Columns(image="file", key="name", label="y", root=str(tmp_path))
    folder = tokenize(tiny, [tmp_path / "l.csv"], tmp_path / "a", columns=columns)
    assert folder.read("rows", 0) == [{"key": "a", "label": "0"}, {"key": "b", "label": "1"}]
    np.testing.assert_array_equal(all_tokens(folder)[1].ids, tiny.tokenize(png(2)).ids)
    folder = tokenize(tiny, [tmp_path / "l.jsonl"], tmp_path / "b", columns=Columns(root=str(tmp_path)))
    assert folder.read("rows", 0) == [{"key": "1.png", "caption": "c"}]


# Workers -------------------------------------------------------------------------------------------------------------


def recipe():
    return Recipe(PreprocessSpec(multiple=8))


def items(photos):
    return [Item(p.name, str(p)) for p in sorted(photos.rglob("*.png"))]


def test_workers_give_the_pixels_that_are_given_without(photos):
    listed = items(photos)
    alone = [decode_item(item, recipe()) for item in listed]
    for workers in (1, 2):
        with Pool(recipe(), workers) as pool:
            found = list(pool.decode(listed))
        assert [item for item, _ in found] == listed
        for (_, outcome), expected in zip(found, alone, strict=True):
            assert type(outcome) is type(expected)
            if isinstance(outcome, Decoded):
                assert outcome.sha256 == expected.sha256
                np.testing.assert_array_equal(outcome.arrays[0], expected.arrays[0])
            else:
                assert outcome == expected


TRAP = """
import json, os, signal, sys, time; sys.path[:] = json.loads(sys.argv[1])
from vqtok.dataset import worker
honest = worker.decode_item
def trapped(item, recipe):
    if item.key == "04.png":
        {trap}
    return honest(item, recipe)
worker.decode_item = trapped
worker.main()
"""
TRAPS = {
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", "worker_crash"),
    "segfault": ("os.kill(os.getpid(), signal.SIGSEGV)", "worker_crash"),
    "abort": ("os.abort()", "worker_crash"),
    "exit": ("os._exit(0)", "worker_crash"),
    "hang": ("time.sleep(600)", "timeout"),
    "noise": ("os.write(1, b'x' * 100000); os.write(2, b'y' * 100000)", None),
    "nonsense": ("os.write(3 if False else 1, b''); raise ValueError('a bug')", "worker_crash"),
}


@pytest.mark.parametrize("name", TRAPS)
@pytest.mark.parametrize("workers", [1, 3])
def test_an_image_that_kills_or_hangs_its_worker_is_named_and_the_others_are_done(name, workers, photos, monkeypatch):
    trap, kind = TRAPS[name]
    monkeypatch.setattr(pool_module, "_START", TRAP.format(trap=trap))
    with Pool(recipe(), workers, timeout=1.5) as pool:
        found = {item.key: outcome for item, outcome in pool.decode(items(photos))}
        processes = [w._process for w in pool._workers]
    assert [p for p in processes if p is not None and p.poll() is None] == []
    kinds = {key: outcome.kind for key, outcome in found.items() if isinstance(outcome, Failure)}
    assert kinds == {"grey.png": "empty", **({"04.png": kind} if kind else {})}
    assert len(found) == 13


def test_a_worker_that_was_killed_from_outside_costs_no_image(photos, monkeypatch, tmp_path):
    """The kernel kills whom it likes when memory runs out: the image is tried once more."""
    once = tmp_path / "once"
    trap = f"os.path.exists({str(once)!r}) or (open({str(once)!r}, 'w').close(), os.kill(os.getpid(), 9))"
    monkeypatch.setattr(pool_module, "_START", TRAP.format(trap=trap))
    with Pool(recipe(), 1) as pool:
        found = {item.key: outcome for item, outcome in pool.decode(items(photos))}
    assert once.exists()
    assert isinstance(found["04.png"], Decoded)


def test_comparison_counts_tokens(golden):
    tokens = golden.tokens(0)
    same, other = Comparison(), Comparison()
    same.add(tokens, tokens)
    assert (same.images, same.different, same.passed()) == (len(tokens), 0, True)
    ids = tokens.ids.copy()
    ids[0] = (ids[0] + 1) % 64
    other.add(tokens, replace(tokens, ids=ids))
    assert (other.different, other.passed()) == (1, False)
    other.same_machine = False
    assert other.passed()


def test_listing_streams_are_sorted_and_named_once(tmp_path):
    from vqtok.dataset.listing import list_items

    rng = np.random.default_rng(0)
    for i in range(60):
        name = "".join(rng.choice(list("ab-./é"), 4)).strip("/.").replace("//", "/") + f"{i}.png"
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [item.key for item in list_items([str(tmp_path)])]
    paths = [str(p.relative_to(tmp_path)) for p in Path(tmp_path).rglob("*.png")]
    assert found == sorted(paths, key=os.fsencode)
    twice = [item.key for item in list_items([str(tmp_path), str(tmp_path)])]
    assert twice == [f"{tmp_path}/{key}" for key in found]
