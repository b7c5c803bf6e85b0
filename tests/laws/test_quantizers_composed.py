"""Residual and product quantizers: depth, prefixes, sharing, and inner codebooks that learn by themselves."""

import copy

import pytest
import torch

from vqtok import EmaQuantizer, VectorQuantizer
from vqtok.errors import ConfigError
from vqtok.quantizers import (
    FiniteScalarQuantizer,
    GumbelQuantizer,
    LookupFreeQuantizer,
    ProductQuantizer,
    ResidualQuantizer,
    SimQuantizer,
)


def levels(count=4, dim=6, vocab_size=31):
    made = [VectorQuantizer(dim, vocab_size) for _ in range(count)]
    for i, level in enumerate(made):
        level.codebook.data = torch.randn(vocab_size, dim) * 0.6**i
    return made


def test_the_first_levels_decode_alone_and_every_level_brings_the_latents_nearer():
    quantizer, latents = ResidualQuantizer(levels()), torch.randn(200, 6)
    codes = quantizer.encode(latents)
    errors = [(quantizer.decode(codes[..., :depth]) - latents).square().mean().item() for depth in range(1, 5)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 3
    fewer = ResidualQuantizer(list(quantizer.levels[:2]))
    assert torch.equal(fewer.encode(latents), codes[..., :2])
    assert torch.equal(fewer.decode(codes[..., :2]), quantizer.decode(codes[..., :2]))


@pytest.mark.parametrize("codes", [torch.zeros(3, 5), torch.zeros(3, 0), torch.zeros(())], ids=["5", "0", "scalar"])
def test_codes_of_no_prefix_are_refused(codes):
    with pytest.raises(ConfigError, match="d at most 4"):
        ResidualQuantizer(levels()).decode(codes.long())


def test_dropout_draws_every_depth_evenly_in_training_alone():
    quantizer, latents = ResidualQuantizer(levels(), dropout=1.0).train(), torch.randn(5, 6)
    depths = [quantizer(latents).codes.shape[-1] for _ in range(400)]
    shares = torch.tensor(depths).bincount(minlength=5)[1:] / 400
    torch.testing.assert_close(shares, torch.full((4,), 0.25), rtol=0, atol=0.11)  # five standard deviations
    assert {quantizer.eval()(latents).codes.shape[-1] for _ in range(20)} == {4}
    half = ResidualQuantizer(levels(), dropout=0.5).train()
    whole = sum(half(latents).codes.shape[-1] == 4 for _ in range(400)) / 400
    assert abs(whole - (0.5 + 0.5 / 4)) < 0.13


def test_a_batch_of_fewer_levels_is_quantized_by_the_first_ones_and_teaches_them_alone():
    quantizer, latents = ResidualQuantizer(levels(), dropout=1.0).train(), torch.randn(50, 6)
    whole = copy.deepcopy(quantizer).eval()(latents)
    while (out := quantizer(latents)).codes.shape[-1] != 2:
        pass
    assert torch.equal(out.codes, whole.codes[..., :2])
    assert torch.equal(out.vectors, quantizer.decode(out.codes))
    sum(out.losses.values()).backward()
    assert [level.codebook.grad is not None for level in quantizer.levels] == [True, True, False, False]
    # The mean over the levels in use: of the same levels it does not depend on how many there are.
    alone = ResidualQuantizer(list(quantizer.levels[:2])).eval()(latents)
    assert torch.equal(out.losses["commitment"], alone.losses["commitment"])


def test_a_repeated_quantizer_is_one_codebook():
    shared = VectorQuantizer(6, 31)
    residual, product = ResidualQuantizer([shared] * 3), ProductQuantizer([shared] * 2)
    assert [*residual.state_dict()] == [*product.state_dict()] == ["quantizers.0.codebook"]
    residual(torch.randn(50, 6)).losses["codebook"].backward()
    assert (shared.codebook.grad.abs().sum(1) > 0).sum() > 1
    copied = copy.deepcopy(residual)
    assert copied.levels[0] is copied.levels[2] is not shared
    mixed = ResidualQuantizer([shared, VectorQuantizer(6, 31), shared])
    assert mixed.levels[0] is mixed.levels[2] is not mixed.levels[1]


def test_groups_may_be_residual_and_levels_may_be_products():
    grouped = ProductQuantizer([ResidualQuantizer(levels(2, 3)) for _ in range(2)]).eval()
    assert (grouped.codebooks, grouped.dim) == (4, 6)
    latents = torch.randn(20, 6)
    codes = grouped.encode(latents)
    first, second = grouped.groups
    assert torch.equal(codes[..., :2], first.encode(latents[..., :3]))
    assert torch.equal(grouped.decode(codes)[..., 3:], second.decode(codes[..., 2:]))
    residual = ResidualQuantizer([ProductQuantizer(levels(2, 3)) for _ in range(3)]).eval()
    out = residual(latents)
    assert out.codes.shape == (20, 6)
    assert torch.equal(residual.decode(out.codes[..., :2]), residual.levels[0].decode(out.codes[..., :2]))
    with pytest.raises(ConfigError, match="of the first levels"):
        residual.decode(out.codes[..., :3])


def test_residual_signs_halve_what_is_left():
    """A scale that halves makes the bits those of a binary number."""
    quantizer = ResidualQuantizer([LookupFreeQuantizer(1, scale=0.5**i) for i in range(1, 9)]).eval()
    latents = torch.linspace(-0.999, 0.999, 500)[:, None]
    out = quantizer(latents)
    assert (out.vectors - latents).abs().max() <= 2.0**-8
    number = (out.codes[..., :] * 2 ** torch.arange(7, -1, -1)).sum(-1)
    assert torch.equal(number, number.sort().values)


@pytest.mark.parametrize("around", [ResidualQuantizer, ProductQuantizer])
def test_kmeans_starts_each_inner_codebook_from_its_own_latents(around):
    inner = [EmaQuantizer(3, 16, kmeans_iterations=5) for _ in range(2)]
    quantizer = around(inner).train()
    latents = torch.randn(400, quantizer.dim) * torch.tensor([1.0, 1.0, 1.0, 50.0, 50.0, 50.0])[: quantizer.dim]
    quantizer(latents)
    assert all(part.started for part in inner)
    out = quantizer.eval()(latents)
    relative = (out.vectors - latents).square().mean() / latents.square().mean()
    assert relative < 0.25
    sizes = [part.codebook.abs().mean().item() for part in inner]
    # What the first level left is small; the second group's latents are great.
    assert sizes[1] < sizes[0] if around is ResidualQuantizer else sizes[1] > 20 * sizes[0]


def test_dead_codes_of_each_level_move_onto_what_that_level_sees():
    inner = [EmaQuantizer(3, 16, decay=0.5, revive_below=0.5) for _ in range(2)]
    for part in inner:
        part.codebook = torch.cat([torch.zeros(1, 3), torch.full((15, 3), 1e4)])
        part.adopt_codebook()
    quantizer = ResidualQuantizer(inner).train()
    latents = torch.randn(400, 3)
    for _ in range(12):
        quantizer(latents)
    for part, least in zip(inner, (8, 8), strict=True):
        assert (part.codebook.abs().amax(1) < 10).sum() > least
    assert (quantizer.eval()(latents).vectors - latents).square().mean() < 0.4


def test_what_only_training_reads_is_named_where_it_is():
    quantizer = ResidualQuantizer([EmaQuantizer(3, 16) for _ in range(2)])
    named = {
        f"{name}.{state}"
        for name, module in quantizer.named_modules()
        for state in getattr(module, "training_state", ())
    }
    assert {*quantizer.state_dict()} - named == {"quantizers.0.codebook", "quantizers.1.codebook"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ResidualQuantizer([]), "at least 2 quantizers, got 0"),
        (lambda: ProductQuantizer([VectorQuantizer(3, 8)]), "at least 2 quantizers, got 1"),
        (lambda: ResidualQuantizer([VectorQuantizer(3, 8), VectorQuantizer(3, 9)]), r"one vocab_size, got \[8, 9\]"),
        (lambda: ProductQuantizer([VectorQuantizer(3, 8), VectorQuantizer(3, 9)]), "one vocab_size"),
        (lambda: ResidualQuantizer([VectorQuantizer(3, 8), VectorQuantizer(4, 8)]), "of one dim"),
        (lambda: ResidualQuantizer([GumbelQuantizer(5, 8, 3)] * 2), "of one dim"),
        (lambda: ResidualQuantizer([SimQuantizer(3, 8, gradient="rotation")] * 2), "straight-through"),
        (lambda: ResidualQuantizer(levels(), dropout=1.5), r"dropout in \[0, 1\]"),
        (lambda: ProductQuantizer(levels(2)).decode(torch.zeros(3, 3).long()), r"codes \[..., 2\], got \[3, 3\]"),
        (lambda: ProductQuantizer(levels(2)).encode(torch.zeros(3, 13)), r"latents \[..., 12\]"),
        (lambda: GumbelQuantizer(5, 8, 3, projection=False), "latent_dim = vocab_size = 8 without a projection"),
        (lambda: GumbelQuantizer(0, 8, 3), "latent_dim >= 1"),
        (lambda: GumbelQuantizer(5, 8, 0), "dim >= 1"),
        (lambda: GumbelQuantizer(5, 8, 3, temperature=0.0), "temperature > 0"),
        (lambda: SimQuantizer(0, 8), "dim >= 1"),
        (lambda: SimQuantizer(3, 8, gradient="straight"), "straight-through, rotation"),
        (lambda: VectorQuantizer(3, 8, gradient="rotated"), "straight-through, rotation"),
        (lambda: EmaQuantizer(3, 8, gradient="none"), "straight-through, rotation"),
        (lambda: VectorQuantizer(3, 8, entropy_temperature=0.0), "entropy_temperature > 0"),
    ],
)
def test_what_cannot_be_is_refused_with_what_was_expected(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_finite_levels_may_be_groups():
    product = ProductQuantizer([FiniteScalarQuantizer((4, 4)), FiniteScalarQuantizer((16,), symmetric=True)])
    out = product(torch.randn(5, 3))
    assert (product.vocab_size, out.codes.shape, dict(out.losses)) == (16, (5, 2), {})


def test_a_schedule_may_set_the_temperature_of_a_compiled_quantizer_at_every_step():
    torch.compiler.reset()
    quantizer, latents = GumbelQuantizer(6, 9, 4).train(), torch.randn(50, 6)
    compiled = torch.compile(lambda x: quantizer(x).vectors, fullgraph=True, backend="aot_eager")
    for step in range(20):
        quantizer.temperature = 1.0 - step / 32
        gradients = []
        for function in (lambda x: quantizer(x).vectors, compiled):
            x = latents.clone().requires_grad_()
            torch.manual_seed(step)
            function(x).square().sum().backward()
            gradients.append(x.grad)
        torch.testing.assert_close(*gradients)
