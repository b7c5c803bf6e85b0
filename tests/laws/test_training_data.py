"""Laws of training data: batches are a function of seed and step, whoever decodes them and wherever they lie."""

import io
import itertools
import multiprocessing
import os
import signal
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from vqtok.architecture.section import read_section
from vqtok.dataset.decoding import Failure
from vqtok.errors import ConfigError, InputError, OutputError, ResourceError, TooManyFailures
from vqtok.training.cache import PhotoCache
from vqtok.training.data import BatchShape, DataSection, Group, TrainingData
from vqtok.training.data_section import ResizedCrops, ScaledCrops
from vqtok.training.order import Order, turn
from vqtok.training.refusals import Refusals

SMALL = ScaledCrops(sides=(64, 32), weights=(0.5, 0.5))
NAMES = [f"{i:02d}.png" for i in range(7)]


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def noise(seed: int, height: int = 72, width: int = 90) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def flat(level: int) -> np.ndarray:
    return np.full((24, 24, 3), level, np.uint8)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """The same images as a folder, a tar and a table of two row groups; a folder of flat ones; one of broken ones."""
    root = tmp_path_factory.mktemp("images")
    for name in ("folder", "flat", "broken", "mixed", "empty"):
        (root / name).mkdir()
    contents = {name: png(noise(i)) for i, name in enumerate(NAMES)}
    with tarfile.open(root / "images.tar", "w") as tar:
        for name, data in contents.items():
            (root / "folder" / name).write_bytes(data)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    table = pa.table({"image": [{"bytes": data, "path": name} for name, data in contents.items()]})
    pq.write_table(table, root / "images.parquet", row_group_size=3)
    (root / "list.txt").write_text("".join(f"folder/{name}\n" for name in NAMES))
    for i in range(40):
        (root / "flat" / f"{i:02d}.png").write_bytes(png(flat(i)))
        (root / "mixed" / f"{i:02d}.png").write_bytes(png(flat(i)) if i not in (3, 30) else b"\x89PNG\r\n\x1a\nno")
    for i in range(3):
        (root / "broken" / f"{i}.png").write_bytes(contents[NAMES[i]][:500])
    return root


def section(*paths: str, **fields) -> DataSection:
    groups = tuple(Group(path=path) for path in paths or ("folder",))
    return DataSection(**{"train": groups, "crops": SMALL, "workers": 0, **fields})


def data(base: Path, *paths: str, seed: int = 5, **fields) -> TrainingData:
    return TrainingData(section(*paths, **fields), seed, base)


def shape_of(step: int) -> BatchShape:
    return BatchShape(4, 16) if step < 2 else BatchShape(6, 24)


def stack(batches, count: int) -> list[np.ndarray]:
    return [batch.images for batch in itertools.islice(batches, count)]


def same(first, second) -> bool:
    return len(first) == len(second) and all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def levels(batches, count: int) -> list[int]:
    """Return the grey of each crop of flat images."""
    return [int(image[0, 0, 0]) for batch in stack(batches, count) for image in batch]


# --- a function of seed and step


def test_worker_processes_change_nothing(base):
    alone = stack(data(base).batches(0, shape_of), 5)
    assert [batch.shape for batch in alone] == [(4, 16, 16, 3)] * 2 + [(6, 24, 24, 3)] * 3
    batches = data(base, workers=2).batches(0, shape_of)
    assert same(stack(batches, 5), alone)
    batches.close()
    assert not multiprocessing.active_children()


def test_a_resumed_training_sees_what_it_would_have_seen(base):
    whole = stack(data(base).batches(0, shape_of), 6)
    for first in (1, 2, 4):
        assert same(stack(data(base).batches(first, shape_of), 6 - first), whole[first:])
    assert not same(stack(data(base, seed=6).batches(0, shape_of), 6), whole)


def test_slices_of_ranks_joined_are_the_batch_of_one_process(base):
    whole = stack(data(base).batches(1, shape_of), 4)
    parts = [stack(data(base).batches(1, shape_of, rank=rank, world_size=2), 4) for rank in range(2)]
    assert same([np.concatenate(slices) for slices in zip(*parts, strict=True)], whole)


