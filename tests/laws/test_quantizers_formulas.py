"""Codes, vectors, losses and gradients are those of the papers' formulas, in NumPy or written out densely."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vqtok import EmaQuantizer, VectorQuantizer
from vqtok.quantizers import (
    BinarySphericalQuantizer,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    IndexBackpropagationQuantizer,
    LookupFreeQuantizer,
    ProductQuantizer,
    ResidualQuantizer,
    SimQuantizer,
)


def latents_and_float64(*shape):
    latents = torch.randn(*shape)
    return latents, latents.double().numpy()


def near(found, expected, atol=1e-5):
    torch.testing.assert_close(found.detach().double(), torch.as_tensor(np.array(expected)), rtol=1e-5, atol=atol)


def nearest(z, e):
    return ((z[:, None] - e) ** 2).sum(-1).argmin(1)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def entropy(p):
    return -(p * np.log(np.maximum(p, 1e-300))).sum(-1)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("kind", [VectorQuantizer, EmaQuantizer])
def test_vectors_are_the_nearest_rows_and_losses_their_distance(kind, metric):
    quantizer = kind(6, 31, metric).eval()
    latents, z = latents_and_float64(50, 6)
    out, e = quantizer(latents), quantizer.codebook.detach().double().numpy()
    z, e = (unit(z), unit(e)) if metric == "cosine" else (z, e)
    codes = nearest(z, e)
    assert out.codes.tolist() == codes.tolist()
    near(out.vectors, e[codes])
    assert {*out.losses} == ({"commitment"} if kind is EmaQuantizer else {"commitment", "codebook"})
    for loss in out.losses.values():
        near(loss, ((z - e[codes]) ** 2).mean())


@pytest.mark.parametrize("make", [VectorQuantizer, EmaQuantizer, SimQuantizer], ids=lambda x: x.__name__)
def test_rotation_turns_gradients_as_the_latent_is_onto_its_vector(make):
    """R = |q| / |z| (I - 2 w w^T + 2 v u^T) with u, v the unit vectors of z and q, w that of u + v; R z = q."""
    quantizer = make(5, 31, gradient="rotation").eval()
    latents, z = latents_and_float64(20, 5)
    latents.requires_grad_()
    out, upstream = quantizer(latents), torch.randn(20, 5)
    out.vectors.backward(upstream)
    for row, code, g, found in zip(z, out.codes, upstream.double().numpy(), latents.grad, strict=True):
        q = quantizer.decode(code).detach().double().numpy()
        u, v, w = unit(row), unit(q), unit(unit(row) + unit(q))
        turn = np.linalg.norm(q) / np.linalg.norm(row) * (np.eye(5) - 2 * np.outer(w, w) + 2 * np.outer(v, u))
        np.testing.assert_allclose(turn @ row, q, rtol=0, atol=1e-12)
        near(found, turn.T @ g)


def test_simvq_compares_with_the_frozen_codebook_behind_its_map():
    quantizer = SimQuantizer(6, 31, bias=True)
    latents, z = latents_and_float64(50, 6)
    out = quantizer(latents)
    weight, bias = (x.detach().double().numpy() for x in (quantizer.proj.weight, quantizer.proj.bias))
    e = quantizer.codebook.double().numpy() @ weight.T + bias
    codes = nearest(z, e)
    assert out.codes.tolist() == codes.tolist()
    near(out.vectors, e[codes])
    # d/dW mean((z - W c - b)^2), the chosen rows c held as they are
    (out.losses["codebook"]).backward()
    error = 2 * (e[codes] - z) / z.size
    near(quantizer.proj.weight.grad, error.T @ quantizer.codebook.double().numpy()[codes])
    near(quantizer.proj.bias.grad, error.sum(0))
    near(quantizer.codebook.std() * 6**0.5, 1.0, atol=0.2)  # drawn with a variance of 1 / D


def published_index_backpropagation(z, e):
    """The published statement, dense: one-hot vectors with the softmax's gradient, three squared differences."""
    soft = (z @ e.T).softmax(-1)
    hard = F.one_hot(soft.argmax(-1), len(e)).to(z.dtype)
    vectors, rows = (hard - soft.detach() + soft) @ e, hard @ e
    losses = {
        "index": (vectors - z).square().mean(),
        "commitment": (rows.detach() - z).square().mean(),
        "codebook": (rows - z.detach()).square().mean(),
    }
    return vectors, soft.argmax(-1), losses


