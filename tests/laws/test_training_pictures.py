"""Laws of a training's pictures and curves: what is drawn is what is there."""

import importlib.util
import math
import sys

import numpy as np
import pytest
from PIL import Image

from vqtok.errors import ConfigError
from vqtok.evaluation.colours import ALARM
from vqtok.evaluation.metrics import psnr
from vqtok.evaluation.token_maps import token_map
from vqtok.training.curves import _PANELS, curves_of, curves_picture, draw_curves
from vqtok.training.pictures import (
    draw_growth,
    growth_picture,
    picture_path,
    validation_grid,
    validation_picture,
    write_picture,
)
from vqtok.training.tensorboard import Board
from vqtok.types import Tokens

LEFT, TOP, STEP, DOWN = 24, 78, 268, 282  # of the first panel, and to the next across and down


def photos(sizes, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 250, (*size, 3), dtype=np.uint8) for size in sizes]


def tokens(size, patch: int = 8) -> Tokens:
    h, w = -(-size[0] // patch), -(-size[1] // patch)
    ids = np.arange(h * w)
    return Tokens(ids, np.array([0, h * w]), np.array([[1, h, w]]), np.array([size]), 4096, ("a",), "")


def panel(picture: np.ndarray, row: int, column: int, height: int, width: int) -> np.ndarray:
    top, left = TOP + row * DOWN, LEFT + column * STEP
    return picture[top : top + height, left : left + width]


SIZES = [(256, 256), (300, 500), (400, 64), (64, 60), (32, 32), (200, 256), (256, 256), (255, 257), (256, 256)]


def middle(image: np.ndarray) -> np.ndarray:
    top, left = max(0, (image.shape[0] - 256) // 2), max(0, (image.shape[1] - 256) // 2)
    image = image[top : top + 256, left : left + 256]
    factor = max(1, 256 // max(image.shape[:2])) if max(image.shape[:2]) < 256 else 1
    return np.kron(image, np.ones((factor, factor, 1), np.uint8))


def test_the_middle_of_each_image_stands_above_that_of_its_reconstruction_and_its_tokens():
    above, below = photos(SIZES), photos(SIZES, 1)
    picture = validation_grid(above, below, [tokens(size) for size in SIZES], "step 1")
    assert picture.shape[1] == LEFT + 7 * STEP + 256 + 24, "eight are shown"
    for i in range(8):
        for row, image in ((0, above[i]), (1, below[i])):
            wanted = middle(image)
            assert np.array_equal(panel(picture, row, i, *wanted.shape[:2]), wanted), (row, i)
        h, w = SIZES[i]
        drawn = token_map(np.arange(-(-h // 8) * -(-w // 8)).reshape(-(-h // 8), -(-w // 8)), (8, 8))[:h, :w]
        assert np.array_equal(panel(picture, 2, i, *middle(drawn).shape[:2]), middle(drawn)), i


def test_the_numbers_are_those_of_the_whole_images(monkeypatch):
    from vqtok.evaluation.page import Page

    said = []
    monkeypatch.setattr(Page, "text", lambda self, at, text, *_: said.append(text))
    above, below = photos(SIZES[:3]), photos(SIZES[:3], 1)
    below[2] = above[2]
    validation_grid(above[:2], below[:2], [], "step 1,000")
    found = [psnr(a, b) for a, b in zip(above[:2], below[:2], strict=True)]
    assert said[0] == f"step 1,000   ·   {np.mean(found):.2f} dB over these 2"
    assert said[1:] == ["original", f"from tokens, {found[0]:.2f} dB", "", f"{found[1]:.2f} dB"]
    said.clear()
    validation_grid(above[2:], below[2:], [], "")
    assert said[-1] == "from tokens, nothing lost"


def test_tokens_that_lie_in_no_grid_leave_the_pictures():
    size = (256, 256)
    broken = Tokens(np.arange(5), np.array([0, 5]), np.array([[1, 32, 32]]), np.array([size]), 64, ("a",), "")
    with_none = validation_grid(photos([size]), photos([size], 1), [broken], "a")
    assert np.array_equal(with_none, validation_grid(photos([size]), photos([size], 1), [], "a"))


@pytest.mark.parametrize("counts", [(0, 0, 0), (2, 1, 2), (2, 2, 1)])
def test_other_counts_are_refused(counts):
    above, below, _ = (photos([(32, 32)] * n) for n in counts)
    with pytest.raises(ConfigError, match="as many"):
        validation_grid(above, below, [tokens((32, 32))] * counts[2], "a")


@pytest.mark.parametrize("size", [(256, 256), (128, 96)])
def test_growth_shows_the_first_image_at_each_validation_and_the_original(tmp_path, size):
    assert growth_picture(tmp_path) is None
    original = photos([size, size])
    steps = [100 * (i + 1) for i in range(8)]
    for step in steps:
        validation_picture(original, photos([size, size], step), [], picture_path(tmp_path, step))
    (tmp_path / "pictures" / "00000450.png").write_bytes(b"not a picture")
    draw_curves(tmp_path, [])
    assert not (tmp_path / "pictures" / "curves.png").exists()
    draw_curves(tmp_path, rows())
    draw_growth(tmp_path)
    draw_growth(tmp_path)  # it does not grow on itself
    picture = np.asarray(Image.open(tmp_path / "pictures" / "growth.png"))
    assert np.array_equal(picture, growth_picture(tmp_path))
    for i, image in enumerate([*(photos([size], step)[0] for step in steps), original[0]]):
        wanted = middle(image)
        assert np.array_equal(panel(picture, i // 6, i % 6, *wanted.shape[:2]), wanted), i


def test_growth_of_a_long_training_shows_the_first_and_the_last(tmp_path):
    write_picture(validation_grid(photos([(32, 32)]), photos([(32, 32)], 1), [], ""), picture_path(tmp_path, 1))
    template = picture_path(tmp_path, 1).read_bytes()
    for step in range(2, 100):
        picture_path(tmp_path, step).write_bytes(template)
    first, last = photos([(32, 32)] * 2, 7)
    validation_picture(photos([(32, 32)]), [first], [], picture_path(tmp_path, 1))
    validation_picture(photos([(32, 32)]), [last], [], picture_path(tmp_path, 99))
    picture = growth_picture(tmp_path)
    assert np.array_equal(panel(picture, 0, 0, 256, 256), middle(first))
    assert np.array_equal(panel(picture, 3, 4, 256, 256), middle(last)), "23 of them, then the original"
    assert np.array_equal(panel(picture, 3, 5, 256, 256), middle(photos([(32, 32)])[0]))


def test_a_picture_is_written_as_it_is_and_again(tmp_path):
    for seed in (0, 1):
        (pixels,) = photos([(20, 30)], seed)
        write_picture(pixels, tmp_path / "new" / "a.png")
        assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), pixels)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


# Curves --------------------------------------------------------------------------------------------------------------


def rows(odd: int = 0) -> list[dict]:
    found = []
    for step in range(100, 2001, 100):
        losses = {"l2": 1.0 / step, "commitment": "nan" if step == odd else 0.01}
        found.append({"event": "train", "step": step, "losses": losses, "total": 1.0, "gradient_norm": 0.1})
        found.append({"event": "validate", "step": step, "psnr": step / 100})
    return found


def test_curves_have_the_points_of_the_log():
    curves = curves_of(rows(odd=700), _PANELS[0])
    assert curves["losses.l2"] == [(float(step), 1.0 / step) for step in range(100, 2001, 100)]
    assert [x for x, _ in curves["losses.commitment"]] == [float(step) for step in range(100, 2001, 100) if step != 700]
    assert curves_of(rows(), _PANELS[1]) == {"psnr": [(float(step), step / 100) for step in range(100, 2001, 100)]}


def red(picture: np.ndarray) -> int:
    """Pixels in the hue of alarms, however pale: its green and blue are one."""
    r, g, b = np.moveaxis(picture.astype(int), 2, 0)
    assert ALARM[1] == ALARM[2]
    return int(((np.abs(g - b) < 12) & (r - g > 40)).sum())


def test_an_alarm_is_a_red_line_in_each_chart():
    quiet = curves_picture(rows(), "run")
    loud = curves_picture(
        [{**row, "gradient_norm": 1e-9} if row["step"] > 1000 and "total" in row else row for row in rows()], "run"
    )
    assert red(quiet) == 0
    assert red(loud) > 3 * 170, "three charts of 180 pixels"


@pytest.mark.parametrize(
    "log",
    [
        [],
        [{"event": "train", "step": 5, "losses": {"l2": 0.5}}],
        [{"event": "train", "step": i, "losses": {"l2": 0.0, "kl": -1.0}, "usage": 1.0} for i in (1, 2)],
        [{"event": "train", "step": i, "total": "nan", "losses": {"l2": "nan"}} for i in (1, 2)],
    ],
)
def test_odd_logs_have_curves_too(log):
    picture = curves_picture(log, "run")
    assert picture.dtype == np.uint8
    assert (picture != 255).any()


# TensorBoard ---------------------------------------------------------------------------------------------------------


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="TensorBoard is not installed")
def test_tensorboard_gets_the_rows_and_hides_what_is_done_again(tmp_path):
    said = []
    board = Board(tmp_path, 0, said.append)
    for step in (100, 200, 300):
        board.write({"event": "train", "step": step, "losses": {"l2": 1.0 / step}, "total": "nan"})
    board.write({"event": "validate", "step": 300, "psnr": 20.5})
    board.write({"event": "alarm", "step": 300, "name": "nan", "message": "seen", "remedy": "helps"})
    board.picture(300, photos([(16, 24)])[0])
    board.close()
    found = events(tmp_path)
    assert [(x.step, x.value) for x in found.Scalars("train/losses/l2")] == [
        (step, pytest.approx(1.0 / step)) for step in (100, 200, 300)
    ]
    assert all(math.isnan(x.value) for x in found.Scalars("train/total"))
    assert found.Scalars("validate/psnr")[0].value == 20.5
    assert (found.Images("validation")[0].width, found.Images("validation")[0].height) == (24, 16)
    before = sorted(tmp_path.iterdir())
    Board(tmp_path, 200, said.append).close()
    assert sorted(tmp_path.iterdir()) == before, "who writes nothing, as other processes do, leaves no file"
    again = Board(tmp_path, 200, said.append)
    again.write({"event": "train", "step": 300, "losses": {"l2": 9.0}})
    again.close()
    assert [(x.step, round(x.value, 4)) for x in events(tmp_path).Scalars("train/losses/l2")] == [
        (100, 0.01), (200, 0.005), (300, 9.0),
    ]  # fmt: skip
    assert said == []


def test_without_tensorboard_one_line_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    said = []
    board = Board(tmp_path, 0, said.append)
    board.write({"event": "train", "step": 1, "total": 1.0})
    board.picture(1, photos([(8, 8)])[0])
    board.close()
    assert len(said) == 1, "once, however much is written"
    assert "pip install 'vqtok[train]'" in said[0]
    assert not [*tmp_path.iterdir()]
