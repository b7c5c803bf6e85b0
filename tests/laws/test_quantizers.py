"""Laws of every quantizer. A new one is a row of QUANTIZERS: these laws come for free."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vqtok
from vqtok import quantizers
from vqtok.errors import ConfigError, NonFiniteLatents
from vqtok.quantizers import (
    BinarySphericalQuantizer,
    EmaQuantizer,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    IndexBackpropagationQuantizer,
    LookupFreeQuantizer,
    ProductQuantizer,
    Quantizer,
    ResidualQuantizer,
    SimQuantizer,
    VectorQuantizer,
)

PENALTIES = ("entropy", "diversity", "orthogonality")
QUANTIZERS = {
    "vector-l2": lambda: VectorQuantizer(6, 31),
    "vector-cosine": lambda: VectorQuantizer(6, 31, metric="cosine"),
    "vector-rotation": lambda: VectorQuantizer(6, 31, gradient="rotation"),
    "vector-penalties": lambda: VectorQuantizer(6, 31, "cosine", penalties=PENALTIES),
    "vector-unit-latents": lambda: VectorQuantizer(6, 31, unit_latents=True, penalties=PENALTIES),
    "vector-unit-vectors": lambda: VectorQuantizer(6, 31, unit_vectors=True, gradient="rotation"),
    "ema-l2": lambda: EmaQuantizer(6, 31),
    "ema-cosine": lambda: EmaQuantizer(6, 31, metric="cosine", revive_below=0.1, kmeans_iterations=3),
    "ema-rotation": lambda: EmaQuantizer(6, 31, gradient="rotation"),
    "sim": lambda: SimQuantizer(6, 31, penalties=PENALTIES),
    "sim-bias-rotation": lambda: SimQuantizer(6, 31, bias=True, gradient="rotation"),
    "index": lambda: IndexBackpropagationQuantizer(6, 31, penalties=PENALTIES),
    "gumbel": lambda: GumbelQuantizer(6, 31, 5),
    "gumbel-logits": lambda: GumbelQuantizer(31, 31, 5, projection=False, temperature=0.5),
    "gumbel-soft": lambda: GumbelQuantizer(6, 31, 5, hard=False),
    "finite": lambda: FiniteScalarQuantizer((8, 5, 3)),
    "finite-symmetric": lambda: FiniteScalarQuantizer((8, 5, 2), symmetric=True),
    "signs-big": lambda: LookupFreeQuantizer(7),
    "signs-little": lambda: LookupFreeQuantizer(7, "little", scale=0.3, group_bits=3),
    "sphere": lambda: BinarySphericalQuantizer(7, group_bits=4),
    "residual": lambda: ResidualQuantizer([VectorQuantizer(6, 31) for _ in range(3)]),
    "residual-shared": lambda: ResidualQuantizer([VectorQuantizer(6, 31)] * 3),
    "residual-ema": lambda: ResidualQuantizer([EmaQuantizer(6, 31, kmeans_iterations=2) for _ in range(3)], dropout=1),
    "residual-signs": lambda: ResidualQuantizer([LookupFreeQuantizer(5, scale=0.5**i) for i in range(3)]),
    "product": lambda: ProductQuantizer([VectorQuantizer(2, 31), EmaQuantizer(3, 31, "cosine"), SimQuantizer(4, 31)]),
    "product-shared": lambda: ProductQuantizer([GumbelQuantizer(4, 9, 3)] * 2),
    "product-residual": lambda: ProductQuantizer([ResidualQuantizer([SimQuantizer(3, 9)] * 2) for _ in range(2)]),
}
every_quantizer = pytest.mark.parametrize("make", QUANTIZERS.values(), ids=QUANTIZERS)
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def steady(quantizer: Quantizer) -> Quantizer:
    """The quantizer without what draws numbers by itself: k-means, revival, dropout of levels."""
    for module in quantizer.modules():
        if isinstance(module, EmaQuantizer):
            module.revive_below = module.kmeans_iterations = 0
        if isinstance(module, ResidualQuantizer):
            module.dropout = 0.0
    return quantizer


def latents_of(quantizer: Quantizer, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, quantizer.latent_dim)


def test_every_class_has_a_row():
    classes = {type(make()).__name__ for make in QUANTIZERS.values()}
    # Levels lie on a grid: their laws are those of tests/laws/test_hierarchy.py.
    there = {name for name in vars(quantizers) if name.endswith("Quantizer")} - {"Quantizer", "LevelsQuantizer"}
    assert classes == there


@every_quantizer
def test_in_eval_forward_gives_exactly_what_decode_of_encode_gives(make):
    quantizer = make().eval()
    latents = latents_of(quantizer, 3, 5, 7)
    out = quantizer(latents)
    assert torch.equal(out.codes, quantizer.encode(latents))
    assert torch.equal(out.vectors, quantizer.decode(out.codes))
    assert out.codes.shape == (3, 5, 7) + ((quantizer.codebooks,) if quantizer.codebooks > 1 else ())
    assert out.vectors.shape == (3, 5, 7, quantizer.dim)
    assert torch.equal(out.codes, out.codes.clamp(0, quantizer.vocab_size - 1))


@every_quantizer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_eval_forward_is_decode_of_encode_in_every_dtype_and_layout(make, dtype):
    quantizer = make().eval()
    latents = torch.randn(2, quantizer.latent_dim, 4, 3).to(dtype).permute(0, 2, 3, 1)
    out = quantizer(latents)
    assert torch.equal(out.codes, quantizer.encode(latents.contiguous()))
    assert torch.equal(out.vectors, quantizer.decode(out.codes))
    assert all(loss.isfinite() and loss.dim() == 0 for loss in out.losses.values())
    assert all(loss.dtype in (torch.float32, torch.float64) for loss in out.losses.values())


@pytest.mark.parametrize("name", sorted(QUANTIZERS.keys() - {"gumbel-soft"}))  # which was asked for mixtures
def test_in_training_vectors_are_rows_of_the_codebook_before_it_learnt(name):
    quantizer = steady(QUANTIZERS[name]())
    before = copy.deepcopy(quantizer)
    out = quantizer.train()(latents_of(quantizer, 40))
    assert torch.equal(out.vectors, before.decode(out.codes))


@every_quantizer
def test_torchs_default_dtype_does_not_reach_the_codes(make, default_dtype):
    quantizer = make()
    out = quantizer.train()(torch.randn(300, quantizer.latent_dim, dtype=torch.float32))
    assert torch.equal(out.codes, out.codes.clamp(0, quantizer.vocab_size - 1))
    assert all(x.isfinite().all() for x in quantizer.state_dict().values())
    found = quantizer.eval().decode(out.codes)
    torch.set_default_dtype(torch.float32)
    expected = quantizer.decode(out.codes)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@every_quantizer
def test_no_latents_are_quantized_to_nothing_and_teach_nothing(make):
    quantizer = steady(make()).train()
    codes = torch.arange(quantizer.vocab_size)
    codes = codes[:, None].expand(-1, quantizer.codebooks) if quantizer.codebooks > 1 else codes
    before = quantizer.decode(codes).clone()
    out = quantizer(torch.zeros(0, 4, quantizer.latent_dim))
    assert (out.vectors.shape, out.codes.shape[:2]) == ((0, 4, quantizer.dim), (0, 4))
    torch.testing.assert_close(quantizer.decode(codes), before, rtol=1e-4, atol=1e-4)
    assert all(loss == 0 for name, loss in out.losses.items() if name != "orthogonality")


@every_quantizer
def test_in_eval_nothing_changes_and_nothing_is_random(make):
    quantizer = make().eval()
    before, random = copy.deepcopy(quantizer.state_dict()), torch.get_rng_state()
    latents = torch.linspace(-1, 1, 10 * quantizer.latent_dim).view(10, -1)
    first, second = (quantizer(latents) for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], x) for name, x in quantizer.state_dict().items())


@every_quantizer
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 12))
def test_codes_depend_neither_on_the_batch_nor_on_its_order(make, seed, rows):
    torch.manual_seed(seed)
    quantizer = make().eval()
    latents = latents_of(quantizer, rows)
    latents[::3] = latents[0].clone()  # ties between rows and perhaps between codes
    codes, order = quantizer.encode(latents), torch.randperm(rows)
    assert torch.equal(quantizer.encode(latents[order]), codes[order])
    assert torch.equal(torch.stack([quantizer.encode(x) for x in latents]), codes)
    assert torch.equal(torch.stack([quantizer(x).vectors for x in latents]), quantizer.decode(codes))


@every_quantizer
def test_non_finite_latents_name_their_first_row(make):
    quantizer = make()
    latents = torch.zeros(4, quantizer.latent_dim)
    latents[2, -1] = float("nan")
    for function in (quantizer.encode, quantizer.eval(), quantizer.train()):
        with pytest.raises(NonFiniteLatents, match="row 2") as caught:
            function(latents)
        assert caught.value.row == 2


@every_quantizer
def test_latents_of_another_space_are_refused(make):
    quantizer = make().eval()
    for latents in (
        torch.zeros(4, quantizer.latent_dim + 1),
        torch.zeros(()),
        torch.zeros(4, quantizer.latent_dim).long(),
    ):
        for function in (quantizer.encode, quantizer):
            with pytest.raises(ConfigError, match="expected"):
                function(latents)


@every_quantizer
@pytest.mark.parametrize("size", [1e4, 0.0], ids=["certain", "even"])
def test_losses_and_gradients_are_finite_where_every_probability_is_certain_or_none(make, size):
    quantizer = make().train()
    latents = (size * latents_of(quantizer, 40)).requires_grad_()
    out = quantizer(latents)
    assert all(loss.isfinite() for loss in out.losses.values())
    (out.vectors.sum() + sum(out.losses.values())).backward()
    assert latents.grad.isfinite().all()
    assert all(x.grad is None or x.grad.isfinite().all() for x in quantizer.parameters())


@every_quantizer
def test_autocast_changes_nothing(make):
    quantizer = steady(make()).train()
    other, latents = copy.deepcopy(quantizer), latents_of(quantizer, 40)
    torch.manual_seed(1)
    expected = quantizer(latents)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        found = other(latents)
        again = other.eval()(latents)
        assert torch.equal(again.vectors, other.decode(other.encode(latents)))
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.vectors, expected.vectors)
    assert dict(found.losses) == dict(expected.losses)


@every_quantizer
def test_a_state_dict_makes_another_quantizer_the_same_one(make):
    torch.manual_seed(1)
    quantizer = make().train()
    latents = latents_of(quantizer, 40)
    quantizer(latents)
    quantizer.eval()
    others = [make().eval() for _ in range(2)]
    others[0].load_state_dict(quantizer.state_dict())
    with torch.device("meta"):
        others[1] = make().eval()
    others[1].load_state_dict(quantizer.state_dict(), assign=True)
    for other in (*others, copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert torch.equal(other(latents).codes, quantizer(latents).codes)
        assert torch.equal(other(latents).vectors, quantizer(latents).vectors)
    pointers = [x.data_ptr() for x in quantizer.state_dict().values()]
    assert len({*pointers}) == len(pointers)  # what is shared is there once


@every_quantizer
def test_compiled_it_is_one_graph_that_gives_the_same(make):
    quantizer = steady(make())
    other, latents = copy.deepcopy(quantizer), latents_of(quantizer, 40)
    torch.compiler.reset()

    def step(module, x):
        out = module(x)
        return out.codes, out.vectors, dict(out.losses)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for training in (True, False):
        eager_in, compiled_in = latents.clone().requires_grad_(), latents.clone().requires_grad_()
        quantizer.train(training), other.train(training)
        torch.manual_seed(1)
        codes, vectors, losses = step(quantizer, eager_in)
        torch.manual_seed(1)
        found = compiled(other, compiled_in)
        assert torch.equal(found[0], codes)
        assert torch.equal(found[1], vectors)
        torch.testing.assert_close(found[2], losses, rtol=1e-6, atol=1e-6)
        (vectors.square().sum() + sum(losses.values())).backward()
        (found[1].square().sum() + sum(found[2].values())).backward()
        torch.testing.assert_close(compiled_in.grad, eager_in.grad, rtol=1e-5, atol=1e-6)
        for (name, x), y in zip(quantizer.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(y.grad, x.grad, rtol=1e-5, atol=1e-6, msg=name)
    for name, x in quantizer.state_dict().items():
        assert torch.equal(other.state_dict()[name], x), name


def test_public_names_are_the_classes():
    assert vqtok.VectorQuantizer is VectorQuantizer
    assert vqtok.EmaQuantizer is EmaQuantizer


def test_one_side_alone_is_normalised():
    """LaVIT compares unit latents with raw rows, and hands those out; transformers' Janus hands out unit rows alone.

    That a vector's code is the row it came from does not hold for these two, so they are no rows of QUANTIZERS.
    """
    torch.manual_seed(0)
    latents, rows = 3 * torch.randn(40, 6), torch.randn(31, 6)
    z, e = latents.double().numpy(), rows.double().numpy()
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    nearest = lambda z: ((z[:, None] - e) ** 2).sum(-1).argmin(1)  # noqa: E731
    lavit, janus = (VectorQuantizer(6, 31, **{name: True}) for name in ("unit_latents", "unit_vectors"))
    lavit.codebook.data, janus.codebook.data = rows.clone(), rows.clone()
    assert (nearest(z) != nearest(unit(z))).any()
    assert np.array_equal(lavit.encode(latents).numpy(), nearest(unit(z)))
    assert np.array_equal(janus.encode(latents).numpy(), nearest(z))
    assert torch.equal(lavit.decode(lavit.encode(latents)), rows[nearest(unit(z))])
    vectors = janus.decode(janus.encode(latents)).detach().numpy()
    np.testing.assert_allclose(vectors, unit(e)[nearest(z)], rtol=0, atol=1e-7)
    for quantizer in (lavit.eval(), janus.eval()):
        out = quantizer(latents)
        assert torch.equal(out.codes, quantizer.encode(latents))
        assert torch.equal(out.vectors, quantizer.decode(out.codes))
    with pytest.raises(ConfigError, match="cosine normalises both"):
        VectorQuantizer(6, 31, "cosine", unit_latents=True)