@pytest.mark.parametrize("what", ["vectors", "index", "commitment", "codebook"])
@pytest.mark.parametrize("block", [1 << 22, 7 * 31])
def test_index_backpropagation_is_the_published_statement(what, block, monkeypatch):
    monkeypatch.setattr("vqtok.quantizers.assignment._BLOCK", block)
    quantizer = IndexBackpropagationQuantizer(6, 31).double()
    latents = torch.randn(50, 6, dtype=torch.float64, requires_grad=True)
    out = quantizer(latents)
    z, e = latents.detach().clone().requires_grad_(), quantizer.codebook.detach().clone().requires_grad_()
    vectors, codes, losses = published_index_backpropagation(z, e)
    assert torch.equal(out.codes, codes)
    upstream = torch.randn(50, 6, dtype=torch.float64)
    pairs = {"vectors": ((out.vectors * upstream).sum(), (vectors * upstream).sum())}
    pairs |= {name: (out.losses[name], loss) for name, loss in losses.items()}
    found, expected = pairs[what]
    torch.testing.assert_close(found, expected)
    found.backward(), expected.backward()
    for a, b in ((latents, z), (quantizer.codebook, e)):
        grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in (a, b)]
        # What is looked up is summed in float64 and rounded once to float32.
        torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("projection", [True, False])
def test_gumbel_in_eval_is_the_greatest_logit_and_its_divergence(projection):
    quantizer = GumbelQuantizer(6 if projection else 9, 9, 4, projection=projection).eval()
    latents, z = latents_and_float64(50, quantizer.latent_dim)
    out, logits = quantizer(latents), z
    if projection:
        weight, bias = (x.detach().double().numpy() for x in (quantizer.proj.weight, quantizer.proj.bias))
        logits = z @ weight.T + bias
    assert out.codes.tolist() == logits.argmax(1).tolist()
    near(out.vectors, quantizer.codebook.detach().double().numpy()[logits.argmax(1)])
    q = softmax(logits)
    near(out.losses["kl"], (q * np.log(q * 9)).sum(1).mean())


