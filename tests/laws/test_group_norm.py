"""group_norm and group_norm_silu against the paper's formulas in float64, whatever the memory format."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vqtok.errors import ConfigError
from vqtok.ops import group_norm, group_norm_silu, native, use_backend

EPS = 1e-6
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
every_format = pytest.mark.parametrize("memory", FORMATS.values(), ids=FORMATS)
every_backend = pytest.mark.parametrize("backend", ["cpu", "reference"])
# Images of one piece, of many and of none whole; groups of one channel and of all; columns that fill no vector.
SHAPES = {
    (2, 64, 17, 19): 32,
    (1, 128, 33, 64): 32,
    (3, 6, 5, 7): 2,
    (2, 513, 9, 8): 3,
    (1, 8, 1, 1): 8,
    (2, 3, 70, 90): 1,
}
every_shape = pytest.mark.parametrize(("shape", "groups"), SHAPES.items(), ids=str)


def formula(x, groups, weight, bias):
    """Equations 1, 2 and 7 of Wu and He 2018, in float64."""
    x = x.double().numpy()
    grouped = x.reshape(len(x), groups, -1)
    mean = grouped.mean(axis=2, keepdims=True)
    variance = ((grouped - mean) ** 2).mean(axis=2, keepdims=True)
    normal = ((grouped - mean) / np.sqrt(variance + EPS)).reshape(x.shape)
    each = (1, -1, *(1,) * (x.ndim - 2))
    return normal * weight.double().numpy().reshape(each) + bias.double().numpy().reshape(each)


def silu(y):
    return y / (1 + np.exp(-y))


def drawn(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) for size in (shape, shape[1], shape[1])]


def close(came, expected, tolerance):
    assert np.abs(came.double().numpy() - expected).max() <= tolerance * max(1, np.abs(expected).max())


@every_backend
@every_format
@every_shape
def test_values_are_the_papers(backend, memory, shape, groups):
    x, weight, bias = drawn(shape)
    x = x.contiguous(memory_format=memory)
    expected = formula(x, groups, weight, bias)
    with use_backend(backend):
        close(group_norm(x, groups, weight, bias, EPS), expected, 4e-7)
        close(group_norm_silu(x, groups, weight, bias, EPS), silu(expected), 4e-7)
        ones, zeros = torch.ones(shape[1]), torch.zeros(shape[1])
        close(group_norm(x, groups, eps=EPS), formula(x, groups, ones, zeros), 4e-7)


@pytest.mark.parametrize(("middle", "spread"), [(10, 1e-2), (1e3, 1e-2), (-255, 1e-4), (1, 0), (1e6, 1)])
@every_format
def test_a_flat_image_loses_nothing(memory, middle, spread):
    """torch's channels_last kernel on the CPU is off by 40 for a mean of 10 and a deviation of 1e-2."""
    x, weight, bias = drawn((2, 64, 33, 32))
    x = (middle + spread * x).contiguous(memory_format=memory)
    expected = formula(x, 32, weight, bias)
    close(group_norm(x, 32, weight, bias, EPS), expected, 4e-7)
    close(group_norm_silu(x, 32, weight, bias, EPS), silu(expected), 4e-7)


@every_format
def test_one_bright_pixel_among_equal_ones_is_seen(memory):
    x = torch.full((1, 32, 64, 64), 0.5)
    x[0, 5, 63, 62] = 1.5
    x = x.contiguous(memory_format=memory)
    close(group_norm(x, 16, eps=EPS), formula(x, 16, torch.ones(32), torch.zeros(32)), 4e-7)


@every_backend
@every_format
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_rounded_once(backend, memory, dtype):
    """Statistics of bfloat16 values are of float32 at least: their mean has more than eight bits."""
    x, weight, bias = drawn((2, 64, 17, 19))
    x = (3 + x).to(dtype).contiguous(memory_format=memory)
    expected = formula(x, 32, weight, bias)
    if backend == "cpu" and dtype != torch.bfloat16:
        pytest.skip("is for float32 and bfloat16")
    with use_backend(backend):
        for y, exact in (
            (group_norm(x, 32, weight, bias), expected),
            (group_norm_silu(x, 32, weight, bias), silu(expected)),
        ):
            assert y.dtype == dtype
            ulp = np.maximum(np.abs(exact), 2**-6) * torch.finfo(dtype).eps
            assert (np.abs(y.double().numpy() - exact) <= 0.5 * ulp + 4e-7 * np.abs(expected).max()).all()


