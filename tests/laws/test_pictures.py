"""Laws of the pictures of `vqtok inspect`: what is drawn is what is there, pixel for pixel where it can be."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from vqtok.errors import ConfigError
from vqtok.evaluation import neighbours as neighbours_module
from vqtok.evaluation.charts import Axis, Chart, histogram
from vqtok.evaluation.codebook_pictures import codebook_picture, survey
from vqtok.evaluation.colours import ACCENT, ALARM, EMPTY, GRID, INK, PAPER, code_colours, oklch, ramp
from vqtok.evaluation.neighbours import main_plane, neighbours
from vqtok.evaluation.page import Page, shortened, text_width
from vqtok.evaluation.token_maps import cells_for, code_grid, fitted, overlay, patch_size, token_map
from vqtok.evaluation.token_pictures import token_picture
from vqtok.evaluation.usage import usage_of
from vqtok.types import Tokens, concatenate


def tokens(ids, grid, size=None, *, vocab_size=64, key="a.png", keep=None) -> Tokens:
    """Tokens of one image."""
    ids = np.asarray(ids, np.int64).reshape(-1)
    size = size or (8 * grid[1], 8 * grid[2])
    selection = {} if keep is None else {"keep": np.asarray(keep, np.bool_).reshape(-1)}
    offsets = np.array([0, len(ids)])
    return Tokens(ids, offsets, np.array([grid]), np.array([size]), vocab_size, (key,), "", **selection)


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rows_of(picture: np.ndarray, column: int, colour, top: int, bottom: int) -> int:
    return int((picture[top:bottom, column] == colour).all(-1).sum())


# Colours -------------------------------------------------------------------------------------------------------------


def test_a_code_has_one_colour_everywhere_and_its_neighbours_look_different():
    colours = code_colours(np.arange(4096)).astype(int)
    some = np.array([4095, 7, 7, 300])
    assert np.array_equal(code_colours(some), colours[some])
    for step in range(1, 8):
        assert np.abs(colours[step:] - colours[:-step]).max(axis=1).min() > 20, step
    assert np.abs(colours - 255).max(axis=1).min() > 40, "no code looks like paper"


def test_no_chroma_is_grey_and_lightness_rises():
    grey = oklch(np.linspace(0, 1, 11), np.zeros(11), np.zeros(11)).astype(int)
    assert np.ptp(grey, axis=1).max() <= 1
    assert (np.diff(grey[:, 0]) > 0).all()
    weights = np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(ramp(np.linspace(0, 1, 32)).astype(float) @ weights) > 0).all(), "a darker colour is a lower value"


# Maps ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [(1, 1), (4, 4), (12, 12), (14, 10)])
def test_every_position_of_a_map_has_the_colour_of_its_code(cell):
    codes = np.random.default_rng(1).integers(-1, 64, (5, 7))
    picture = token_map(codes, cell)
    assert picture.shape == (5 * cell[0], 7 * cell[1], 3)
    apart = min(cell) >= 10
    for i in range(5):
        for j in range(7):
            block = picture[i * cell[0] : (i + 1) * cell[0], j * cell[1] : (j + 1) * cell[1]]
            colour = EMPTY if codes[i, j] < 0 else code_colours(codes[i, j][None])[0]
            assert (block[: cell[0] - apart, : cell[1] - apart] == colour).all(), (i, j)
            assert not apart or ((block[-1] == PAPER).all() and (block[:, -1] == PAPER).all())


def test_what_was_kept_lies_where_it_was_and_the_rest_is_empty():
    keep = np.array([[1, 0, 1], [0, 0, 1]])
    grid = code_grid(tokens([10, 11, 20, 21, 30, 31], (2, 2, 3), keep=keep))
    assert grid[..., 0].tolist() == [[10, -1, 20], [-1, -1, 30]]
    assert grid[..., 1].tolist() == [[11, -1, 21], [-1, -1, 31]]
    with pytest.raises(ConfigError, match="grids"):
        code_grid(tokens([1, 2, 3], (1, 2, 2)))


@pytest.mark.parametrize("cell", [(3, 3), (8, 12)])
def test_an_overlay_keeps_what_was_kept_and_dims_what_was_dropped(cell):
    keep = np.random.default_rng(2).random((6, 5)) < 0.5
    source = photo(6 * cell[0], 5 * cell[1])
    picture = overlay(source, keep, cell)
    inside = keep.repeat(cell[0], 0).repeat(cell[1], 1)
    grey = source.astype(np.float64) @ [0.299, 0.587, 0.114]
    pale = 255 - 0.35 * (255 - grey)
    assert np.abs(picture[~inside] - pale[~inside][:, None]).max() <= 0.5
    border = np.zeros_like(inside)
    for y in range(inside.shape[0]):
        for x in range(inside.shape[1]):
            around = [
                0 <= y + i < inside.shape[0] and 0 <= x + j < inside.shape[1] and inside[y + i, x + j]
                for i in (-2, 0, 2)
                for j in (-2, 0, 2)
            ]
            border[y, x] = inside[y, x] and not all(around)
    if cell == (3, 3):
        border[:] = False  # an outline of two pixels would leave nothing of three
    assert (picture[border] == INK).all()
    assert np.array_equal(picture[inside & ~border], source[inside & ~border])


def test_nothing_is_outlined_where_all_was_kept():
    source = photo(16, 16)
    assert np.array_equal(overlay(source, np.ones((2, 2), np.bool_), (8, 8)), source)


def test_a_photo_at_its_own_size_lies_on_the_grid_unscaled_and_goes_on_at_the_edges():
    source = photo(37, 50)
    row = tokens(np.zeros(35), (1, 5, 7), (37, 50))
    assert cells_for((37, 50), row, (40, 56)) == (8, 8)
    on_grid = fitted(source, row, (8, 8))
    assert on_grid.shape == (40, 56, 3)
    assert np.array_equal(on_grid[:37, :50], source)
    assert (on_grid[37:, :50] == source[-1]).all()
    assert (on_grid[:37, 50:] == source[:, -1:]).all()


def test_a_photo_of_another_shape_is_shown_in_its_own():
    """300 x 600 stretched to 224 x 224 by the model: patches of 14 x 14 are twice as wide as high in the photograph."""
    row = tokens(np.zeros(256), (1, 16, 16), (224, 224))
    assert cells_for((300, 600), row, (760, 548)) == (17, 34)
    assert fitted(photo(300, 600), row, (17, 34)).shape == (16 * 17, 16 * 34, 3)


@pytest.mark.parametrize("factor", [2, 4, 8, 16])
def test_a_patch_is_one_that_gives_the_grid_and_the_models_where_it_padded(factor):
    for height in range(3 * factor, 5 * factor):
        grid = -(-height // factor)
        found = patch_size((height, height), (grid, grid))[0]
        assert -(-height // found) == grid, height
        if height % grid:
            assert found == factor, height


# Usage and its picture -----------------------------------------------------------------------------------------------

COUNTS = [100, 10, 3, 1]


def used(counts=COUNTS, vocab_size=64) -> Tokens:
    ids = np.random.default_rng(3).permutation(np.repeat(np.arange(len(counts)) * 3 + 1, counts))
    return tokens(ids, (1, 1, len(ids)), vocab_size=vocab_size)


def test_usage_is_counted_a_codebook_over_all_images():
    rng = np.random.default_rng(4)
    parts = [tokens(rng.integers(0, 40, (3, 4, 2)), (2, 3, 4), key=str(i)) for i in range(3)]
    together = usage_of(concatenate(parts))
    for k in range(2):
        ids = np.concatenate([part.ids.reshape(-1, 2)[:, k] for part in parts])
        counts = sorted((int((ids == code).sum()) for code in set(ids.tolist())), reverse=True)
        assert together[k].counts.tolist() == counts
        shares = np.array(counts) / 36
        assert together[k].perplexity == pytest.approx(np.prod(shares**-shares), rel=1e-12)
        assert together[k].dead == 64 - len(counts)


def test_bars_are_as_high_as_counts_on_a_logarithmic_axis():
    picture = token_picture(used())
    # The map is one row of nine pixels a token; under it the chart, 200 high, and 668 wide right of its numbers.
    side = 1120 // sum(COUNTS)
    top, left = 112 + side + 24 + 40, 92
    right = 40 + side * sum(COUNTS)
    width = (right - left) / 4
    for i, count in enumerate(COUNTS):
        expected = 200 * np.log(count / 0.7) / np.log(1.3 * 100 / 0.7)
        column = int(left + (i + 0.5) * width)
        drawn = rows_of(picture, column, ACCENT, top, top + 200)
        assert abs(drawn - expected) <= 1, (count, drawn, expected)
        assert (picture[top + 199, column] == ACCENT).all() or (picture[top + 198, column] == ACCENT).all()
        seam = round(left + (i + 1) * width) - 1
        assert (picture[top + 150, seam] != ACCENT).any(), "bars this wide stand a pixel apart"


def test_the_bar_under_a_chart_is_filled_to_the_share_of_codes_that_occur():
    picture = token_picture(used(vocab_size=16))
    side = 1120 // sum(COUNTS)
    row = picture[112 + side + 24 + 40 + 200 + 58 + 4]
    filled, empty = (row == ACCENT).all(-1).sum(), (row == GRID).all(-1).sum()
    assert abs(filled / (filled + empty) - 4 / 16) < 2 / (filled + empty)


def test_the_map_stands_in_the_picture_pixel_for_pixel():
    row = tokens(np.random.default_rng(5).integers(0, 64, 40 * 60), (1, 40, 60))
    picture = token_picture(row)
    side = min(1120 // 60, 760 // 40)
    expected = token_map(row.ids.reshape(40, 60), (side, side))
    assert np.array_equal(picture[112 : 112 + 40 * side, 40 : 40 + 60 * side], expected)


def test_each_codebook_has_a_panel_and_at_most_five_have():
    grid = np.random.default_rng(6).integers(0, 64, (4, 5, 7))
    picture = token_picture(tokens(grid, (7, 4, 5)))
    side = ((1120 - 48) // 3) // 5
    panels = [token_map(grid[..., k], (side, side)) for k in range(7)]
    found = []
    for k, panel in enumerate(panels):
        left = 40 + (k % 3) * (panel.shape[1] + 24)
        top = 112 + 24 + (k // 3) * (panel.shape[0] + 48)
        window = picture[top : top + panel.shape[0], left : left + panel.shape[1]]
        found.append(window.shape == panel.shape and bool((window == panel).all()))
    assert found == [True] * 5 + [False] * 2


def test_the_photo_stands_beside_its_codes_on_the_same_grid():
    keep = np.random.default_rng(7).random((4, 4)) < 0.5
    row = tokens(np.arange(keep.sum()), (1, 4, 4), (56, 56), keep=keep)
    source = photo(100, 200)
    cell = cells_for((100, 200), row, (760, 548))
    left, right = overlay(fitted(source, row, cell), keep, cell), token_map(code_grid(row)[..., 0], cell)
    picture = token_picture(row, source)
    height, width = left.shape[:2]
    assert np.array_equal(picture[136 : 136 + height, 40 : 40 + width], left)
    assert np.array_equal(picture[136 : 136 + height, 64 + width : 64 + 2 * width], right)


def test_no_name_can_break_a_picture():
    for key, shown in (("a\nb\x1b[31m.png", r"a\nb\x1b[31m.png"), ("x/", "x"), ("a" * 500, None)):
        picture = token_picture(tokens([1], (1, 1, 1), key=key))
        if shown:
            assert np.array_equal(picture, token_picture(tokens([1], (1, 1, 1), key=shown)))
    assert text_width(shortened("a" * 500, 300, 26), 26) <= 300


@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 1, 3000), (1, 3000, 1), (6, 2, 3), (1, 1500, 1500)])
def test_every_shape_gives_a_picture_of_sensible_size(grid):
    picture = token_picture(tokens(np.arange(np.prod(grid)) % 64, grid))
    assert picture.shape[0] <= 2000
    assert picture.shape[1] <= 1200


def test_an_image_of_which_nothing_was_kept_is_drawn_too():
    nothing = tokens([], (1, 2, 2), keep=np.zeros(4))
    picture = token_picture(nothing, photo(16, 16))
    assert (picture == EMPTY).all(-1).any()
    assert usage_of(nothing)[0].perplexity == 0


def test_what_cannot_be_drawn_is_said():
    none = replace(tokens([], (1, 1, 1), keep=[0])[:0])
    with pytest.raises(ConfigError, match="at least one image"):
        token_picture(none)
    two = concatenate([tokens([1], (1, 1, 1), key=key) for key in "ab"])
    with pytest.raises(ConfigError, match="one image"):
        token_picture(two, photo(8, 8))
    with pytest.raises(ConfigError, match="at most 760 x 548"):
        token_picture(tokens(np.zeros(600), (1, 1, 600)), photo(8, 8))


# Charts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log", [False, True])
def test_round_values_lie_on_the_axis_and_are_few(log):
    for low, high in ((0.7, 2), (0.7, 40), (1, 1e6), (0.003, 0.004 if not log else 30)):
        ticks = Axis(low, high, log=log).ticks(6)
        assert 1 <= len(ticks) <= 8, (low, high)
        assert all(low <= tick <= high * (1 + 1e-12) for tick in ticks), (low, high, ticks)
        assert ticks == sorted(set(ticks))


def test_a_histogram_counts_every_value_once():
    values = np.random.default_rng(8).random(1000)
    edges, counts = histogram(values, 20)
    assert counts.sum() == 1000
    assert counts[3] == ((values >= edges[3]) & (values < edges[4])).sum()


def test_a_curve_passes_through_its_points():
    page = Page(300, 200)
    chart = Chart(page, (40, 20, 280, 160), Axis(0, 10), Axis(0, 100), "", "")
    xs = np.linspace(0, 10, 2000)
    chart.curve(xs, xs**2)
    picture = page.picture().astype(int)
    for x in (2.0, 5.0, 8.0):
        column = picture[:, round(40 + 24 * x)]
        at = np.abs(column - ACCENT).sum(-1).argmin()
        assert abs(at - (160 - 1.4 * x**2)) <= 2, x


# Codebooks -----------------------------------------------------------------------------------------------------------


def brute_force(codebook: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    apart = ((codebook[:, None].astype(np.float64) - codebook) ** 2).sum(-1) ** 0.5
    np.fill_diagonal(apart, np.inf)
    return apart.argmin(1), apart.min(1)


@pytest.mark.parametrize("block", [1, 300, 1 << 22])
def test_the_nearest_other_code_is_the_nearest_of_all_others(block, monkeypatch):
    monkeypatch.setattr(neighbours_module, "_BLOCK", block)
    codebook = np.random.default_rng(9).normal(5, 1, (150, 6)).astype(np.float32)
    codebook[[20, 99, 149]] = codebook[7]
    found = neighbours(codebook)
    nearest, distances = brute_force(codebook)
    assert np.array_equal(found.nearest, nearest)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-12)
    assert found.duplicates == 3
    assert (found.distances == 0).sum() == 4
    np.testing.assert_allclose(found.norms, (codebook.astype(np.float64) ** 2).sum(1) ** 0.5, rtol=1e-12)
    report = found.report()
    assert report["nearest_distance"]["0.5"] == pytest.approx(np.median(distances), rel=1e-5)
    assert report["norm"]["1"] == pytest.approx(found.norms.max(), rel=1e-5)


def test_of_a_large_codebook_some_codes_are_compared_with_all(monkeypatch):
    monkeypatch.setattr(neighbours_module, "_PAIRS", 150 * 40)
    codebook = np.random.default_rng(10).normal(size=(150, 3))
    found = neighbours(codebook)
    nearest, distances = brute_force(codebook)
    assert len(found.codes) == 40
    assert np.ptp(np.diff(found.codes)) <= 1
    assert np.array_equal(found.nearest, nearest[found.codes])
    np.testing.assert_allclose(found.distances, distances[found.codes], rtol=1e-12)


def test_distances_are_never_held_for_all_pairs():
    codebook = np.random.default_rng(11).normal(size=(8192, 4))
    tracemalloc.start()
    neighbours(codebook)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8192**2 * 8 / 6, "K x K distances are 512 MB"


def test_codebooks_without_a_pair_or_not_finite_are_refused():
    for bad in (np.zeros((1, 3)), np.zeros(4), np.full((4, 2), np.nan)):
        with pytest.raises(ConfigError, match="at least two codes"):
            neighbours(bad)


def test_the_map_is_the_plane_of_greatest_variance():
    rng = np.random.default_rng(12)
    plane = rng.normal(size=(200, 2)) * [5, 2]
    turn = np.linalg.qr(rng.normal(size=(7, 7)))[0]
    codebook = np.pad(plane, ((0, 0), (0, 5))) @ turn + 3 + 0.01 * rng.normal(size=(200, 7))
    points, share = main_plane(codebook)
    singular = np.linalg.svd(codebook - codebook.mean(0), compute_uv=False) ** 2
    assert share == pytest.approx(singular[:2].sum() / singular.sum(), rel=1e-9)
    np.testing.assert_allclose((points**2).sum(0), singular[:2], rtol=1e-9)
    apart = np.linalg.norm(points[:50, None] - points[None, :50], axis=-1)
    np.testing.assert_allclose(apart, np.linalg.norm(plane[:50, None] - plane[None, :50], axis=-1), atol=0.2)
    assert main_plane(np.arange(5.0)[:, None])[0].tolist() == [[x, 0] for x in (-2, -1, 0, 1, 2)]


def test_a_codebooks_picture_has_its_points_its_colours_and_its_duplicates():
    codebook = np.array([[0.0, 0], [0, 0], [10, 0], [10, 3], [0, 10], [6, 10]])
    picture = codebook_picture("m", {"quantizer": survey(codebook)})
    points, _ = main_plane(codebook)
    middle = (points.max(0) + points.min(0)) / 2
    scale = (540 / 2 - 16) / np.abs(points - middle).max()
    distances = brute_force(codebook)[1]
    low, high = np.quantile(distances, [0.02, 0.98])
    for i, distance in enumerate(distances):
        x, y = 310 + scale * (points[i, 0] - middle[0]), 112 + 270 - scale * (points[i, 1] - middle[1])
        colour = ramp(np.array([(distance - low) / (high - low)]))[0]
        assert (picture[round(y), round(x)] == colour).all(), i
        ring = np.abs(picture[round(y) - 9 : round(y) + 10, round(x) - 9 : round(x) + 10].astype(int) - ALARM).sum(-1)
        assert (ring.min() < 60) == (distance == 0), i
    # The last chart: two codes of distance 0 are the first of 60 bars, its height half the axis' share of two in two.
    bars = (672, 112 + 26 + 196 + 108)
    first = int(bars[0] + 488 / 1.02 / 60 / 2)
    highest = max(np.histogram(distances, 60, (0, distances.max()))[0])
    assert abs(rows_of(picture, first, ACCENT, bars[1], bars[1] + 196) - 196 * 2 / (1.08 * highest)) <= 1


def test_codebooks_stand_one_under_the_other():
    one, two = survey(np.eye(8)), survey(np.random.default_rng(13).normal(size=(30, 4)))
    alone, both = codebook_picture("m", {"a": one}), codebook_picture("m", {"a": one, "b": two})
    assert both.shape == (alone.shape[0] + 700, 1200, 3)
    assert np.array_equal(both[112:700], alone[112:700])
    second = codebook_picture("m", {"b": two})
    assert np.array_equal(both[812:1400], second[112:700])
