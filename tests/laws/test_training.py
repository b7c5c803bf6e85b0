"""Laws of the training loop and its crops."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vqtok
from vqtok.errors import ConfigError, InputError
from vqtok.evaluation.metrics import psnr
from vqtok.training import PhotoCrops, Recipe, fit

PHOTO = Path(__file__).parents[2] / "examples/photo.jpg"
VALIDATION = np.asarray(Image.open(PHOTO).resize((64, 48)))
RECIPE = Recipe(steps=6, stages=((0.5, 4, 32), (1.0, 2, 48)), warmup=2, continuous=2, validate_every=2)


class Killed(Exception):
    """Stands for a process that ends in the middle of a step."""


class CrumblingCrops(PhotoCrops):
    """Crops that end the training at a step."""

    def batch(self, step, count, size):
        if step == 5:
            raise Killed
        return super().batch(step, count, size)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    image = Image.open(PHOTO)
    image.resize((600, 400)).save(folder / "large.png")
    image.crop((0, 0, 90, 70)).save(folder / "small.png")
    return folder


def run(folder: Path, crops: PhotoCrops, recipe: Recipe = RECIPE) -> Path:
    torch.manual_seed(0)
    # Many codes count as dead, so the random numbers of revival matter too.
    tokenizer = vqtok.build("photo-f8", vocab_size=16, channels=(8, 8, 16), revive_below=0.9)
    return fit(tokenizer, crops, [VALIDATION], recipe, folder)


def curve(folder: Path) -> list[dict]:
    """Return what was validated, without the time it took."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds_a_step"} for row in rows]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(photos, tmp_path, precision):
    recipe = dataclasses.replace(RECIPE, precision=precision)
    whole = run(tmp_path / "whole", PhotoCrops([(1.0, photos)]), recipe)
    with pytest.raises(Killed):
        run(tmp_path / "killed", CrumblingCrops([(1.0, photos)]), recipe)
    resumed = run(tmp_path / "killed", PhotoCrops([(1.0, photos)]), recipe)
    assert vqtok.load(resumed).fingerprint == vqtok.load(whole).fingerprint
    states = [torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "killed")]
    for name, value in states[0]["tokenizer"].items():
        assert torch.equal(value, states[1]["tokenizer"][name]), name
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")


def test_training_lowers_the_error_and_keeps_the_best_weights(photos, tmp_path):
    recipe = Recipe(steps=40, stages=((1.0, 4, 32),), warmup=5, continuous=5, validate_every=10, learning_rate=5e-3)
    best = run(tmp_path, PhotoCrops([(1.0, photos)]), recipe)
    rows = curve(tmp_path)
    assert rows[-1]["mse"] < 0.6 * rows[0]["mse"]
    tokenizer = vqtok.load(best)
    came = psnr(VALIDATION, np.asarray(tokenizer.detokenize(tokenizer.tokenize(VALIDATION))[0]))
    assert came == pytest.approx(max(row["psnr"] for row in rows), abs=0.01), "but for the rounding to float16"


def test_crops_are_a_function_of_seed_and_step(photos):
    crops = PhotoCrops([(1.0, photos)], seed=3)
    assert np.array_equal(crops.batch(7, 5, 32), PhotoCrops([(1.0, photos)], seed=3).batch(7, 5, 32))
    assert not np.array_equal(crops.batch(7, 5, 32), crops.batch(8, 5, 32))
    assert not np.array_equal(crops.batch(7, 5, 32), PhotoCrops([(1.0, photos)], seed=4).batch(7, 5, 32))


def test_every_crop_is_a_window_of_a_photograph_or_its_mirror(photos):
    crops = PhotoCrops([(1.0, photos)])
    scales = [scale for photo in crops.photos[0] for scale in photo]
    windows = [np.lib.stride_tricks.sliding_window_view(x, (24, 24, 3))[:, :, 0] for x in scales]
    for crop in crops.batch(0, 6, 24):
        assert any(
            (view[:, :, 0, 0] == face[0, 0]).all(axis=-1).any() and (view == face).all(axis=(2, 3, 4)).any()
            for face in (crop, crop[:, ::-1])
            for view in windows
        )


def test_a_photograph_smaller_than_the_crop_is_filled_up_by_its_edge(tmp_path):
    Image.fromarray(np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3)).save(tmp_path / "tiny.png")
    for crop in PhotoCrops([(1.0, tmp_path)]).batch(0, 4, 16):
        assert (crop[9:] == crop[9]).all()


def test_a_folder_without_photographs_and_a_quantizer_without_averages_are_refused(photos, tmp_path):
    with pytest.raises(InputError, match="expected photographs"):
        PhotoCrops([(1.0, tmp_path)])
    with pytest.raises(ConfigError, match="EmaQuantizer"):
        fit(vqtok.build("vqgan-f16-1024", channels=32), PhotoCrops([(1.0, photos)]), [], RECIPE, tmp_path / "run")