@pytest.mark.parametrize(("rank", "world_size"), [(0, 3), (2, 2), (-1, 2)])
def test_a_batch_that_ranks_cannot_share_is_refused(base, rank, world_size):
    with pytest.raises(ConfigError, match=f"{world_size}"):
        next(data(base).batches(0, shape_of, rank=rank, world_size=world_size))


@pytest.mark.parametrize("source", ["images.tar", "images.parquet", "list.txt", "folder/*.png", "{0..0}"])
def test_where_images_lie_changes_nothing(base, source):
    if source == "{0..0}":
        (base / "images-0.tar").write_bytes((base / "images.tar").read_bytes())
        source = "images-{0..0}.tar"
    assert same(stack(data(base, source).batches(0, shape_of), 4), stack(data(base).batches(0, shape_of), 4))


def test_torchs_generator_is_left_as_it_was(base):
    before = torch.get_rng_state()
    stack(data(base).batches(0, shape_of), 2)
    data(base).calibration(0, BatchShape(2, 16))
    assert torch.equal(torch.get_rng_state(), before)


def test_calibration_is_another_stream_and_the_same_each_time(base):
    shape = BatchShape(4, 16)
    first, again, other = (data(base).calibration(i, shape).images for i in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not any(np.array_equal(first, batch) for batch in stack(data(base).batches(0, lambda _: shape), 7))


# --- order


def test_every_image_comes_once_an_epoch_in_another_order_each_time(base):
    drawn = levels(data(base, "flat").batches(0, lambda _: BatchShape(8, 16)), 10)
    assert sorted(drawn[:40]) == sorted(drawn[40:]) == list(range(40))
    assert len({tuple(drawn[:40]), tuple(drawn[40:]), tuple(range(40))}) == 3


def test_groups_without_weights_are_one_pool():
    draws = list(Order([5, 3, 1], [], seed=1).draws(0, 18))
    everything = {(0, i) for i in range(5)} | {(1, i) for i in range(3)} | {(2, 0)}
    assert {(x.group, x.index) for x in draws[:9]} == {(x.group, x.index) for x in draws[9:]} == everything


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.2, 0.5, 0.3), (1, 2, 3, 4, 5), (1,) * 64, (1e-6, 1)])
def test_weights_hold_after_any_number_of_draws(weights):
    sizes = [7] * len(weights)
    seen, most = np.zeros(len(weights)), np.ceil(np.log2(len(weights)))
    for position, draw in enumerate(Order(sizes, weights, seed=3).draws(0, 2000)):
        assert turn(position, weights) == (draw.group, seen[draw.group])
        seen[draw.group] += 1
        assert np.abs(seen - np.array(weights) / sum(weights) * (position + 1)).max() < most + 1e-6


def test_a_weighted_group_has_epochs_of_its_own():
    draws = list(Order([6, 4], [1, 2], seed=2).draws(0, 180))
    for group, size in ((0, 6), (1, 4)):
        images = [draw.index for draw in draws if draw.group == group]
        for start in range(0, len(images) - size + 1, size):
            assert sorted(images[start : start + size]) == list(range(size))


def runs_of_blocks(blocks: list[int]) -> list[set[int]]:
    """Cut a sequence of blocks where a new set of four begins."""
    found: list[set[int]] = [set()]
    for block in blocks:
        if block not in found[-1] and len(found[-1]) == 4:
            found.append(set())
        found[-1].add(block)
    return found


def test_images_of_a_table_are_drawn_from_four_row_groups_at_a_time():
    blocks = np.repeat(np.arange(12), 5)[np.random.default_rng(0).permutation(60)]  # names do not follow rows
    order = Order([60], [], seed=1, blocks=[blocks])
    for start in (0, 60):
        images = [draw.index for draw in order.draws(start, 60)]
        assert sorted(images) == list(range(60))
        windows = runs_of_blocks([blocks[image] for image in images])
        assert [len(window) for window in windows] == [4, 4, 4]
        assert set.union(*windows) == set(range(12))
        assert len(set(blocks[images[:10]])) > 2  # and shuffled among those


