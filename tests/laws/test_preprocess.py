"""Laws of preprocessing: exact round trips, padding, the arithmetic bit by bit, and sizes worked out by hand."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tests.hostile.image_kinds import picture, save
from vqtok.errors import ConfigError, ImageError
from vqtok.images import Limits, PreprocessSpec, from_pixels, padded_size, to_pixels, to_rgb

RANGES = [
    {},
    {"low": 0.0, "high": 1.0},
    {"low": 0.0, "high": 255.0},
    {"low": 0.0, "high": 1.0, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    {"low": 0.0, "high": 1.0, "mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)},
    {"low": 0.1, "high": 0.9},
]
specs = st.builds(
    lambda row, multiple: PreprocessSpec(**row, multiple=multiple), st.sampled_from(RANGES), st.integers(1, 9)
)
images = st.tuples(st.integers(1, 20), st.integers(1, 20)).flatmap(lambda size: hnp.arrays(np.uint8, (*size, 3)))


@given(images, specs)
@settings(max_examples=150, deadline=None)
def test_round_trip_is_exact(array, spec):
    pixels = to_pixels(array, spec)
    assert pixels.dtype == np.float32
    assert pixels.shape == (3, *padded_size(array.shape[:2], spec))
    assert pixels.flags.c_contiguous
    assert np.array_equal(from_pixels(pixels, spec, array.shape[:2]), array)


@pytest.mark.parametrize("row", RANGES)
def test_round_trip_of_every_level(row):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    spec = PreprocessSpec(**row)
    assert np.array_equal(from_pixels(to_pixels(levels, spec), spec, (16, 16)), levels)


@given(images, specs)
@settings(max_examples=80, deadline=None)
def test_padding_repeats_the_edge_at_the_bottom_and_right(array, spec):
    height, width = padded_size(array.shape[:2], spec)
    assert height % spec.multiple == width % spec.multiple == 0
    assert 0 <= height - array.shape[0] < spec.multiple
    assert 0 <= width - array.shape[1] < spec.multiple
    rows = np.minimum(np.arange(height), array.shape[0] - 1)
    columns = np.minimum(np.arange(width), array.shape[1] - 1)
    padded = np.ascontiguousarray(array[rows][:, columns])
    assert np.array_equal(to_pixels(array, spec), to_pixels(padded, spec))


@given(images, specs, st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_padding_never_reaches_the_way_back(array, spec, seed):
    height, width = array.shape[:2]
    pixels = to_pixels(array, spec)
    noise = np.random.default_rng(seed).normal(size=pixels.shape).astype(np.float32)
    noise[:, :height, :width] = pixels[:, :height, :width]
    assert np.array_equal(from_pixels(noise, spec, (height, width)), array)


@pytest.mark.parametrize("row", RANGES)
def test_arithmetic_is_float32_in_the_order_that_is_written_down(row):
    spec = PreprocessSpec(**row)
    array = picture(64, 64)
    for channel in range(3):
        for level, value in zip(array[..., channel].ravel(), to_pixels(array, spec)[channel].ravel(), strict=True):
            x = np.float32(level) / np.float32(255)
            x = x * np.float32(spec.high - spec.low) + np.float32(spec.low)
            x = (x - np.float32(spec.mean[channel])) / np.float32(spec.std[channel])
            assert x.tobytes() == value.tobytes()


def test_ends_of_the_range():
    ends = np.array([[[0] * 3, [255] * 3]], np.uint8)
    assert to_pixels(ends, PreprocessSpec())[:, 0].tolist() == [[-1.0, 1.0]] * 3
    assert to_pixels(ends, PreprocessSpec(low=0.0))[:, 0].tolist() == [[0.0, 1.0]] * 3
    assert to_pixels(ends, PreprocessSpec(low=0.0, high=255.0))[:, 0].tolist() == [[0.0, 255.0]] * 3


def test_way_back_rounds_half_to_even_and_clips():
    spec = PreprocessSpec(low=0.0, high=255.0)
    values = np.array([0.5, 1.5, 2.5, 2.4999, -3, 254.5, 255.4, 900, 1e30, -1e30], np.float32)
    levels = from_pixels(values.reshape(1, 1, -1).repeat(3, axis=0), spec, (1, values.size))
    assert levels[0, :, 0].tolist() == [0, 2, 2, 2, 0, 254, 255, 255, 255, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_way_back_refuses_what_is_not_finite(bad):
    pixels = np.zeros((3, 2, 2), np.float32)
    pixels[1, 0, 1] = bad
    with pytest.raises(ConfigError, match="finite"):
        from_pixels(pixels, PreprocessSpec(), (2, 2))


def test_wrong_shapes_and_dtypes():
    spec = PreprocessSpec(multiple=4)
    for array in (
        np.zeros((2, 2), np.uint8),
        np.zeros((2, 2, 3)),
        np.zeros((0, 2, 3), np.uint8),
        np.zeros((3, 2, 2), np.uint8),
    ):
        with pytest.raises(ConfigError, match="uint8"):
            to_pixels(array, spec)
    for pixels, size in ((np.zeros((3, 4, 4)), (4, 4)), (np.zeros((3, 4, 4), np.float32), (5, 4)),
                         (np.zeros((3, 4, 4), np.float32), (0, 4))):  # fmt: skip
        with pytest.raises(ConfigError):
            from_pixels(pixels, spec, size)


# height, width, size; then by hand: resized (width, height) and (left, top) of the cut.
CENTER = [
    (20, 30, 10, (15, 10), (2, 0)),  # round(2.5) is 2
    (20, 34, 10, (17, 10), (4, 0)),  # round(3.5) is 4
    (34, 20, 10, (10, 17), (0, 4)),
    (33, 50, 16, (24, 16), (4, 0)),  # floor(24.24)
    (5, 7, 12, (16, 12), (2, 0)),  # enlarged: floor(16.8)
    (9, 9, 9, (9, 9), (0, 0)),
]


@pytest.mark.parametrize("filter", ["bicubic", "lanczos", "bilinear", "box"])
@pytest.mark.parametrize(("height", "width", "size", "resized", "at"), CENTER)
def test_center(height, width, size, resized, at, filter):
    array = picture(height, width)
    left, top = at
    image = Image.fromarray(array).resize(resized, getattr(Image, filter.upper()))
    wanted = np.array(image)[top : top + size, left : left + size]
    assert np.array_equal(to_rgb(array, PreprocessSpec(resize="center", size=size, filter=filter)), wanted)


# height, width, size; the box halvings, the last resize, (left, top), each as (width, height) by hand.
ADM = [
    (20, 30, 10, [(15, 10)], (15, 10), (2, 0)),
    (43, 90, 10, [(45, 21), (22, 10)], (22, 10), (6, 0)),
    (39, 33, 10, [(16, 19)], (10, 12), (0, 1)),  # 19 * 10 / 16 = 11.875
    (5, 7, 12, [], (17, 12), (2, 0)),  # 16.8 rounds up, and (17 - 12) // 2
]


@pytest.mark.parametrize(("height", "width", "size", "halves", "resized", "at"), ADM)
def test_adm(height, width, size, halves, resized, at):
    array = picture(height, width)
    image = Image.fromarray(array)
    for half in halves:
        image = image.resize(half, Image.BOX)
    left, top = at
    wanted = np.array(image.resize(resized, Image.BICUBIC))[top : top + size, left : left + size]
    assert np.array_equal(to_rgb(array, PreprocessSpec(resize="adm", size=size)), wanted)


def test_box_by_hand():
    blocks = np.array([[0, 100, 7, 9], [50, 50, 7, 9]], np.uint8)[..., None].repeat(3, axis=2)
    spec = PreprocessSpec(resize="stretch", size=1, filter="box")
    assert to_rgb(blocks, spec)[0, 0].tolist() == [29] * 3  # 232 / 8
    spec = PreprocessSpec(resize="center", size=1, filter="box")
    assert to_rgb(blocks, spec)[0, 0].tolist() == [50] * 3  # the left block: round(0.5) is 0


def test_none_keeps_the_true_size_and_policies_are_the_spec_s():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = save(picture(7, 9, 4), "PNG", exif=exif)
    assert to_rgb(data, PreprocessSpec(multiple=16)).shape == (9, 7, 3)
    kept = to_rgb(data, PreprocessSpec(exif="ignore", alpha="keep"))
    assert np.array_equal(kept, np.array(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("resize", ["center", "adm"])
def test_resizing_a_thin_image_is_no_bomb(resize):
    thin = np.zeros((1, 65535, 3), np.uint8)
    with pytest.raises(ImageError, match="too narrow") as caught:
        to_rgb(thin, PreprocessSpec(resize=resize, size=256), name="thin\x07.png")
    assert caught.value.kind == "too_many_pixels"
    assert r"thin\x07.png: " in str(caught.value)
    assert to_rgb(thin, PreprocessSpec(resize="stretch", size=256)).shape == (256, 256, 3)
    with pytest.raises(ImageError):
        to_rgb(
            np.zeros((2, 2, 3), np.uint8), PreprocessSpec(resize="stretch", size=100), limits=Limits(max_pixels=9999)
        )


@given(specs)
def test_a_spec_survives_json(spec):
    assert PreprocessSpec.from_config(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


@pytest.mark.parametrize(
    ("config", "says"),
    [({"multipel": 8}, "did you mean 'multiple'"), ({"qqqqq": 1}, "known are algorithm"),
     ({"multiple": "8"}, "multiple"),
     ({"multiple": 8.0}, "multiple"), ({"multiple": True}, "multiple"), ({"multiple": None}, "multiple"),
     ({"multiple": 0}, "multiple"), ({"low": float("nan")}, "low"), ({"low": "0"}, "low"), ({"mean": [0, 0]}, "mean"),
     ({"resize": "center"}, "size"), ({"size": 8}, "size"), ({"resize": "centre", "size": 8}, "resize"),
     ({"resize": "adm", "size": 8, "filter": "box"}, "bicubic"), ({"low": 1.0}, "low below high"),
     ({"std": [1, 0, 1]}, "std"), ({"low": 1e9, "high": 1e9 + 1}, "256 levels"),
     ({"low": -1e308, "high": 1e308}, "levels"),
     ({"algorithm": "pil-2"}, "pil-1"), ({"alpha": object()}, "plain JSON"), ({"a\x1b": 1}, r"a\x1b")],
)  # fmt: skip
def test_bad_configs_teach(config, says):
    with pytest.raises(ConfigError) as caught:
        PreprocessSpec.from_config(config)
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_spec_is_frozen_and_hashable():
    spec = PreprocessSpec()
    with pytest.raises(ValueError, match="frozen"):
        spec.low = 0.0
    assert hash(spec) == hash(PreprocessSpec())
