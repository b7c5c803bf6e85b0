"""Laws of decoding: colour, depth, alpha and orientation against arithmetic written down a second time."""

import io
import subprocess
import sys
import threading
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFile, ImageOps

from tests.hostile.image_kinds import chunk, picture, png_of, save
from vqtok.errors import ConfigError, ImageError
from vqtok.images import decode

sizes = st.tuples(st.integers(1, 19), st.integers(1, 19))


def arrays(channels, dtype=np.uint8):
    return sizes.flatmap(lambda size: hnp.arrays(dtype, (*size, channels)))


def nearest(values):
    """Each value as an integer, rounded to nearest, in exact arithmetic."""
    return np.vectorize(lambda v: int(v + Fraction(1, 2)), otypes=[np.uint8])(values)


@given(arrays(3))
@settings(max_examples=60, deadline=None)
def test_lossless_files_give_their_pixels(array):
    for source in (array, save(array, "PNG"), save(array, "BMP"), save(array, "WEBP"), Image.fromarray(array)):
        assert np.array_equal(decode(source), array)


@given(arrays(4))
@settings(max_examples=40, deadline=None)
def test_alpha_is_composited_in_exact_arithmetic(array):
    colour, opacity = array[..., :3].astype(int), array[..., 3:].astype(int)
    for alpha, behind in (("white", 255), ("black", 0)):
        flat = nearest((colour * opacity + behind * (255 - opacity)) * Fraction(1, 255))
        for source in (array, save(array, "PNG"), Image.fromarray(array)):
            assert np.array_equal(decode(source, alpha=alpha), flat)
    assert np.array_equal(decode(array, alpha="keep"), array[..., :3])


def test_alpha_in_an_image_taller_than_a_band():
    array = picture(700, 3, 4)
    whole = decode(array)
    assert all(np.array_equal(whole[i], decode(array[i : i + 1])[0]) for i in range(700))


def test_keep_is_what_plain_convert_gives():
    rgba = Image.fromarray(picture(9, 9, 4))
    palette = Image.fromarray(picture(9, 9)).quantize(16)
    palette.info["transparency"] = 3
    for image in (rgba, rgba.convert("LA"), palette, rgba.convert("RGBa")):
        wanted = image.convert("RGBA").convert("RGB")
        assert np.array_equal(decode(image, alpha="keep"), np.array(wanted))


@given(st.integers(1, 4).flatmap(lambda channels: arrays(channels, np.uint16)))
@settings(max_examples=60, deadline=None)
def test_16_bit_files_scale_to_the_nearest_level(array):
    data = png_of(array, 16)
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.kind == "depth"
    scaled = nearest(array.astype(object) * Fraction(255, 65535))
    assert np.array_equal(decode(data, depth16="scale", alpha="white"), decode_8_bit(scaled))


def decode_8_bit(array):
    return decode(png_of(array))


def test_every_16_bit_level():
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    wanted = np.array([int(Fraction(v, 257) + Fraction(1, 2)) for v in range(65536)]).reshape(256, 256)
    for image in (Image.fromarray(levels), Image.fromarray(levels.astype(np.int32))):
        assert np.array_equal(decode(image, depth16="scale")[..., 0], wanted)


def test_16_bit_key_colour_is_compared_before_scaling():
    array = np.array([[[1000, 2000, 3000], [1000, 2000, 3001]]], np.uint16)
    data = png_of(array, 16, before=chunk(b"tRNS", b"\x03\xe8\x07\xd0\x0b\xb8"))
    assert decode(data, depth16="scale").tolist() == [[[255, 255, 255], [4, 8, 12]]]


def test_16_bit_png_is_turned_by_exif_behind_its_pixels():
    exif = Image.Exif()
    exif[0x0112] = 6
    array = (picture(5, 7).astype(np.uint16)) * 257
    data = png_of(array, 16, after=chunk(b"eXIf", exif.tobytes()[6:]))
    assert np.array_equal(decode(data, depth16="scale"), np.rot90(picture(5, 7), -1))


