"""Penalties and soft assignments: dense formulas in float64, gradients, and what they may hold at a time."""

import numpy as np
import pytest
import torch

from tests.laws.sizes import Largest
from vqtok import VectorQuantizer
from vqtok.errors import ConfigError
from vqtok.quantizers import IndexBackpropagationQuantizer, SimQuantizer, assignment
from vqtok.quantizers.assignment import assignment_entropies
from vqtok.quantizers.penalties import orthogonality, penalty_losses

BLOCKS = pytest.mark.parametrize("block", [1 << 22, 31 * 7, 1], ids=["one block", "blocks of 7", "single rows"])
AFFINITIES = pytest.mark.parametrize("affinity", ["l2", "dot"])


def dense(latents, codebook, affinity, temperature):
    """Mean entropy of the softmax of -|z - e|^2 / T or z.e / T, and minus the entropy of its mean, in NumPy."""
    z, e = latents.detach().double().numpy(), codebook.detach().double().numpy()
    logits = -((z[:, None] - e) ** 2).sum(-1) if affinity == "l2" else z @ e.T
    p = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
    p = p / p.sum(1, keepdims=True)
    entropies = [-(x * np.log(np.maximum(x, 1e-300))).sum(-1) for x in (p, p.mean(0))]
    return entropies[0].mean(), -entropies[1]


@BLOCKS
@AFFINITIES
@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_entropies_are_those_of_the_dense_softmax(affinity, temperature, block, monkeypatch):
    monkeypatch.setattr(assignment, "_BLOCK", block)
    latents, codebook = torch.randn(40, 5), torch.randn(31, 5)
    found = penalty_losses(["diversity", "entropy"], latents.view(4, 10, 5), codebook, affinity, temperature)
    sample, mean = dense(latents, codebook, affinity, temperature)
    assert [*found] == ["diversity", "entropy"]
    assert found["entropy"].item() == pytest.approx(sample, rel=1e-4, abs=1e-5)
    assert found["diversity"].item() == pytest.approx(mean, rel=1e-5)


@BLOCKS
@AFFINITIES
@pytest.mark.parametrize("name", ["sample", "mean"])
def test_gradients_of_the_entropies_are_right(affinity, name, block, monkeypatch):
    monkeypatch.setattr(assignment, "_BLOCK", block)
    latents = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    codebook = torch.randn(31, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda z, e: getattr(assignment_entropies(z, e, affinity, 0.7), name), (latents, codebook)
    )


def test_gradients_of_halves_come_in_their_dtype():
    latents = torch.randn(20, 5).bfloat16().requires_grad_()
    quantizer = VectorQuantizer(5, 31, penalties=["entropy"], entropy_temperature=1.0)
    loss = quantizer(latents).losses["entropy"]
    loss.backward()
    assert (loss.dtype, latents.grad.dtype, quantizer.codebook.grad.dtype) == (
        torch.float32,
        torch.bfloat16,
        torch.float32,
    )
    exact = latents.detach().float().requires_grad_()
    quantizer(exact).losses["entropy"].backward()
    assert torch.equal(latents.grad, exact.grad.bfloat16())


def test_nothing_of_the_size_of_latents_times_codes_is_ever_held(monkeypatch):
    monkeypatch.setattr(assignment, "_BLOCK", 1 << 12)
    n, k, d = 600, 500, 3
    latents, codebook = torch.randn(n, d), torch.randn(k, d)
    with Largest() as largest:
        *_, mean = assignment._compute_entropies(latents, codebook, "l2", 0.1)
        one = torch.ones(())
        assignment._compute_entropies_backward(one, one, latents, codebook, mean, "l2", 0.1)
        assignment._compute_through_index_backward(latents, latents, codebook)
        orthogonality(codebook)
    assert largest.size <= 1 << 12  # not 300 000, and not 250 000 either


@pytest.mark.parametrize("dim", [2, 40])
def test_orthogonality_is_the_mean_square_of_the_other_rows_cosines(dim):
    codebook = torch.randn(31, dim, dtype=torch.float64) * torch.rand(31, 1, dtype=torch.float64) * 9
    rows = codebook.numpy() / np.linalg.norm(codebook.numpy(), axis=1, keepdims=True)
    expected = ((rows @ rows.T - np.eye(31)) ** 2).sum() / 31**2
    assert orthogonality(codebook).item() == pytest.approx(expected, rel=1e-5)
    assert orthogonality(torch.eye(7)).item() == pytest.approx(0, abs=1e-7)
    leaf = codebook.requires_grad_()
    (found,) = torch.autograd.grad(orthogonality(leaf), leaf)
    unit = leaf / leaf.norm(dim=1, keepdim=True)
    dense = (unit @ unit.T - torch.eye(31, dtype=torch.float64)).square().sum() / 31**2
    torch.testing.assert_close(found, torch.autograd.grad(dense, leaf)[0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_penalties_of_a_quantizer_are_of_what_it_compares(metric):
    penalties = ["orthogonality", "entropy", "diversity"]
    quantizer = VectorQuantizer(6, 31, metric, penalties=penalties, entropy_temperature=0.3)
    quantizer.codebook.data = torch.randn(31, 6)
    latents = torch.randn(40, 6)
    out = quantizer(latents)
    assert [*out.losses] == ["codebook", "commitment", *penalties]
    z, e = latents, quantizer.codebook
    if metric == "cosine":
        z, e = z / z.norm(dim=1, keepdim=True), e / e.norm(dim=1, keepdim=True)
    sample, mean = dense(z, e, "l2", 0.3)
    assert out.losses["entropy"].item() == pytest.approx(sample, rel=1e-4)
    assert out.losses["diversity"].item() == pytest.approx(mean, rel=1e-4)
    assert out.losses["orthogonality"].item() == pytest.approx(orthogonality(quantizer.codebook).item(), rel=1e-5)


def test_penalties_of_index_backpropagation_are_of_products():
    quantizer = IndexBackpropagationQuantizer(6, 31, penalties=["entropy", "diversity"], entropy_temperature=0.3)
    latents = torch.randn(40, 6)
    losses = quantizer(latents).losses
    sample, mean = dense(latents, quantizer.codebook, "dot", 0.3)
    assert losses["entropy"].item() == pytest.approx(sample, rel=1e-4, abs=1e-5)
    assert losses["diversity"].item() == pytest.approx(mean, rel=1e-4)


def test_penalties_are_only_computed_where_they_are_asked_for(monkeypatch):
    def never(*_):
        raise AssertionError("computed")

    monkeypatch.setattr("vqtok.quantizers.penalties.assignment_entropies", never)
    monkeypatch.setattr("vqtok.quantizers.penalties.orthogonality", never)
    for make in (VectorQuantizer, SimQuantizer, IndexBackpropagationQuantizer):
        assert not {*make(6, 31)(torch.randn(4, 6)).losses} & {"entropy", "diversity", "orthogonality"}
        with pytest.raises(AssertionError, match="computed"):
            make(6, 31, penalties=["orthogonality"])(torch.randn(4, 6))


@pytest.mark.parametrize(
    "make", [VectorQuantizer, SimQuantizer, IndexBackpropagationQuantizer], ids=lambda x: x.__name__
)
@pytest.mark.parametrize("penalties", ["entropy", ["entropie"], ["entropy", "entropy"]], ids=str)
def test_penalties_that_there_are_not_are_refused(make, penalties):
    with pytest.raises(ConfigError, match="expected penalties as a list of entropy, diversity, orthogonality"):
        make(2, 2, penalties=penalties)