def test_silu_is_right_from_end_to_end():
    """Of two values a and -a the variance is a^2: with eps = 0 they become w and -w."""
    scales = torch.linspace(1e-3, 130, 4001)
    x = torch.tensor([1.0, -1.0]).expand(1, 4001, 2).contiguous()
    came = group_norm_silu(x, 4001, scales, eps=0.0).double()
    expected = silu(np.stack([scales.double().numpy(), -scales.double().numpy()], axis=1))
    np.testing.assert_allclose(came[0].numpy(), expected, rtol=1e-6, atol=1e-35)
    bad = group_norm_silu(torch.tensor([[[1.0, torch.nan, 2.0]], [[1.0, 2.0, 3.0]]]), 1)
    assert bad[0].isnan().all()
    assert bad[1].isfinite().all()


@every_format
@every_shape
def test_an_image_has_the_same_bits_alone_and_with_any_threads(memory, shape, groups):
    images = torch.cat([drawn(shape, seed)[0] for seed in range(3)]).contiguous(memory_format=memory)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = group_norm_silu(images, groups)
        torch.set_num_threads(3)
        assert torch.equal(group_norm_silu(images, groups), together)
        for i, image in enumerate(images):
            assert torch.equal(group_norm_silu(image[None].contiguous(memory_format=memory), groups)[0], together[i])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_format
@every_shape
def test_every_instruction_set_gives_the_same_bits(monkeypatch, memory, shape, groups, dtype):
    x, weight, bias = drawn(shape)
    x = x.to(dtype).contiguous(memory_format=memory)
    results = []
    for isa in native.instruction_sets():
        monkeypatch.setenv("VQTOK_CPU_ISA", isa)
        results.append(group_norm_silu(x, groups, weight, bias))
    assert all(torch.equal(result, results[0]) for result in results)


@every_format
def test_the_memory_format_is_kept(memory):
    x = drawn((2, 8, 4, 6))[0].contiguous(memory_format=memory)
    fake = torch.ops.vqtok.group_norm.default(x.to("meta"), None, None, 4, EPS)
    for y in (group_norm(x, 4), group_norm_silu(x, 4), group_norm_silu(x.double(), 4), fake):
        assert y.stride() == x.stride()
    strided = drawn((2, 8, 4, 12))[0][..., ::2]
    assert torch.equal(group_norm(strided, 4), group_norm(strided.contiguous(), 4))


@every_format
def test_gradients_are_torchs(memory):
    x, weight, bias = (t.requires_grad_() for t in drawn((2, 64, 5, 6)))
    y = group_norm_silu(x.contiguous(memory_format=memory), 32, weight, bias)
    with torch.no_grad():
        torch.testing.assert_close(group_norm_silu(x.contiguous(memory_format=memory), 32, weight, bias), y)
    came = torch.autograd.grad(y.sin().sum(), (x, weight, bias))
    expected = torch.autograd.grad(F.silu(F.group_norm(x, 32, weight, bias, EPS)).sin().sum(), (x, weight, bias))
    torch.testing.assert_close(came, expected, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused():
    x = torch.zeros(2, 6, 3, 3)
    for bad, words in (
        (lambda: group_norm(x, 4), "groups that divide 6 channels, got 4"),
        (lambda: group_norm(x, 0), "groups that divide 6 channels, got 0"),
        (lambda: group_norm_silu(x, 3, torch.ones(5)), r"weight \[6\] on cpu .* got \[5\]"),
        (lambda: group_norm_silu(x.long(), 3), r"float values \[B, C, \.\.\.\], got torch.int64"),
        (lambda: group_norm(torch.zeros(6), 3), r"float values \[B, C, \.\.\.\]"),
    ):
        with pytest.raises(ConfigError, match=words):
            bad()
    assert group_norm_silu(x[:0], 3).shape == (0, 6, 3, 3)
