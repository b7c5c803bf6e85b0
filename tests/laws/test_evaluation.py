"""Laws of `evaluate` and its metrics: formulas, what identity gives, and that grouping and order change nothing."""

import hashlib
import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

import vqtok
from vqtok import streaming
from vqtok.adapters.metric_weights import PUBLISHED
from vqtok.errors import ConfigError, NonFiniteLatents, ResourceError
from vqtok.evaluation import distances, metric_table, scores, set_meters
from vqtok.evaluation.distances import kernel_distance
from vqtok.evaluation.metric_table import METRICS, Metrics, Opened, open_metrics
from vqtok.evaluation.metrics import bits_per_pixel, psnr
from vqtok.evaluation.protocol import cropped_spec, report
from vqtok.evaluation.scores import evaluate
from vqtok.evaluation.shown import Shown, codes_picture
from vqtok.evaluation.usage import usage_of
from vqtok.images import PreprocessSpec

ASTRONAUT = Path(__file__).parents[1] / "golden" / "metrics" / "astronaut-256.png"


def astronaut() -> np.ndarray:
    return np.asarray(Image.open(ASTRONAUT))


def crops(side: int, step: int) -> list[np.ndarray]:
    a = astronaut()
    return [a[i : i + side, j : j + side] for i in range(0, 257 - side, step) for j in range(0, 257 - side, step)]


def opened(name: str) -> Opened:
    try:
        return open_metrics([name]).opened[name]
    except ResourceError as error:
        pytest.skip(str(error))


# Distances of sets ---------------------------------------------------------------------------------------------------


def stated_kernel_distance(x, y) -> float:
    """Gretton et al. 2012, equation 4, pair by pair."""

    def k(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    n = len(x)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    return sum(k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]) for i, j in pairs) / (n * (n - 1))


def test_kernel_distance_is_the_u_statistic_whatever_the_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(11, 5)), rng.normal(0.5, 1, size=(11, 5))
    expected = stated_kernel_distance(x, y)
    for block in (1, 4, 1024):
        monkeypatch.setattr(distances, "_BLOCK", block)
        assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-12)
    order = rng.permutation(11)
    assert kernel_distance(x[order], y[order]) == pytest.approx(expected, rel=1e-12)
    assert kernel_distance(x, x) == 0
    with pytest.raises(ConfigError, match="N >= 2"):
        kernel_distance(x[:1], y[:1])


def test_kernel_distance_is_torch_fidelitys():
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(20, 7)), rng.normal(0.3, 2, size=(20, 7))
    kernels = [(a @ b.T / 7 + 1) ** 3 for a, b in ((x, x), (x, y), (y, y))]
    assert kernel_distance(x, y) == pytest.approx(kid.mmd2(*kernels, mmd_est="u-statistic"), rel=1e-10)


def test_kid_is_near_zero_between_halves_and_larger_the_more_is_lost():
    meter = opened("kid-efflite0").meter
    # Neighbours overlap, so that both halves show the same.
    parts = crops(64, 24)
    features = np.concatenate([meter.features(part) for part in parts])
    halves = abs(meter.distance(features[0:80:2], features[1:81:2]))

    def blurred(sigma: float) -> float:
        images = [np.asarray(Image.fromarray(part).filter(ImageFilter.GaussianBlur(sigma))) for part in parts]
        return meter.distance(features, np.concatenate([meter.features(image) for image in images]))

    found = [blurred(sigma) for sigma in (0.0, 1.0, 3.0)]
    assert found[0] == pytest.approx(0, abs=1e-9)
    assert halves < found[1] < found[2]


def test_tiles_are_disjoint_and_from_the_middle_and_small_images_are_whole():
    image = np.random.default_rng(0).integers(0, 256, (600, 300, 3), dtype=np.uint8)
    tiles = set_meters.tiles(image)
    assert len(tiles) == 2
    assert np.array_equal(np.concatenate([*tiles]), image[44:556, 22:278])
    assert np.array_equal(set_meters.tiles(image[:255]), image[None, :255])


