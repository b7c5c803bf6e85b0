"""conv3x3 against sums written out in float64, whatever the cut, the threads, the instruction set."""

import numpy as np
import pytest
import torch

from vqtok.errors import ConfigError
from vqtok.ops import PreparedConv3x3, conv3x3, group_affine, native, native_convolution, use_backend

# Images of one tile and less, odd sides, several strips and steps, channels beside and below a vector, several images.
SHAPES = [(1, 16, 32, 1, 1), (2, 16, 64, 5, 3), (1, 48, 32, 2, 80), (1, 288, 64, 21, 18), (3, 32, 96, 9, 70)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
CASES = {"plain": (False, False), "normalised": (True, False), "doubled": (False, True)}
every_case = pytest.mark.parametrize(("normalised", "doubled"), CASES.values(), ids=CASES)


def drawn(shape, normalised=False, doubled=False, dtype=torch.float32):
    count, channels, outputs, height, width = shape
    generator = torch.Generator().manual_seed(7)
    draw = lambda *size: torch.randn(size, generator=generator)  # noqa: E731
    x = draw(count, channels, height, width).to(dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = draw(outputs, channels, 3, 3) / (9 * channels) ** 0.5, draw(outputs)
    affine = (
        torch.stack((draw(count, channels), draw(count, channels), draw(count, channels)), 1) if normalised else None
    )
    residual = draw(count, outputs, height << doubled, width << doubled).to(dtype)
    return x, weight, bias, affine, residual


def formula(x, weight, bias, affine, residual, doubled):
    """y[n, i, j] = sum over c, a, b of w[n, c, a, b] f(x)[c, i + a - 1, j + b - 1]; zeros beyond the border."""
    x, w = x.double().numpy(), weight.double().numpy()
    if affine is not None:
        centre, scale, shift = affine.double().numpy()[..., None, None].transpose(1, 0, 2, 3, 4)
        normal = (x - centre) * scale + shift
        x = normal / (1 + np.exp(-normal))
    x = x.repeat(2, axis=2).repeat(2, axis=3) if doubled else x
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = x.shape[2:]
    y = sum(
        np.einsum("nc,bcij->bnij", w[:, :, a, b], padded[:, :, a : a + height, b : b + width])
        for a in range(3)
        for b in range(3)
    )
    return y + bias.double().numpy()[:, None, None] + residual.double().numpy()


def native_or_skip(bfloat16=False):
    if reason := native_convolution.reason_against():
        pytest.skip(f"cpu {reason}")
    if bfloat16 and not native.library().vqtok_cpu_convolves(native.instruction_set(), 1):
        pytest.skip("this processor has no products of bfloat16")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@every_case
@every_shape
def test_values_are_the_sums(backend, shape, normalised, doubled):
    if backend == "cpu":
        native_or_skip()
    x, weight, bias, affine, residual = drawn(shape, normalised, doubled)
    with use_backend(backend):
        y = conv3x3(x, PreparedConv3x3(weight), bias, affine=affine, doubled=doubled, residual=residual)
        bare = conv3x3(x, PreparedConv3x3(weight), affine=affine, doubled=doubled)
    expected = formula(x, weight, bias, affine, residual, doubled)
    assert y.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(y.double().numpy(), expected, rtol=0, atol=5e-6)
    expected -= bias.double().numpy()[:, None, None] + residual.double().numpy()
    np.testing.assert_allclose(bare.double().numpy(), expected, rtol=0, atol=5e-6)


@every_case
@every_shape
def test_whole_numbers_come_out_exact(shape, normalised, doubled):
    """All factors of the maps are 0, 1, -1 and 1/2, so nothing is rounded where weights are multiples of 4."""
    native_or_skip()
    x, weight, bias, _, residual = (t if t is None else (4 * t).round() for t in drawn(shape, doubled=doubled))
    y = conv3x3(x, PreparedConv3x3(4 * weight.round()), bias, doubled=doubled, residual=residual)
    assert np.array_equal(y.double().numpy(), formula(x, 4 * weight.round(), bias, None, residual, doubled))


@pytest.mark.parametrize("products", ["float32", "bfloat16"])
@every_case
def test_values_of_bfloat16_are_summed_in_float32(products, normalised, doubled):
    native_or_skip(products == "bfloat16")
    x, weight, bias, affine, residual = drawn((2, 128, 64, 12, 10), normalised, doubled, torch.bfloat16)
    expected = formula(x, weight, bias, affine, residual, doubled)
    y = conv3x3(x, PreparedConv3x3(weight, products), bias, affine=affine, doubled=doubled, residual=residual)
    assert y.dtype == torch.bfloat16
    error = np.abs(y.double().numpy() - expected)
    half_ulp = np.maximum(np.abs(expected), 2**-6) * 2**-8
    if products == "float32":
        assert (error <= half_ulp + 1e-5).all()
    else:  # 2^-9 a factor, the maps' sums of four and nine, and chance: half of what torch's own is off, twice at worst
        assert np.sqrt((error**2).mean()) < 2**-9 * 4 * np.sqrt((expected**2).mean())
        assert np.sqrt((error**2).mean()) > np.sqrt((half_ulp**2).mean()) / 4, "products were of bfloat16"


@every_case
@every_shape
def test_an_image_has_the_same_bits_alone_and_with_any_threads(shape, normalised, doubled):
    native_or_skip()
    x, weight, bias, affine, residual = drawn((3, *shape[1:]), normalised, doubled)
    prepared, before = PreparedConv3x3(weight), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = conv3x3(x, prepared, bias, affine=affine, doubled=doubled, residual=residual)
        torch.set_num_threads(3)
        assert torch.equal(conv3x3(x, prepared, bias, affine=affine, doubled=doubled, residual=residual), together)
        for i in range(3):
            its = None if affine is None else affine[i : i + 1]
            alone = conv3x3(x[i : i + 1], prepared, bias, affine=its, doubled=doubled, residual=residual[i : i + 1])
            assert torch.equal(alone[0], together[i])
    finally:
        torch.set_num_threads(before)


@every_shape
def test_every_instruction_set_gives_the_same_bits(monkeypatch, shape):
    native_or_skip()
    x, weight, bias, affine, residual = drawn(shape, normalised=True)
    results = []
    for isa in native.instruction_sets():
        monkeypatch.setenv("VQTOK_CPU_ISA", isa)
        if not native_convolution.reason_against():
            results.append(conv3x3(x, PreparedConv3x3(weight), bias, affine=affine, residual=residual))
    assert all(torch.equal(result, results[0]) for result in results)


def test_it_reads_group_affine_as_group_norm_means_it():
    x, weight, bias, _, residual = drawn((2, 32, 32, 12, 9))
    x = 100 + 1e-2 * x  # flat
    scale, shift = torch.rand(32), torch.rand(32)
    affine = group_affine(x, 8, scale, shift)
    exact = torch.nn.functional.group_norm(x.double(), 8, scale.double(), shift.double(), 1e-6)
    centre, by, plus = affine[..., None, None].unbind(1)
    torch.testing.assert_close(((x - centre) * by + plus).double(), exact, rtol=0, atol=2e-6)
    with use_backend("reference"):
        torch.testing.assert_close(group_affine(x, 8, scale, shift), affine, rtol=1e-6, atol=1e-7)
    y = conv3x3(x, PreparedConv3x3(weight), bias, affine=affine, residual=residual)
    np.testing.assert_allclose(
        y.double().numpy(), formula(exact * exact.sigmoid(), weight, bias, None, residual, False), rtol=0, atol=1e-5
    )


def test_channels_that_fill_no_vector_and_other_dtypes_are_computed_all_the_same():
    for shape, dtype in (
        ((1, 3, 32, 4, 5), torch.float32),
        ((1, 16, 20, 4, 5), torch.float32),
        (SHAPES[1], torch.float64),
    ):
        x, weight, bias, _, residual = drawn(shape, dtype=dtype)
        y = conv3x3(x, PreparedConv3x3(weight), bias, residual=residual)
        expected = formula(x, weight, bias, None, residual, False)
        np.testing.assert_allclose(y.double().numpy(), expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 5e-6)


def test_the_residual_may_lie_in_any_way_and_inputs_stay_as_they_are():
    x, weight, bias, _, residual = drawn((1, 16, 32, 6, 7))
    prepared, copies = PreparedConv3x3(weight), (x.clone(), residual.clone())
    y = conv3x3(x, prepared, bias, residual=residual)
    assert torch.equal(conv3x3(x.contiguous(), prepared, bias, residual=residual.mT.contiguous().mT), y)
    assert all(map(torch.equal, (x, residual), copies))


def test_what_does_not_fit_is_refused():
    x, weight, _, affine, residual = drawn((2, 16, 32, 6, 7), normalised=True)
    prepared = PreparedConv3x3(weight)
    for bad, words in (
        (lambda: PreparedConv3x3(weight[..., :1]), r"weight \[N, C, 3, 3\], got torch.float32 \[32, 16, 3, 1\]"),
        (lambda: conv3x3(x[:, :8], prepared), r"values \[B, 16, h, w\]"),
        (lambda: conv3x3(x, prepared, residual=residual[:1]), r"a residual torch.float32 \[2, 32, 6, 7\]"),
        (lambda: conv3x3(x, prepared, residual=residual.bfloat16()), "a residual torch.float32"),
        (lambda: conv3x3(x, prepared, affine=affine, doubled=True), "and not doubled"),
        (lambda: conv3x3(x, prepared, affine=affine[:1]), r"affine float32 \[2, 3, 16\]"),
    ):
        with pytest.raises(ConfigError, match=words):
            bad()
    assert conv3x3(x[:0], prepared).shape == (0, 32, 6, 7)