@pytest.mark.parametrize(
    ("mode", "value", "level"), [("F", 0.5, 128), ("F", 1.0, 255), ("F", 1.01, None), ("F", -0.1, None),
                                 ("F", float("nan"), None), ("I", 65535, 255), ("I", -1, None), ("I", 65536, None)]
)  # fmt: skip
def test_wide_modes(mode, value, level):
    image = Image.new(mode, (2, 2), value)
    for depth16 in ("refuse", "scale"):
        if level is None or depth16 == "refuse":
            with pytest.raises(ImageError) as caught:
                decode(image, depth16=depth16)
            assert caught.value.kind == "depth"
        else:
            assert (decode(image, depth16=depth16) == level).all()


def test_orientation_of_an_image_object_and_of_none():
    for value in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = value
        image = Image.open(io.BytesIO(save(picture(), "JPEG", exif=exif)))
        assert np.array_equal(decode(image), np.array(ImageOps.exif_transpose(image)))
        assert np.array_equal(decode(image, exif="ignore"), np.array(image))


def test_greys_and_shapes_of_arrays():
    grey = picture(4, 6, 1)
    for source in (grey, grey[..., 0], grey[..., 0][:, ::-1][:, ::-1]):
        assert np.array_equal(decode(source), grey.repeat(3, axis=2))


@pytest.mark.parametrize(
    ("source", "kind"),
    [(np.zeros((3, 4, 5), np.uint8), "format"), (np.zeros(4, np.uint8), "format"),
     (np.zeros((0, 4, 3), np.uint8), "empty"), (np.zeros((4, 4, 3)), "depth"),
     (7, "format"), (None, "format"), (Image.new("LAB", (2, 2)), "format"),
     (Image.new("RGB", (0, 5)), "empty")],
)  # fmt: skip
def test_unusable_sources(source, kind):
    with pytest.raises(ImageError) as caught:
        decode(source)
    assert caught.value.kind == kind


@pytest.mark.parametrize("policy", [{"exif": "yes"}, {"alpha": "pink"}, {"depth16": True}])
def test_unknown_policy(policy):
    with pytest.raises(ConfigError, match="expected a policy among"):
        decode(picture(), **policy)


def test_the_source_is_left_alone():
    array = picture()
    image = Image.fromarray(array).quantize(8)
    before = image.copy()
    for source in (array, image):
        result = decode(source)
        assert result.flags.writeable
        assert result.flags.c_contiguous
        result[:] = 0
    assert np.array_equal(array, picture())
    assert image == before
    assert image.mode == "P"


def test_state_of_others_is_left_alone():
    state = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    filters = list(warnings.filters)
    noisy = save(
        picture(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x63\0\0\0\xff\xff\0\0" + bytes(4)
    )
    with pytest.warns(UserWarning, match="EXIF|Tag|Truncated"):
        Image.open(io.BytesIO(noisy)).getexif()
    threads = [threading.Thread(target=lambda: [decode(noisy) for _ in range(30)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == filters
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == state


def test_import_is_cheap_and_decoding_loads_no_other_plugin(tmp_path):
    code = "import sys, vqtok.images; print('torch' in sys.modules, 'PIL.EpsImagePlugin' in sys.modules)"
    code += "\nfor path in sys.argv[1:]:\n try: vqtok.images.decode(path)"
    code += "\n except vqtok.errors.ImageError as error: print(error.kind)"
    code += "\nprint('PIL.EpsImagePlugin' in sys.modules)"
    path, broken = tmp_path / "a.webp", tmp_path / "broken.png"
    path.write_bytes(save(picture(), "WEBP"))
    broken.write_bytes(save(picture(), "PNG")[:10])
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run(
        [sys.executable, "-c", code, path, broken], cwd=root, capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == ["False", "False", "truncated", "False"]