def test_frechet_distance_is_the_formula():
    pytest.importorskip("torch_fidelity")
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 4)) @ rng.normal(size=(4, 4))
    y = rng.normal(1, 1, size=(200, 4)) @ rng.normal(size=(4, 4))
    (a, b), (m, n) = ([np.cov(z, rowvar=False) for z in (x, y)], [z.mean(axis=0) for z in (x, y)])
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(values) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ b @ root)).sum()
    expected = ((m - n) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * trace
    meter = set_meters.InceptionMeter(torch.nn.Identity(), torch.device("cpu"))
    assert meter.distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_rfid_reads_inception_from_a_file_and_never_by_pickle(tmp_path, monkeypatch):
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    class Fresh(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            return None

    torch.save({}, empty := io.BytesIO())
    empty.seek(0)
    name = PUBLISHED["inception-fid"].file
    torch.save(Fresh("fresh", ["2048"], feature_extractor_weights_path=empty).state_dict(), tmp_path / name)
    monkeypatch.setitem(PUBLISHED, "inception-fid", replace(PUBLISHED["inception-fid"], sha256=""))
    found = open_metrics(["rfid"], weights=tmp_path).opened["rfid"]
    assert found.record["weights"][0]["sha256"] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    first, second = (found.meter.features(part) for part in crops(64, 128)[:2])
    assert first.shape == (1, 2048)
    assert found.meter.distance(np.concatenate([first, second]), np.concatenate([first, second])) < 1e-6

    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("was run",))

    torch.save(Trap(), tmp_path / name)
    with pytest.raises(Exception, match="expected"):
        open_metrics(["rfid"], weights=tmp_path)


# Metrics of one image ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "same"), [("psnr", math.inf), ("ssim", 1.0), ("st-lpips-alex", 0.0), ("st-lpips-vgg", 0.0)]
)
def test_an_image_beside_itself(name, same):
    meter, image = opened(name).meter, astronaut()[:64, 100:164]
    other = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(2)))
    assert meter(image, image) == pytest.approx(same, abs=1e-12)
    worse = meter(image, other)
    assert worse < same if METRICS[name].better == "higher" else worse > same + 0.01


def test_ssim_of_flat_images_is_what_is_left_of_its_formula():
    meter = opened("ssim").meter
    for a, b in ((10, 200), (100, 90), (0, 255)):
        c = (0.01 * 255) ** 2
        images = [np.full((20, 30, 3), level, np.uint8) for level in (a, b)]
        assert meter(*images) == pytest.approx((2 * a * b + c) / (a * a + b * b + c), rel=1e-9)


# evaluate ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images():
    a = astronaut()
    return [
        ("b", a[:64, :64]),
        ("a", a[64:128, :64]),
        ("wide", a[:40, :100]),
        ("tiny", a[:8, :9]),
        ("c", a[:64, 64:128]),
    ]


def test_numbers_are_those_of_tokenize_and_detokenize(photo_f8, images):
    found = evaluate(photo_f8, images, ["psnr", "ssim"])
    assert [row.key for row in found.images] == ["b", "a", "wide", "tiny", "c"]
    tokens = photo_f8.tokenize([array for _, array in images])
    back = [np.asarray(image) for image in photo_f8.detokenize(tokens)]
    for row, one, (_, array), image in zip(found.images, tokens, images, back, strict=True):
        assert row.values["psnr"] == psnr(array, image)
        assert (row.height, row.width, row.tokens) == (*array.shape[:2], one.ids.size)
        assert row.sha256 == hashlib.sha256(array.tobytes()).hexdigest()
    values = [row.values["psnr"] for row in found.images]
    assert found.summaries["psnr"].value == pytest.approx(np.mean(values), rel=1e-12)
    assert found.bits_per_pixel == pytest.approx(bits_per_pixel(tokens), rel=1e-12)
    (ours,), (theirs,) = found.usage, usage_of(tokens)
    assert np.array_equal(ours.counts, theirs.counts)
    assert "ssim" not in found.images[3].values, "8 pixels are less than its window"
    assert found.summaries["ssim"].samples == 4


@pytest.mark.parametrize("family", ["rqvae-tiny", "vqvae2-tiny", "dynamic-tiny"])
def test_every_codebook_is_counted_and_every_kind_of_tokens_is_drawn(family):
    tokenizer = vqtok.build(family)
    size = tokenizer.spec.size or 64
    parts = [("x", astronaut()[:size, :size]), ("y", astronaut()[-size:, -size:])]
    found, tokens = evaluate(tokenizer, parts), tokenizer.tokenize([array for _, array in parts])
    expected = usage_of(tokens)
    assert len(expected) == int(tokens.grids[0, 0])
    for ours, theirs in zip(found.usage, expected, strict=True):
        assert np.array_equal(ours.counts, theirs.counts)
    assert found.bits_per_pixel == pytest.approx(bits_per_pixel(tokens), rel=1e-12)
    assert len(np.unique(codes_picture(Shown("", parts[0][1], parts[0][1], tokens[0], "")).reshape(-1, 3), axis=0)) > 1


