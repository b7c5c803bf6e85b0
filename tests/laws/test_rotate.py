"""What rotate promises: straight_through's values, and the gradient of a scaled rotation that is held constant."""

import pytest
import torch

from vqtok.errors import ConfigError
from vqtok.ops import nearest_code, rotate, straight_through, use_backend
from vqtok.ops.table import ROTATE_BACKWARD


@pytest.fixture(params=[backend.name for backend in ROTATE_BACKWARD.backends if backend.serves("cpu")])
def backend(request):
    row = next(b for b in ROTATE_BACKWARD.backends if b.name == request.param)
    if reason := row.reason_against(torch.zeros(1, 1), torch.zeros(1, 1)):
        pytest.skip(f"{row.name} {reason}")
    with use_backend(request.param):
        yield request.param


def problem(dtype=torch.float32, rows=40, dim=6, vocab_size=9):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, rows // 2, dim, generator=generator, dtype=torch.float64).to(dtype)
    codebook = torch.randn(vocab_size, dim, generator=generator, dtype=torch.float64).to(dtype)
    return latents.requires_grad_(), codebook.requires_grad_(), nearest_code(latents, codebook)


def matrices(latents, vectors):
    """The scaled rotation of each latent to its vector, written out as a matrix, in float64."""
    z, q = latents.detach().double(), vectors.detach().double()
    u, v = (x / x.norm(dim=-1, keepdim=True) for x in (z, q))
    w = u + v
    w = w / w.norm(dim=-1, keepdim=True)
    reflection = torch.eye(z.shape[-1]) - 2 * w[..., :, None] * w[..., None, :]
    turned = reflection + 2 * v[..., :, None] * u[..., None, :]
    return turned * (q.norm(dim=-1) / z.norm(dim=-1))[..., None, None]


def gradient_of(function, latents, codebook, codes, gradient):
    z = latents.detach().clone().requires_grad_()
    function(z, codebook, codes).vectors.backward(gradient)
    return z.grad


def test_values_and_losses_are_those_of_straight_through(backend):
    latents, codebook, codes = problem()
    turned, straight = rotate(latents, codebook, codes), straight_through(latents, codebook, codes)
    assert torch.equal(turned.vectors, codebook[codes])
    assert list(turned.losses) == ["codebook", "commitment"]
    for name, loss in straight.losses.items():
        assert torch.equal(turned.losses[name], loss)


def test_the_rotation_takes_each_latent_to_its_vector_and_keeps_angles():
    latents, codebook, codes = problem(torch.float64)
    turn = matrices(latents, codebook[codes])
    torch.testing.assert_close((turn @ latents[..., None])[..., 0], codebook[codes])
    scale = codebook[codes].norm(dim=-1) / latents.norm(dim=-1)
    identity = turn.mT @ turn / scale.square()[..., None, None]
    torch.testing.assert_close(identity, torch.eye(6, dtype=torch.float64).expand_as(identity))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_gradient_is_that_of_a_constant_matrix(backend, dtype):
    if dtype == torch.float64 and backend == "cpu":
        pytest.skip("cpu takes at most float32; the reference is chosen instead")
    latents, codebook, codes = problem(dtype)
    codebook = codebook.detach().float() if dtype != torch.float64 else codebook.detach()
    gradient = torch.randn(latents.shape).to(codebook.dtype)
    came = gradient_of(rotate, latents, codebook, codes, gradient)
    expected = (matrices(latents, codebook[codes]).mT @ gradient.double()[..., None])[..., 0]
    assert came.dtype == dtype
    torch.testing.assert_close(came, expected.to(dtype))


def test_losses_have_their_gradients_too(backend):
    ours, plain = problem(), problem()
    out = rotate(*ours)
    (out.losses["codebook"] + 0.25 * out.losses["commitment"]).backward()
    latents, codebook, codes = plain
    mse = torch.nn.functional.mse_loss
    (mse(codebook[codes], latents.detach()) + 0.25 * mse(latents, codebook[codes].detach())).backward()
    torch.testing.assert_close(ours[0].grad, latents.grad)
    torch.testing.assert_close(ours[1].grad, codebook.grad)


def test_of_one_dimension_only_the_scale_is_left(backend):
    latents, codebook = torch.tensor([[2.0], [-4.0]]), torch.tensor([[1.0], [-1.0]])
    came = gradient_of(rotate, latents, codebook, torch.tensor([0, 1]), torch.ones(2, 1))
    torch.testing.assert_close(came, torch.tensor([[0.5], [0.25]]))


@pytest.mark.parametrize(
    ("latent", "vector"),
    [
        ([0.0, 0.0], [3.0, 4.0]),
        ([3.0, 4.0], [0.0, 0.0]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([3.0, 4.0], [-3.0, -4.0]),
        ([3.0, 4.0], [-6.0, -8.0]),
        ([3e-7, 4e-7], [3.0, -4.0]),
        ([1e-40, 0.0], [0.0, 1.0]),
    ],
)
def test_where_no_rotation_is_defined_gradients_pass_straight_through(backend, latent, vector):
    gradient = torch.tensor([[0.5, -2.0]])
    inputs = torch.tensor([latent]), torch.tensor([vector]), torch.tensor([0])
    assert torch.equal(gradient_of(rotate, *inputs, gradient), gradient)


@pytest.mark.parametrize("angle", [1e-4, 2e-6])
def test_nearly_opposite_directions_still_turn(backend, angle):
    latents, codebook = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[-1.0, angle, 0.0]])
    gradient = torch.tensor([[0.3, -0.7, 2.0]])
    came = gradient_of(rotate, latents, codebook, torch.tensor([0]), gradient)
    expected = (matrices(latents, codebook).mT @ gradient.double()[..., None])[..., 0]
    torch.testing.assert_close(came.double(), expected, rtol=1e-6, atol=1e-6)


def test_no_latents_cost_nothing(backend):
    latents, codebook, _ = problem()
    out = rotate(latents[:0], codebook, torch.zeros(0, 20, dtype=torch.int64))
    (out.vectors.sum() + out.losses["codebook"] + out.losses["commitment"]).backward()
    assert codebook.grad.eq(0).all()


def test_nothing_but_the_inputs_is_kept_for_the_backward_pass():
    latents, codebook, codes = problem()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        rotate(latents, codebook, codes)
    assert kept == [latents.data_ptr(), codebook.data_ptr(), codes.data_ptr()]


def test_autocast_changes_nothing(backend):
    latents, codebook, codes = problem()
    gradient = torch.randn(latents.shape)
    plain = gradient_of(rotate, latents, codebook, codes, gradient)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient_of(rotate, latents, codebook, codes, gradient), plain)


def test_codes_that_do_not_fit_are_refused():
    latents, codebook, codes = problem()
    with pytest.raises(ConfigError, match=r"expected codes in 0..8, got 9"):
        rotate(latents, codebook, codes.clamp(min=9))
    with pytest.raises(ConfigError, match=r"expected latents \[..., 6\]"):
        rotate(latents[..., :5], codebook, codes)