def test_images_that_lie_alone_are_spread_over_the_windows_of_a_table():
    blocks = [np.repeat(np.arange(40), 10), np.zeros(0, np.int64)]
    groups = [draw.group for draw in Order([400, 400], [], seed=1, blocks=blocks).draws(0, 800)]
    assert np.reshape(groups, (8, 100)).mean(axis=1) == pytest.approx(0.5, abs=0.2)


def test_each_row_group_of_a_table_is_read_about_once_a_batch(base, monkeypatch):
    images = [{"bytes": png(flat(i)), "path": f"{(7 * i) % 48:02d}"} for i in range(48)]
    pq.write_table(pa.table({"image": images}), base / "many.parquet", row_group_size=4)
    reads = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *a, **k: reads.append(a[1]) or read(*a, **k))
    found = data(base, "many.parquet")
    reads.clear()
    assert sorted(levels(found.batches(0, lambda _: BatchShape(16, 16)), 3)) == list(range(48))
    assert sorted(set(reads)) == list(range(12))
    assert len(reads) <= 15


def test_weights_are_given_to_all_groups_or_to_none():
    groups = [{"path": "a", "weight": 1.0}, {"path": "b"}]
    with pytest.raises(ConfigError, match="weight for every group"):
        read_section(DataSection, {"train": groups}, "recipe")
    assert read_section(DataSection, {"train": [{"path": "a"}], "crops": {"type": "resized"}}, "recipe").crops.area


@pytest.mark.parametrize(
    "crops", [{"sides": (64,)}, {"sides": (64, 64), "weights": (1.0, 1.0)}, {"sides": (0,), "weights": (1.0,)}]
)
def test_sides_that_weights_do_not_match_are_refused(crops):
    with pytest.raises(ValidationError):
        ScaledCrops(**crops)


# --- crops