def test_order_grouping_and_names_change_nothing(photo_f8, images, monkeypatch):
    first = evaluate(photo_f8, images)
    monkeypatch.setattr(scores, "_CHUNK_IMAGES", 1)
    alone = evaluate(photo_f8, images)
    other = evaluate(photo_f8, [(f"{key}!", array) for key, array in images[::-1]])
    assert alone.images == first.images
    assert alone.summaries == first.summaries
    assert {row.sha256: row.values for row in other.images} == {row.sha256: row.values for row in first.images}
    assert other.summaries["psnr"].value == first.summaries["psnr"].value
    assert other.images_sha256 == first.images_sha256
    assert evaluate(photo_f8, images[:4]).images_sha256 != first.images_sha256


def test_features_of_a_set_are_in_the_order_of_its_images(photo_f8, images):
    class Mean:
        def features(self, image):
            return image.mean(axis=(0, 1))[None]

        def distance(self, originals, others):
            self.seen = originals
            return 0.5

    meter = Mean()
    found = evaluate(photo_f8, images, Metrics({"kid-efflite0": Opened(meter, {})}))
    assert np.array_equal(meter.seen, np.stack([array.mean(axis=(0, 1)) for _, array in images]))
    assert (found.summaries["kid-efflite0"].value, found.summaries["kid-efflite0"].samples) == (0.5, 5)
    one = evaluate(photo_f8, images[:1], Metrics({"kid-efflite0": Opened(meter, {})}))
    assert math.isnan(one.summaries["kid-efflite0"].value)


def test_an_image_that_the_model_cannot_take_is_refused_alone(photo_f8, images, monkeypatch):
    decode, refused = streaming.detokenize, []

    def failing(tokenizer, tokens):
        if "a" in tokens.keys:
            raise NonFiniteLatents(0)
        return decode(tokenizer, tokens)

    monkeypatch.setattr(streaming, "detokenize", failing)
    found = evaluate(photo_f8, images, refuse=lambda key, error: refused.append(key))
    assert refused == ["a"]
    assert [row.key for row in found.images] == ["b", "wide", "tiny", "c"]
    with pytest.raises(NonFiniteLatents):
        evaluate(photo_f8, images)


def test_an_image_without_loss_is_counted_and_left_out_of_the_mean(photo_f8, images, monkeypatch):
    decode, same = streaming.detokenize, dict(images)

    def kept(tokenizer, tokens):
        return (same["c"] if row.keys == ("c",) else next(decode(tokenizer, row)) for row in tokens)

    monkeypatch.setattr(streaming, "detokenize", kept)
    found = evaluate(photo_f8, images)
    lossy = [row.values["psnr"] for row in found.images if row.key != "c"]
    assert found.images[4].values["psnr"] == math.inf
    assert found.summaries["psnr"].value == pytest.approx(np.mean(lossy))
    told = report(found, photo_f8, photo_f8.spec, "none")
    assert (told["summary"]["psnr"]["lossless"], told["images"][4]["psnr"]) == (1, None)
    assert told["summary"]["psnr"]["samples"] == 4


def test_names_are_checked(photo_f8, images, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="'b' twice"):
        evaluate(photo_f8, [*images, images[0]])
    with pytest.raises(ConfigError, match="psnr, ssim, st-lpips-alex"):
        open_metrics(["fid"])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(metric_table, "METRICS", {name: METRICS[name] for name in ("psnr", "lpips-vgg")})
    missing = open_metrics()
    assert [*missing.opened] == ["psnr"]
    assert "vgg16-397923af.pth" in missing.not_computed["lpips-vgg"]
    with pytest.raises(ResourceError, match=r"lpips-vgg: .*vgg16-397923af\.pth"):
        open_metrics(["psnr", "lpips-vgg"])


def test_crops_are_those_of_preprocessing():
    spec = PreprocessSpec(multiple=8)
    assert cropped_spec(spec, "none") == spec
    assert cropped_spec(spec, "center:64") == spec.model_copy(update={"resize": "center", "size": 64})
    fixed = PreprocessSpec(resize="center", size=256)
    assert cropped_spec(fixed, "center:256") == fixed
    for wrong in ("center", "center:0", "ten", "center:64x", "random:3"):
        with pytest.raises(ConfigError, match="expected --crop"):
            cropped_spec(spec, wrong)
    with pytest.raises(ConfigError, match="256"):
        cropped_spec(fixed, "center:128")


@pytest.mark.parametrize("name", ["psnr", "ssim", "st-lpips-alex", "st-lpips-vgg", "kid-efflite0"])
def test_metrics_need_no_more_than_they_say(name):
    meter, least = opened(name).meter, METRICS[name].least
    image = astronaut()[:least, :least]
    value = meter.features(image).sum() if METRICS[name].whole else meter(image, 255 - image)
    assert math.isfinite(value)