def test_gumbel_takes_the_lowest_of_equal_logits():
    quantizer = GumbelQuantizer(3, 5, 2).eval()
    with torch.no_grad():
        quantizer.proj.weight[1] = quantizer.proj.weight[3]
        quantizer.proj.bias[1] = quantizer.proj.bias[3] = 100.0
    assert quantizer.encode(torch.randn(20, 3)).tolist() == [1] * 20
    direct = GumbelQuantizer(4, 4, 2, projection=False).eval()
    assert direct.encode(torch.tensor([[1.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])).tolist() == [1, 0]


def test_gumbel_draws_codes_by_their_probability_whatever_the_temperature():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    for temperature in (0.1, 5.0):
        quantizer = GumbelQuantizer(4, 4, 2, projection=False, temperature=temperature).train()
        codes = quantizer(logits.expand(20000, 4)).codes
        shares = codes.bincount(minlength=4) / 20000
        torch.testing.assert_close(shares, logits.softmax(0), rtol=0, atol=0.02)  # five standard deviations


@pytest.mark.parametrize("hard", [True, False])
def test_gumbel_in_training_is_the_published_statement(hard):
    """Torch's own gumbel_softmax with the same noise, times the codebook; the gradient of that product."""
    quantizer = GumbelQuantizer(6, 9, 4, hard=hard, temperature=0.7).train()
    latents, upstream = torch.randn(50, 6, requires_grad=True), torch.randn(50, 4)
    torch.manual_seed(3)
    (quantizer(latents).vectors * upstream).sum().backward()
    found = [x.grad for x in (latents, *quantizer.parameters())]
    latents.grad = None
    quantizer.zero_grad()
    torch.manual_seed(3)
    one_hot = F.gumbel_softmax(quantizer.proj(latents), tau=0.7, hard=hard)
    ((one_hot @ quantizer.codebook) * upstream).sum().backward()
    for a, b in zip(found, (latents, *quantizer.parameters()), strict=True):
        torch.testing.assert_close(a, b.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("levels", [(8, 5, 5), (2, 2, 2, 2), (3, 7), (1001, 2)], ids=str)
def test_symmetric_levels_are_the_published_formula(levels):
    quantizer = FiniteScalarQuantizer(levels, symmetric=True)
    latents, z = latents_and_float64(4000, len(levels))
    latents.requires_grad_()
    count = np.array(levels)
    digits = np.floor((count - 1) * (np.tanh(z) + 1) / 2 + 0.5).astype(int)
    out, upstream = quantizer(latents), torch.randn(4000, len(levels))
    assert out.codes.tolist() == (digits * np.cumprod([1, *levels[:-1]])).sum(1).tolist()
    near(out.vectors, 2 * digits / (count - 1) - 1, atol=1e-7)
    out.vectors.backward(upstream)
    near(latents.grad, upstream.double().numpy() * (1 - np.tanh(z) ** 2))


def test_levels_of_the_paper_are_the_ops():
    quantizer = FiniteScalarQuantizer((8, 5, 4))
    latents, z = latents_and_float64(1000, 3)
    count = np.array(quantizer.levels)
    half, offset = (count - 1) * 1.001 / 2, np.where(count % 2, 0.0, 0.5)
    digits = np.round(np.tanh(z + np.arctanh(offset / half)) * half - offset).astype(int)
    out = quantizer(latents)
    assert out.codes.tolist() == ((digits + count // 2) * np.cumprod([1, 8, 5])).sum(1).tolist()
    near(out.vectors, digits / (count // 2), atol=1e-7)
    assert dict(out.losses) == {}


def all_signs(bits):
    """[2^B, B], the first dimension the greatest bit."""
    return 2 * (np.arange(2**bits)[:, None] >> np.arange(bits)[::-1] & 1) - 1


@pytest.mark.parametrize("endian", ["big", "little"])
@pytest.mark.parametrize("group_bits", [6, 4, 1])
@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_signs_and_entropies_are_those_of_the_softmax_over_all_codes(endian, group_bits, temperature):
    quantizer = LookupFreeQuantizer(6, endian, scale=0.5, temperature=temperature, group_bits=group_bits)
    latents, z = latents_and_float64(40, 6)
    latents[3, 2] = z[3, 2] = 0.0  # counts as no bit
    out = quantizer(latents)
    bits = z > 0
    assert out.codes.tolist() == (bits * 2 ** (np.arange(6)[::-1] if endian == "big" else np.arange(6))).sum(1).tolist()
    near(out.vectors, np.where(bits, 0.5, -0.5))
    near(out.losses["commitment"], ((z - np.where(bits, 0.5, -0.5)) ** 2).mean())
    check_entropies(out.losses, z, 0.5, temperature, group_bits)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("group_bits", [6, 4, 9])
def test_spherical_signs_and_entropies_are_those_of_the_softmax_over_all_codes(group_bits, temperature):
    quantizer = BinarySphericalQuantizer(6, temperature=temperature, group_bits=group_bits)
    latents, z = latents_and_float64(40, 6)
    out, u = quantizer(latents), unit(z)
    values = np.where(z > 0, 1, -1) / np.sqrt(6)
    assert out.codes.tolist() == ((z > 0) * 2 ** np.arange(6)[::-1]).sum(1).tolist()
    near(out.vectors, values)
    near(out.vectors.norm(dim=-1), np.ones(40))
    near(out.losses["commitment"], ((u - values) ** 2).mean())
    check_entropies(out.losses, u, 1 / np.sqrt(6), temperature, group_bits)


def check_entropies(losses, z, size, temperature, group_bits):
    """Every code's probability is written out, whole for the samples' entropy, by groups for the mean's."""

    def chances(z):
        return softmax(-((z[:, None] - size * all_signs(z.shape[1])) ** 2).sum(-1) / temperature)

    near(losses["entropy"], entropy(chances(z)).mean())
    groups = [z[:, i : i + group_bits] for i in range(0, z.shape[1], group_bits)]
    near(-losses["diversity"], sum(entropy(chances(group).mean(0)) for group in groups))


@pytest.mark.parametrize("make", [LookupFreeQuantizer, BinarySphericalQuantizer])
@pytest.mark.parametrize("name", ["entropy", "diversity", "commitment"])
def test_gradients_of_the_losses_of_signs_are_right(make, name):
    quantizer = make(7, temperature=1.3, group_bits=4)
    latents = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: quantizer(x).losses[name], latents)


def test_gradients_pass_straight_from_signs_to_latents_and_through_the_sphere():
    latents, z = latents_and_float64(30, 5)
    upstream = torch.randn(30, 5)
    for make in (LookupFreeQuantizer, BinarySphericalQuantizer):
        x = latents.clone().requires_grad_()
        make(5)(x).vectors.backward(upstream)
        g, expected = upstream.double().numpy(), upstream.double().numpy()
        if make is BinarySphericalQuantizer:
            u = unit(z)
            expected = (g - u * (u * g).sum(1, keepdims=True)) / np.linalg.norm(z, axis=1, keepdims=True)
        near(x.grad, expected)


def test_residual_levels_quantize_what_is_left():
    quantizer = ResidualQuantizer([VectorQuantizer(6, 31) for _ in range(3)])
    for level in quantizer.levels:
        level.codebook.data = torch.randn(31, 6)
    latents, z = latents_and_float64(50, 6)
    latents.requires_grad_()
    out = quantizer(latents)
    left, codes, errors = z, [], []
    for level in quantizer.levels:
        e = level.codebook.detach().double().numpy()
        codes.append(nearest(left, e))
        left = left - e[codes[-1]]
        errors.append((left**2).mean())
    assert out.codes.tolist() == np.stack(codes, -1).tolist()
    near(out.vectors, z - left)
    for name in ("codebook", "commitment"):
        near(out.losses[name], np.mean(errors))
    parts = zip(quantizer.levels, out.codes.unbind(-1), strict=True)
    assert torch.equal(out.vectors, sum(level.decode(x) for level, x in parts))


def test_residual_gradients_are_one_passage_and_the_pull_of_every_level():
    """Lee et al. 2022: z + sg[q - z], and ||z - sg[q^(d)]||^2 of every partial sum q^(d)."""
    quantizer = ResidualQuantizer([VectorQuantizer(6, 31) for _ in range(3)])
    for level in quantizer.levels:
        level.codebook.data = torch.randn(31, 6)
    latents = torch.randn(50, 6, requires_grad=True)
    out, upstream = quantizer(latents), torch.randn(50, 6)
    (straight,) = torch.autograd.grad(out.vectors, latents, upstream, retain_graph=True)
    assert torch.equal(straight, upstream)
    (pull,) = torch.autograd.grad(out.losses["commitment"], latents, retain_graph=True)
    partial = [quantizer.decode(out.codes[..., :depth]).detach() for depth in (1, 2, 3)]
    torch.testing.assert_close(pull, sum(2 * (latents - q) / latents.numel() / 3 for q in partial))
    out.losses["codebook"].backward()
    assert latents.grad is None or not latents.grad.any()
    for depth, level in enumerate(quantizer.levels):
        error = partial[depth] - latents.detach()
        expected = torch.zeros(31, 6).index_add_(0, out.codes[:, depth], 2 * error / latents.numel() / 3)
        torch.testing.assert_close(level.codebook.grad, expected)


def test_groups_of_a_product_are_quantizers_side_by_side():
    groups = [VectorQuantizer(2, 31), SimQuantizer(4, 31), EmaQuantizer(3, 31)]
    quantizer = ProductQuantizer(groups).eval()
    latents, z = latents_and_float64(50, 9)
    latents.requires_grad_()
    out, upstream = quantizer(latents), torch.randn(50, 9)
    parts = [group(x) for group, x in zip(groups, latents.split([2, 4, 3], -1), strict=True)]
    assert torch.equal(out.codes, torch.stack([part.codes for part in parts], -1))
    assert torch.equal(out.vectors, torch.cat([part.vectors for part in parts], -1))
    near(out.losses["commitment"], ((z - out.vectors.detach().double().numpy()) ** 2).mean())
    torch.testing.assert_close(
        out.losses["codebook"], (2 * parts[0].losses["codebook"] + 4 * parts[1].losses["codebook"]) / 6
    )
    out.vectors.backward(upstream)
    assert torch.equal(latents.grad, upstream)
