"""What finite_scalar promises."""

import math

import pytest
import torch

from vqtok.errors import ConfigError, NonFiniteLatents
from vqtok.ops import finite_scalar, finite_scalar_vectors
from vqtok.ops.levels import level_bound, level_thresholds

LEVELS = [(8, 8, 8, 5, 5, 5), (3,), (4, 3, 7), (1001, 16), (1002, 3)]


def latents_for(levels, rows=5000):
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.randn(rows, len(levels), generator=generator)


def by_formula(latents, levels):
    """Equation by equation in float64: bound, round, scale; digits to a code, the first one the fastest."""
    vectors, codes, place = [], 0, 1
    for z, count in zip(latents.double().unbind(-1), levels, strict=True):
        half, offset = (count - 1) * 1.001 / 2, 0.0 if count % 2 else 0.5
        level = ((z + math.atanh(offset / half)).tanh() * half - offset).round()
        level = level.clamp(-(count // 2), (count - 1) // 2)  # of a thousand levels the margin is more than half a step
        vectors.append(level / (count // 2))
        codes = codes + place * (level.long() + count // 2)
        place *= count
    return torch.stack(vectors, -1).float(), codes


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_values_and_codes_are_those_of_the_paper(levels):
    latents = latents_for(levels)
    out = finite_scalar(latents, levels)
    vectors, codes = by_formula(latents, levels)
    assert (out.vectors.dtype, out.codes.dtype, dict(out.losses)) == (torch.float32, torch.int64, {})
    assert torch.equal(out.codes, codes)
    assert torch.equal(out.vectors, vectors)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_decoding_gives_the_vectors_back_bit_for_bit(levels):
    out = finite_scalar(latents_for(levels), levels)
    assert torch.equal(finite_scalar_vectors(out.codes, levels), out.vectors)


@pytest.mark.parametrize("levels", [(8, 5, 3), (4,), (7, 6)], ids=str)
def test_every_code_is_reached_and_stands_for_one_vector(levels):
    codes = torch.arange(math.prod(levels))
    vectors = finite_scalar_vectors(codes, levels)
    assert len(vectors.unique(dim=0)) == len(codes)
    assert vectors.abs().max() <= 1
    # The latent in the middle of a level is what the bound takes to it; outermost levels are reached beyond the bound.
    bounds = torch.tensor([level_bound(count) for count in levels], dtype=torch.float64)
    half, offset, shift = bounds.unbind(-1)
    widths = torch.tensor([count // 2 for count in levels])
    middle = ((vectors.double() * widths + offset) / half).clamp(-1, 1).atanh() - shift
    assert torch.equal(finite_scalar(middle.clamp(-20, 20), levels).codes, codes)


@pytest.mark.parametrize("count", [3, 4, 5, 8, 16, 1001])
def test_a_level_begins_at_its_threshold_and_not_one_float_before(count):
    thresholds = torch.tensor(level_thresholds(count))
    assert len(thresholds) == count - 1
    assert (thresholds.diff() > 0).all()
    before = torch.nextafter(thresholds, thresholds.new_tensor(-math.inf))
    digits = torch.arange(1, count)
    assert torch.equal(finite_scalar(thresholds[:, None], [count]).codes, digits)
    assert torch.equal(finite_scalar(before[:, None], [count]).codes, digits - 1)
    half, offset, shift = level_bound(count)
    at, under = (((x.double() + shift).tanh() * half - offset) for x in (thresholds, before))
    edges = digits - count // 2 - 0.5
    assert (at - edges > -1e-12 * count).all()
    assert (edges - under > -1e-12 * count).all()


def test_zero_is_the_level_zero_and_large_latents_the_outermost():
    out = finite_scalar(torch.tensor([[0.0, 0.0], [99.0, 99.0], [-99.0, -99.0]]), (4, 5))
    assert out.vectors.tolist() == [[0.0, 0.0], [0.5, 1.0], [-1.0, -1.0]]
    assert out.codes.tolist() == [2 + 4 * 2, 3 + 4 * 4, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_gradient_is_that_of_the_bound(dtype):
    levels = (8, 5, 3)
    latents = latents_for(levels, 200).to(dtype).requires_grad_()
    weights = torch.randn(latents.shape)
    (finite_scalar(latents, levels).vectors * weights).sum().backward()
    smooth = latents.detach().double().requires_grad_()
    bounds = torch.tensor([level_bound(count) for count in levels], dtype=torch.float64)
    half, offset, shift = bounds.unbind(-1)
    bounded = ((smooth + shift).tanh() * half - offset) / torch.tensor([4, 2, 1])
    (bounded * weights).sum().backward()
    assert latents.grad.dtype == dtype
    tolerance = 1e-2 if dtype.itemsize < 4 else 1e-5
    torch.testing.assert_close(latents.grad.double(), smooth.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_rounded_once_to_float32(dtype):
    latents = latents_for((8, 5)).to(dtype)
    assert torch.equal(finite_scalar(latents, (8, 5)).codes, finite_scalar(latents.float(), (8, 5)).codes)


def test_strided_views_and_no_latents():
    grid = latents_for((8, 5, 3), 48).reshape(2, 4, 6, 3).permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    out = finite_scalar(grid, (8, 5, 3))
    assert torch.equal(out.codes, finite_scalar(grid.contiguous(), (8, 5, 3)).codes)
    none = finite_scalar(torch.zeros(0, 7, 3, requires_grad=True), (8, 5, 3))
    none.vectors.sum().backward()
    assert (none.vectors.shape, none.codes.shape) == ((0, 7, 3), (0, 7))
    assert finite_scalar(torch.zeros(3), (8, 5, 3)).codes.shape == ()


def test_codes_do_not_depend_on_threads_default_dtype_or_blocks(monkeypatch, default_dtype):
    latents = latents_for((8, 5, 3)).float()
    expected = by_formula(latents, (8, 5, 3))[1]
    monkeypatch.setattr("vqtok.ops.reference._SCALAR_ROWS", 7)
    assert torch.equal(finite_scalar(latents, (8, 5, 3)).codes, expected)


def test_what_is_kept_for_the_backward_pass_is_the_latents():
    latents = latents_for((8, 5)).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        finite_scalar(latents, (8, 5))
    assert kept == [latents.data_ptr()]


@pytest.mark.parametrize(
    ("shape", "levels", "message"),
    [
        ((2, 3), (8, 5), r"expected float latents \[..., 2\] for 2 numbers of levels, got torch.float32 \[2, 3\]"),
        ((2, 2), (8, 2), "at least 3, one a dimension, got"),
        ((2, 2), (8, 5.0), "whole numbers"),
        ((2, 0), (), "one a dimension, got"),
        ((2, 7), (1000,) * 7, "product fits in int64"),
    ],
)
def test_levels_that_do_not_fit_are_refused(shape, levels, message):
    with pytest.raises(ConfigError, match=message):
        finite_scalar(torch.zeros(shape), levels)


def test_codes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"expected codes in 0..39, got 40"):
        finite_scalar_vectors(torch.tensor([40]), (8, 5))
    with pytest.raises(ConfigError, match=r"expected codes of int64, got torch.int32"):
        finite_scalar_vectors(torch.tensor([4], dtype=torch.int32), (8, 5))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_latents_name_their_first_row(bad):
    latents = torch.zeros(4, 2)
    latents[2, 1] = bad
    with pytest.raises(NonFiniteLatents, match="row 2 "):
        finite_scalar(latents, (8, 5))
