"""What straight_through promises."""

import pytest
import torch

from vqtok.errors import ConfigError
from vqtok.ops import nearest_code, straight_through


def problem(dtype=torch.float32, rows=40, dim=6, vocab_size=9):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, rows // 2, dim, generator=generator, dtype=torch.float64).to(dtype)
    codebook = torch.randn(vocab_size, dim, generator=generator, dtype=torch.float64).to(dtype)
    return latents.requires_grad_(), codebook.requires_grad_(), nearest_code(latents, codebook)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_vectors_are_rows_of_the_codebook_bit_for_bit(dtype):
    latents, codebook, codes = problem(dtype)
    out = straight_through(latents * 1e3, codebook, codes)
    assert torch.equal(out.vectors, codebook[codes])
    assert out.vectors.dtype == dtype
    assert torch.equal(out.codes, codes)


def test_straight_through_gradient_is_identity():
    latents, codebook, codes = problem()
    weights = torch.arange(latents.numel(), dtype=torch.float32).reshape(latents.shape)
    (straight_through(latents, codebook, codes).vectors * weights).sum().backward()
    assert torch.equal(latents.grad, weights)
    assert torch.equal(codebook.grad, torch.zeros_like(codebook))


def test_both_losses_are_the_mean_squared_difference():
    latents, codebook, codes = problem()
    losses = straight_through(latents, codebook, codes).losses
    torch.testing.assert_close(losses["commitment"], torch.nn.functional.mse_loss(latents, codebook[codes]))
    assert list(losses) == ["codebook", "commitment"]
    assert torch.equal(losses["codebook"], losses["commitment"])


def test_commitment_moves_the_latents_alone_and_by_its_derivative():
    latents, codebook, codes = problem(torch.float64)
    frozen = codebook.detach()
    assert torch.autograd.gradcheck(lambda z: straight_through(z, frozen, codes).losses["commitment"], latents)
    straight_through(latents, codebook, codes).losses["commitment"].backward()
    assert codebook.grad.eq(0).all()
    assert latents.grad.ne(0).any()


def test_the_codebook_loss_moves_the_codebook_alone_and_by_its_derivative():
    latents, codebook, codes = problem(torch.float64)
    frozen = latents.detach()
    assert torch.autograd.gradcheck(lambda e: straight_through(frozen, e, codes).losses["codebook"], codebook)
    straight_through(latents, codebook, codes).losses["codebook"].backward()
    assert latents.grad.eq(0).all()
    assert codebook.grad.ne(0).any()


def test_gradients_are_those_of_the_textbook():
    ours, textbook = problem(), problem()
    out = straight_through(*ours)
    (out.vectors.sin().sum() + out.losses["codebook"] + 0.25 * out.losses["commitment"]).backward()
    latents, codebook, codes = textbook
    chosen, mse = codebook[codes], torch.nn.functional.mse_loss
    vectors = latents + (chosen - latents).detach()
    (vectors.sin().sum() + mse(chosen, latents.detach()) + 0.25 * mse(latents, chosen.detach())).backward()
    torch.testing.assert_close(ours[0].grad, latents.grad)
    torch.testing.assert_close(ours[1].grad, codebook.grad)


def test_a_codebook_without_gradient_is_left_alone():
    latents, codebook, codes = problem()
    out = straight_through(latents, codebook.detach(), codes)
    (out.vectors.sum() + out.losses["commitment"]).backward()
    assert codebook.grad is None
    assert latents.grad is not None


def test_latents_without_gradient_still_teach_the_codebook():
    latents, codebook, codes = problem()
    straight_through(latents.detach(), codebook, codes).losses["codebook"].backward()
    assert latents.grad is None
    assert codebook.grad.ne(0).any()


def test_nothing_but_the_inputs_is_kept_for_the_backward_pass():
    latents, codebook, codes = problem()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        straight_through(latents, codebook, codes)
    assert kept == [latents.data_ptr(), codebook.data_ptr(), codes.data_ptr()]