def ramps(folder: Path, height: int, width: int) -> Path:
    """An image whose red is its column and whose green is its row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    folder.mkdir(exist_ok=True)
    (folder / "ramp.png").write_bytes(png(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8)))
    return folder


def test_half_of_the_crops_are_mirrored_and_scales_come_as_weighted(tmp_path):
    ramps(tmp_path / "ramp", 100, 128)
    crops = ScaledCrops(sides=(128, 100, 50, 25), weights=(9.0, 0.5, 0.3, 0.2))  # it has no side of 128
    found = stack(data(tmp_path, "ramp", crops=crops).batches(0, lambda _: BatchShape(500, 16)), 2)
    slopes = (np.concatenate(found)[:, 8, 10, 0].astype(int) - np.concatenate(found)[:, 8, 6, 0]) / 4
    assert Counter(np.abs(slopes).round()).keys() == {1, 2, 4}
    for slope, share in ((1, 0.5), (2, 0.3), (4, 0.2)):
        # Within four standard deviations of a thousand draws.
        assert np.mean(np.abs(slopes).round() == slope) == pytest.approx(share, abs=0.064)
    assert np.mean(slopes < 0) == pytest.approx(0.5, abs=0.064)
    assert len({(*image[0, 0], *image[0, -1]) for image in np.concatenate(found)}) > 500  # places differ


def test_flips_can_be_left_out(tmp_path):
    ramps(tmp_path / "ramp", 64, 64)
    crops = stack(data(tmp_path, "ramp", flip=0.0).batches(0, lambda _: BatchShape(64, 16)), 1)[0]
    assert (crops[:, 0, -1, 0] > crops[:, 0, 0, 0]).all()


def test_a_crop_is_a_part_of_its_photograph(base, tmp_path):
    photo = noise(3, 40, 50)
    (tmp_path / "one").mkdir()
    (tmp_path / "one/a.png").write_bytes(png(photo))
    crops = stack(data(tmp_path, "one", crops=ScaledCrops(sides=(), weights=())).batches(0, shape_of), 1)[0]
    windows = np.lib.stride_tricks.sliding_window_view(photo, (16, 16, 3))[:, :, 0]
    for crop in crops:
        assert (windows == crop).all(axis=(2, 3, 4)).any() or (windows == crop[:, ::-1]).all(axis=(2, 3, 4)).any()


def test_what_a_small_photograph_lacks_is_its_edge(tmp_path):
    ramps(tmp_path / "ramp", 10, 12)
    crops = stack(data(tmp_path, "ramp", flip=0.0).batches(0, lambda _: BatchShape(8, 16)), 1)[0].astype(int)
    assert set(np.diff(crops[..., 0], axis=2).flat) <= {0, 1}
    assert set(np.diff(crops[..., 1], axis=1).flat) <= {0, 1}
    assert {*crops[..., 1].max(axis=(1, 2))} == {9}


def test_resized_crops_have_the_areas_that_were_asked_for(tmp_path):
    ramps(tmp_path / "ramp", 128, 128)
    crops = ResizedCrops(area=(0.1, 0.3), aspect=(0.75, 1.3333))
    found = stack(data(tmp_path, "ramp", crops=crops).batches(0, lambda _: BatchShape(400, 16)), 1)[0].astype(float)
    # Between the centres of the first and the last pixel lie 15 of 16 parts of a side.
    sides = np.abs(found[:, -2, -2, :2] - found[:, 1, 1, :2]) * 16 / 13 / 128
    areas, aspects = sides.prod(axis=1), sides[:, 0] / sides[:, 1]
    assert 0.08 < areas.min() < 0.12
    assert 0.28 < areas.max() < 0.33
    assert areas.mean() == pytest.approx(0.2, abs=0.015)
    assert 0.7 < aspects.min() < 0.85
    assert 1.2 < aspects.max() < 1.42


# --- images that cannot be read


def test_refused_images_are_replaced_named_once_and_change_no_other(base):
    good = stack(data(base, "flat").batches(0, lambda _: BatchShape(8, 16)), 10)
    batches = list(
        itertools.islice(data(base, "mixed", allowed_failures=0.1).batches(0, lambda _: BatchShape(8, 16)), 10)
    )
    named = [(batch.step, failure.key, failure.kind) for batch in batches for failure in batch.failures]
    assert sorted((key, kind) for _, key, kind in named) == [("03.png", "truncated"), ("30.png", "truncated")]
    assert all(step < 5 for step, *_ in named)  # in the first epoch
    for batch, whole in zip(batches, good, strict=True):
        broken = np.isin(whole[:, 0, 0, 0], (3, 30))
        assert np.array_equal(batch.images[~broken], whole[~broken])
        assert not np.isin(batch.images[:, 0, 0, 0], (3, 30)).any()
    again = stack(data(base, "mixed", allowed_failures=0.1).batches(6, lambda _: BatchShape(8, 16)), 4)
    assert same(again, [batch.images for batch in batches[6:]])


@pytest.mark.parametrize("allowed", [0.0, 0.01, 0.049])
def test_more_refused_images_than_allowed_end_the_training(base, allowed):
    with pytest.raises(TooManyFailures, match=r"of 40 images .*\.png: expected .*data.allowed_failures") as error:
        stack(data(base, "mixed", allowed_failures=allowed).batches(0, lambda _: BatchShape(8, 16)), 5)
    assert error.value.exit_code == 3


@pytest.mark.parametrize("allowed", [0.01, 1.0])
def test_nothing_but_refused_images_is_no_training(base, allowed):
    with pytest.raises(TooManyFailures, match="of 3 images"):
        next(data(base, "broken", allowed_failures=allowed).batches(0, shape_of))
    with pytest.raises(TooManyFailures, match="of 3 images"):
        _ = data(base, validate_on=("broken",), allowed_failures=allowed).validation


def test_an_archive_that_is_cut_off_gives_what_it_still_holds(base):
    whole = (base / "images.tar").read_bytes()
    (base / "cut.tar").write_bytes(whole[: len(whole) // 2])
    batches = list(itertools.islice(data(base, "cut.tar", allowed_failures=0.5).batches(0, shape_of), 5))
    assert {failure.kind for batch in batches for failure in batch.failures} == {"truncated"}
    assert all(image.std() > 20 for batch in batches for image in batch.images)  # noise, nothing left blank
    with pytest.raises(TooManyFailures, match=r"cut\.tar"):
        stack(data(base, "cut.tar").batches(0, shape_of), 5)


def test_a_damaged_table_among_others_is_one_refused_image(base):
    (base / "tables").mkdir()
    for i in range(6):
        images = [{"bytes": png(flat(10 * i + j)), "path": f"{j}"} for j in range(4)]
        pq.write_table(pa.table({"image": images}), base / f"tables/{i}.parquet", row_group_size=2)
    (base / "tables/9.parquet").write_bytes(b"PAR1")
    found = data(base, "tables/*.parquet", allowed_failures=0.1)
    batches = list(itertools.islice(found.batches(0, lambda _: BatchShape(5, 16)), 5))
    assert [(x.key, x.kind) for batch in batches for x in batch.failures] == [
        (str(base / "tables/9.parquet"), "corrupt")
    ]
    grey = {int(image[0, 0, 0]) for batch in batches for image in batch.images}
    assert grey == {10 * i + j for i in range(6) for j in range(4)}
    assert len(found.order(0)._blocks[0]) == 25


def test_substitutes_are_spread_over_the_group():
    order = Order([3, 40], [1, 1], seed=1)
    assert len({order.substitute(1, position, 1).index for position in range(200)}) > 35
    assert len({order.substitute(1, 0, attempt).index for attempt in range(200)}) > 35
    assert {order.substitute(0, position, 1).group for position in range(9)} == {0}


def failure(name: int) -> Failure:
    return Failure(f"{name}", "decode", "corrupt", f"{name}: expected an image")


@pytest.mark.parametrize(
    ("allowed", "total", "drawn", "most"),
    [
        *((0.01, 10, 10, 1), (0.2, 10, 10, 2), (0.0, 10, 10, 0), (0.01, 1, 1, 0), (0.01, 10_000, 10_000, 100)),
        # Before an epoch is over: 1 + 10 + 3 * sqrt(10) = 20.5.
        *((0.01, 10_000, 1000, 20), (0.01, 10_000, 1, 1)),
    ],
)
def test_how_many_refused_images_are_too_many(allowed, total, drawn, most):
    refusals = Refusals(allowed, total)
    refusals.drawn(drawn)
    assert all(refusals.add(i, failure(i)) for i in range(most))
    assert not any(refusals.add(i, failure(i)) for i in range(most))
    with pytest.raises(TooManyFailures, match="0: expected an image"):
        refusals.add(most, failure(most))


@pytest.mark.parametrize("path", ["no-such-folder", "no-such-{0..3}.tar", "empty", "*.nothing", "no.parquet", "no.txt"])
@pytest.mark.parametrize("purpose", ["train", "validate_on"])
def test_missing_and_empty_sources_are_named(base, path, purpose):
    with pytest.raises(InputError, match="expected") as error:
        data(base, *([path] if purpose == "train" else []), **({} if purpose == "train" else {purpose: (path,)}))
    assert error.value.exit_code == 4
    assert path.split("{")[0].removeprefix("*") in str(error.value)


def test_a_tar_without_images_is_named(base):
    with tarfile.open(base / "words.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    with pytest.raises(InputError, match=r"words\.tar"):
        data(base, "words.tar")


def test_a_lost_worker_is_an_error_and_no_hang(base):
    batches = data(base, workers=1).batches(0, shape_of)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(ResourceError, match=r"was lost .*workers = 0"):
        stack(batches, 100)


# --- cache


def test_cached_pixels_are_the_decoded_ones_bit_for_bit(base, tmp_path):
    plain = stack(data(base).batches(0, shape_of), 4)
    for cache in (str(tmp_path / "cache"), str(tmp_path / "cache"), "memory"):
        for source in ("folder", "images.tar", "images.parquet"):
            assert same(stack(data(base, source, cache=cache).batches(0, shape_of), 4), plain)
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == 3 * len(NAMES)


def test_a_cache_is_read_and_not_the_image(base, tmp_path):
    """Else the law above would hold of a cache that is never used."""
    fields = {"crops": ScaledCrops(sides=(), weights=()), "flip": 0.0, "cache": str(tmp_path / "cache")}
    (tmp_path / "one").mkdir()
    (tmp_path / "one/a.png").write_bytes(png(flat(10)))
    assert set(levels(data(tmp_path, "one", **fields).batches(0, shape_of), 2)) == {10}
    (cached,) = (path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    content = cached.read_bytes()
    cached.write_bytes(content.replace(b"\x0a" * 3, b"\x0b" * 3))
    assert set(levels(data(tmp_path, "one", **fields).batches(0, shape_of), 2)) == {11}
    for damaged in (content[:-1], b"", content[:9], b"x" + content[1:], content + b"x"):
        cached.write_bytes(damaged)
        assert set(levels(data(tmp_path, "one", **fields).batches(0, shape_of), 2)) == {10}
        assert cached.read_bytes() == content


def test_a_cached_photograph_of_other_scales_or_an_older_file_is_not_used(tmp_path):
    (tmp_path / "one").mkdir()
    image, cache = tmp_path / "one/a.png", str(tmp_path / "cache")
    for level, crops in ((10, SMALL), (10, ScaledCrops(sides=(16,), weights=(1.0,))), (11, SMALL)):
        image.write_bytes(png(flat(level)))
        os.utime(image, ns=(level, level))
        assert set(levels(data(tmp_path, "one", cache=cache, crops=crops).batches(0, shape_of), 2)) == {level}
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == 3


def test_a_file_that_a_table_names_is_not_cached_by_the_age_of_the_table(tmp_path):
    pq.write_table(pa.table({"image": ["a.png"]}), tmp_path / "paths.parquet")
    for level in (10, 11):
        (tmp_path / "a.png").write_bytes(png(flat(level)))
        batches = data(tmp_path, "paths.parquet", cache=str(tmp_path / "cache")).batches(0, shape_of)
        assert set(levels(batches, 2)) == {level}


def test_pixels_in_memory_go_with_the_run(base):
    found = data(base, cache="memory")
    stack(found.batches(0, shape_of), 2)
    folder = Path(found._cache.path)
    assert any(folder.rglob("*"))
    del found
    assert not folder.exists()


def test_a_disk_that_is_full_makes_a_cache_slow_and_not_wrong(base, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage())
    assert same(
        stack(data(base, cache=str(tmp_path / "c")).batches(0, shape_of), 3), stack(data(base).batches(0, shape_of), 3)
    )
    assert not any((tmp_path / "c").iterdir())


class Usage:
    """A disk with a quarter of its bytes free, and a few more."""

    total, free = 40_000_000, 10_000_010


def test_a_cache_that_cannot_be_made_is_refused(base, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="expected a folder for the cache"):
        data(base, cache=str(tmp_path / "file/cache"))


def test_few_mapped_files_are_kept(base):
    cache = PhotoCache("", (16,))
    assert 1 <= cache._most_open <= 4096


# --- validation


def test_validation_images_are_fixed_evenly_spaced_and_scaled_down(base):
    found = data(base, validate_on=("folder", "flat"), validate_side=36, validate_limit=10).validation
    # 47 images: 0, 4, 9 of which the first seven are 72 x 90.
    assert [image.shape for image in found] == [(36, 45, 3)] * 2 + [(24, 24, 3)] * 8
    expected = np.asarray(Image.fromarray(noise(4)).resize((45, 36), Image.Resampling.BICUBIC))
    assert np.array_equal(found[1], expected)
    assert [int(image[0, 0, 0]) for image in found[2:]] == [i * 47 // 10 - 7 for i in range(2, 10)]
    assert data(base).validation == ()


def test_refused_validation_images_are_left_out_and_named(base):
    found = data(base, validate_on=("mixed",), allowed_failures=0.1)
    assert len(found.validation) == 38
    assert [failure.key for failure in found.validation_images.failures] == ["03.png", "30.png"]
