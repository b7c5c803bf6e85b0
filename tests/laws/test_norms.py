"""What normalising latents and codebooks promises, and one step of moving averages."""

import pytest
import torch
from torch.nn import functional as F

from vqtok.errors import ConfigError
from vqtok.ops import Averages, half_squared_norms, normalize_codebook, normalize_latents, update_averages


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dim", [1, 7, 300])
def test_unit_latents_and_their_gradient_are_torchs(dtype, dim):
    latents = torch.randn(3, dim, 4, 5, dtype=torch.float64).to(dtype).permute(0, 2, 3, 1)
    gradient = torch.randn(3, 4, 5, dim, dtype=torch.float64)
    ours, plain = latents.detach().requires_grad_(), latents.detach().double().requires_grad_()
    unit, expected = normalize_latents(ours), F.normalize(plain, dim=-1)
    assert unit.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(unit, expected.to(unit.dtype))
    unit.backward(gradient.to(unit.dtype))
    expected.backward(gradient.to(unit.dtype).double())
    assert ours.grad.dtype == dtype
    torch.testing.assert_close(ours.grad, plain.grad.to(dtype), rtol=1e-2 if dtype.itemsize < 4 else 1e-5, atol=1e-3)


def test_latents_too_short_for_a_direction_are_divided_by_the_least_length():
    latents = torch.tensor([[0.0, 0.0], [3e-14, 4e-14], [1e-30, 0.0]], requires_grad=True)
    unit = normalize_latents(latents)
    torch.testing.assert_close(unit, torch.tensor([[0.0, 0.0], [0.03, 0.04], [1e-18, 0.0]]))
    unit.sum().backward()
    torch.testing.assert_close(latents.grad, torch.full((3, 2), 1e12))


def test_what_is_kept_for_the_backward_pass_is_the_latents():
    latents = torch.randn(5, 3, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        normalize_latents(latents)
    assert kept == [latents.data_ptr()]


def test_a_codebooks_gradient_is_torchs_and_a_row_of_zeros_has_that_of_its_copy():
    codebook = torch.randn(9, 4, dtype=torch.float64)
    codebook[3] = 0
    ours, plain = codebook.clone().requires_grad_(), codebook.clone().requires_grad_()
    gradient = torch.randn(9, 4)
    normalize_codebook(ours).backward(gradient)
    F.normalize(plain, dim=-1).backward(gradient.double())
    rows = torch.arange(9) != 3
    torch.testing.assert_close(ours.grad[rows], plain.grad[rows])
    assert torch.equal(ours.grad[3], gradient[3].double())


def test_rows_of_any_scale_become_unit_rows():
    codebook = torch.randn(40, 6) * 10.0 ** torch.linspace(-40, 37, 40)[:, None]
    torch.testing.assert_close(normalize_codebook(codebook).norm(dim=1), torch.ones(40))
    norms = codebook.double().square().sum(1) / 2
    torch.testing.assert_close(half_squared_norms(codebook), norms.float())


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("epsilon", [0.0, 1e-2])
def test_averages_follow_the_equations_of_the_paper(unit, epsilon):
    size, total, codebook = torch.rand(6), torch.randn(6, 3), torch.randn(6, 3)
    counts, sums = torch.tensor([3.0, 0, 1, 0, 7, 2]), torch.randn(6, 3)
    size[3] = 0
    old = [x.clone() for x in (size, total, codebook)]
    new = update_averages(Averages(size, total, codebook), counts, sums, decay=0.9, epsilon=epsilon, unit=unit)
    assert all(torch.equal(a, b) for a, b in zip(old, (size, total, codebook), strict=True))
    sizes, totals = 0.9 * size.double() + 0.1 * counts, 0.9 * total.double() + 0.1 * sums
    means = totals / ((sizes + epsilon) / (sizes.sum() + 6 * epsilon) * sizes.sum())[:, None]
    means = F.normalize(means, dim=-1) if unit else means
    means[3] = codebook[3].double()  # never chosen: it stays where it was
    for came, expected in ((new.sizes, sizes), (new.sums, totals), (new.codebook, means)):
        torch.testing.assert_close(came, expected.float())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"expected a float codebook \[K, D\], got torch.float32 \[3\]"):
        normalize_codebook(torch.zeros(3))
    with pytest.raises(ConfigError, match=r"expected a float codebook \[K, D\], got torch.int64 \[3, 1\]"):
        half_squared_norms(torch.zeros(3, 1, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"expected float latents \[..., D\], got torch.int64 \[3\]"):
        normalize_latents(torch.arange(3))
    averages = Averages(torch.zeros(3), torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(ConfigError, match=r"codebook \[K, D\], got .* \[3\], \[3, 2\], \[3, 2\], \[3\], \[3\]"):
        update_averages(averages, torch.zeros(3), torch.zeros(3), decay=0.9, epsilon=0.0, unit=False)