def test_a_codebook_changed_before_backward_is_noticed():
    latents, codebook, codes = problem()
    codebook = codebook.detach()
    loss = straight_through(latents, codebook, codes).losses["commitment"]
    codebook += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_latents_cost_nothing():
    latents, codebook, _ = problem()
    out = straight_through(latents[:0], codebook, torch.zeros(0, 20, dtype=torch.int64))
    (out.losses["codebook"] + out.losses["commitment"]).backward()
    assert out.losses["commitment"].item() == 0
    assert codebook.grad.eq(0).all()


def test_autocast_changes_nothing():
    plain, autocast = problem(), problem()
    for (latents, codebook, codes), enabled in ((plain, False), (autocast, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            assert torch.equal(nearest_code(latents, codebook), codes)
            out = straight_through(latents, codebook, codes)
        (out.vectors.sum() + sum(out.losses.values())).backward()
        assert out.vectors.dtype == torch.float32
    assert torch.equal(plain[0].grad, autocast[0].grad)
    assert torch.equal(plain[1].grad, autocast[1].grad)


def test_half_latents_meet_a_float32_codebook():
    latents, codebook, codes = problem()
    half = latents.detach().bfloat16().requires_grad_()
    out = straight_through(half, codebook, codes)
    (out.vectors.sum() + sum(out.losses.values())).backward()
    assert torch.equal(out.vectors, codebook[codes])
    assert (out.losses["commitment"].dtype, half.grad.dtype, codebook.grad.dtype) == (
        torch.float32,
        torch.bfloat16,
        torch.float32,
    )


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.full((2, 20), 9), "expected codes in 0..8, got 9"),
        (torch.full((2, 20), -1), "expected codes in 0..8, got -1"),
        (torch.zeros(40, dtype=torch.int64), r"expected codes int64 \[2, 20\]"),
    ],
)
def test_codes_that_do_not_fit_are_refused(codes, message):
    latents, codebook, _ = problem()
    with pytest.raises(ConfigError, match=message):
        straight_through(latents, codebook, codes)


LAYOUTS = {
    "contiguous": lambda x: x,
    "BCHW": lambda x: x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "sliced": lambda x: torch.nn.functional.pad(x, (1, 2))[..., 1:-2],
    "crossed": lambda x: x.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dim", [1, 7, 300])
def test_latents_and_gradients_of_any_layout_are_read_where_they_lie(layout, dtype, dim):
    rows = torch.randn(3, 4, 5, dim, dtype=torch.float64).to(dtype)
    codebook = torch.randn(11, dim).double() if dtype == torch.float64 else torch.randn(11, dim)
    codes = torch.randint(11, (5, 4, 3)).permute(2, 1, 0)
    gradient = torch.randn(3, 4, 5, dim, dtype=codebook.dtype)
    grads = []
    for arrange in (LAYOUTS[layout], torch.clone):
        z, e = arrange(rows).detach().requires_grad_(), codebook.clone().requires_grad_()
        out = straight_through(z, e, codes)
        assert torch.equal(out.vectors, e[codes])
        total = out.losses["codebook"] + 0.25 * out.losses["commitment"]
        torch.autograd.backward([out.vectors, total], [arrange(gradient), None])
        grads.append((out.losses["codebook"], z.grad, e.grad))
    for came, expected in zip(*grads, strict=True):
        assert torch.equal(came, expected)


def test_a_gradient_that_is_one_number_everywhere_is_read_as_such():
    latents, codebook, codes = problem()
    straight_through(latents, codebook, codes).vectors.sum().backward()  # torch hands over an expanded scalar
    assert torch.equal(latents.grad, torch.ones_like(latents))


def test_nothing_depends_on_the_threads():
    latents, codebook, codes = problem(rows=30_000, dim=40, vocab_size=500)
    gradient = torch.randn(latents.shape)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            latents.grad = codebook.grad = None
            out = straight_through(latents, codebook, codes)
            total = out.losses["codebook"] + 0.25 * out.losses["commitment"]
            torch.autograd.backward([out.vectors, total], [gradient, None])
            results.append((out.vectors, out.losses["codebook"], latents.grad, codebook.grad))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
