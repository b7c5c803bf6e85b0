"""Laws of the losses: the papers' formulas in NumPy, in float64, and gradients."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed as dist
from torch import multiprocessing, nn

from vqtok import losses
from vqtok.errors import ConfigError
from vqtok.losses import ADVERSARIAL, LeCam, Objective, PerceptualLoss
from vqtok.losses.logit_laplace import LOWEST_LOG_SCALE
from vqtok.networks import PatchDiscriminator, StyleDiscriminator

HALF = torch.bfloat16


def numpy_l1(x, y):
    return np.abs(x - y).mean()


def numpy_l2(x, y):
    return ((x - y) ** 2).mean()


def numpy_cosine(x, y):
    lengths = np.sqrt((x**2).sum(-1)) * np.sqrt((y**2).sum(-1))
    return (1 - (x * y).sum(-1) / lengths).mean()


def numpy_hinge(real, fake):
    return 0.5 * (np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean())


def numpy_softplus(real, fake):
    return 0.5 * (np.log1p(np.exp(-real)).mean() + np.log1p(np.exp(fake)).mean())


def numpy_laplace(parameters, x):
    """Ramesh et al. 2021, equation 2 of appendix A.3, pixel by pixel: a density, then its logarithm."""
    centre, scale = np.split(parameters, 2, axis=1)
    b = np.exp(scale)
    density = 1 / (2 * b * x * (1 - x)) * np.exp(-np.abs(np.log(x / (1 - x)) - centre) / b)
    return -np.log(density).mean()


def numpy_laplace_of_both(x, y):
    return numpy_laplace(np.concatenate([x, y], 1), 0.1 + 0.8 / (1 + np.exp(-y)))


def laplace_of_both(x, y):
    return losses.logit_laplace(torch.cat([x, y], 1), 0.1 + 0.8 * torch.sigmoid(y))


FORMULAS = {
    "l1": (losses.l1, numpy_l1),
    "l2": (losses.l2, numpy_l2),
    "cosine": (losses.cosine_feature_loss, numpy_cosine),
    "hinge": (ADVERSARIAL["hinge"].discriminator, numpy_hinge),
    "softplus": (ADVERSARIAL["softplus"].discriminator, numpy_softplus),
    "hinge of the generator": (lambda x, _: ADVERSARIAL["hinge"].generator(x), lambda x, _: -x.mean()),
    "softplus of the generator": (
        lambda x, _: ADVERSARIAL["softplus"].generator(x),
        lambda x, _: np.log1p(np.exp(-x)).mean(),
    ),
    "logit-laplace": (laplace_of_both, numpy_laplace_of_both),
}
every_formula = pytest.mark.parametrize(("ours", "numpys"), FORMULAS.values(), ids=FORMULAS)


@every_formula
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, HALF], ids=str)
def test_losses_are_their_formulas(ours, numpys, dtype):
    """In half precision too: inputs are taken as they are, and no sum is made in it."""
    x, y = torch.randn(2, 4, 3, 5, 6).to(dtype)
    if ours is laplace_of_both:  # its own sigmoid would round
        x, y = x.float(), y.float()
    out = ours(x, y)
    assert out.shape == ()
    assert out.dtype == torch.promote_types(dtype, torch.float32) or ours is laplace_of_both
    tolerance = 1e-12 if out.dtype == torch.float64 else 1e-5
    assert out.item() == pytest.approx(numpys(x.double().numpy(), y.double().numpy()), rel=tolerance, abs=tolerance)


@every_formula
def test_gradients_are_right(ours, numpys):
    x, y = torch.randn(2, 2, 2, 2, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(ours, (x, y))


def test_a_wrong_shape_is_refused_and_never_broadcast():
    for loss in (losses.l1, losses.l2, losses.cosine_feature_loss):
        with pytest.raises(ConfigError, match=r"target's shape \(2, 3\), got \(1, 3\)"):
            loss(torch.zeros(1, 3), torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="first half"):
        losses.logit_laplace(torch.zeros(1, 6, 4, 4), torch.full((1, 1, 4, 4), 0.5))
    with pytest.raises(ConfigError, match="twice the channels"):
        losses.logit_laplace(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5))


@pytest.mark.parametrize(("centre", "log_scale"), [(0.0, 0.0), (1.3, -2.0), (-2.0, 0.3), (0.4, 0.9)])
def test_the_logit_laplace_density_integrates_to_one(centre, log_scale):
    """Over x in (0, 1), by the midpoint rule on t = logit(x), dx = x (1 - x) dt: no constant is missing."""
    step = 0.02
    t = centre + step * (torch.arange(-1400, 1400, dtype=torch.float64) + 0.5)  # the kink lies between two midpoints
    x = torch.sigmoid(t)
    parameters = torch.tensor([centre, log_scale], dtype=torch.float64).view(1, 2, 1, 1)
    density = torch.stack([torch.exp(-losses.logit_laplace(parameters, one.view(1, 1, 1, 1))) for one in x])
    assert (density * x * (1 - x)).sum().item() * step == pytest.approx(1, abs=1e-3)


def test_the_likeliest_centre_is_the_median_and_the_likeliest_scale_the_mean_distance():
    x = 0.1 + 0.8 * torch.rand(1, 1, 1, 101, dtype=torch.float64)
    logits = torch.logit(x)
    median = logits.median()
    scale = (logits - median).abs().mean().log()

    def loss(centre, log_scale):
        return losses.logit_laplace(torch.stack([centre, log_scale]).view(1, 2, 1, 1).expand(-1, -1, 1, 101), x)

    best = loss(median, scale)
    for d in (-0.05, 0.05):
        assert loss(median + d, scale) > best
        assert loss(median, scale + d) > best
    parameters = torch.stack([median, scale]).view(1, 2, 1, 1).expand(-1, -1, 1, 101)
    torch.testing.assert_close(losses.logit_laplace_pixels(parameters), x.median().expand_as(x))


def test_logit_laplace_stays_finite_whatever_the_decoder_says():
    pixels = torch.linspace(0.1, 0.9, 8).view(1, 1, 1, 8)
    for scale in (-1e4, -100.0, LOWEST_LOG_SCALE, 50.0, 1e4):
        parameters = torch.tensor([3.0, scale]).view(1, 2, 1, 1).repeat(1, 1, 1, 8).requires_grad_()
        loss = losses.logit_laplace(parameters, pixels)
        (gradient,) = torch.autograd.grad(loss, parameters)
        assert loss.isfinite()
        assert gradient.isfinite().all()
    low = [losses.logit_laplace(torch.tensor([3.0, s]).view(1, 2, 1, 1).repeat(1, 1, 1, 8), pixels) for s in (-7, -9)]
    assert low[0] == low[1]


def test_pixels_of_another_range_do_not_pass_quietly():
    for x in (-0.5, 0.0, 1.0, 1.5):
        assert not losses.logit_laplace(torch.zeros(1, 2, 1, 1), torch.full((1, 1, 1, 1), x)).isfinite()


def numpy_perceptual(a, b, heads):
    total = np.zeros(len(a[0]))
    for x, y, w in zip(a, b, heads, strict=True):
        for i in range(len(x)):
            for p in np.ndindex(x.shape[2:]):
                u, v = x[(i, slice(None), *p)], y[(i, slice(None), *p)]
                u, v = u / (np.sqrt(u @ u) + 1e-10), v / (np.sqrt(v @ v) + 1e-10)
                total[i] += w @ (u - v) ** 2 / np.prod(x.shape[2:])
    return total


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
def test_perceptual_is_the_formula_of_lpips(weighted, dtype):
    shapes = [(2, 5, 4, 3), (2, 7, 2, 1)]
    a, b = ([torch.randn(s).to(dtype) for s in shapes] for _ in range(2))
    heads = [torch.rand(s[1]) for s in shapes]
    expected = numpy_perceptual(
        [x.double().numpy() for x in a],
        [x.double().numpy() for x in b],
        [h.double().numpy() if weighted else np.ones(len(h)) for h in heads],
    )
    out = losses.perceptual(a, b, heads if weighted else None)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5)


def test_perceptual_distance_of_an_image_to_itself_is_zero_and_symmetric():
    a, b = [torch.randn(2, 5, 4, 4)], [torch.randn(2, 5, 4, 4)]
    assert torch.equal(losses.perceptual(a, a), torch.zeros(2))
    assert torch.equal(losses.perceptual(a, b), losses.perceptual(b, a))


def test_features_that_are_all_zero_give_no_bad_gradient():
    """The root of a sum of squares has no derivative there, and 0 / 0 would spread."""
    x = torch.zeros(1, 2, 1, 2, requires_grad=True)
    losses.perceptual([x], [torch.ones(1, 2, 1, 2)]).sum().backward()
    assert x.grad.isfinite().all()
    silent = torch.tensor([-1.0, -2.0]).view(1, 2, 1, 1).requires_grad_()
    losses.perceptual([silent.relu()], [torch.ones(1, 2, 1, 1)]).sum().backward()
    assert torch.equal(silent.grad, torch.zeros_like(silent))


def test_perceptual_gradients_are_right():
    a, b = (torch.randn(2, 3, 2, 2, dtype=torch.float64).requires_grad_() for _ in range(2))
    head = torch.rand(3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, y: losses.perceptual([x, x * x], [y, y], [head, head]), (a, b))


def test_levels_and_heads_that_do_not_match_are_refused():
    x = torch.ones(1, 2, 3, 3)
    for arguments, words in (
        (([x], [x, x]), "on both sides"),
        (([], []), "at least 1"),
        (([x], [x], [torch.ones(2)] * 2), "a head for each"),
        (([x], [x], [torch.ones(3)]), r"level 0 to be \[2\], got \[3\]"),
        (([x], [x[:, :1]]), "features of level 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            losses.perceptual(*arguments)


class Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Dropout(0.5), nn.Conv2d(4, 6, 3))

    def forward(self, pixels):
        x = self.first(pixels).relu()
        return [x, self.second(x)]


def test_the_perceptual_network_is_frozen_and_never_in_training_mode():
    heads = [torch.rand(4), torch.rand(6)]
    loss = PerceptualLoss(Pyramid(), heads).train()
    pixels, target = torch.rand(2, 3, 8, 8, requires_grad=True), torch.rand(2, 3, 8, 8, requires_grad=True)
    out = loss(pixels, target)
    expected = losses.perceptual(loss.network(pixels), loss.network(target), heads).mean()
    assert torch.equal(out, expected), "dropout is off"
    out.backward()
    assert pixels.grad.abs().sum() > 0
    assert target.grad is None
    assert all(not x.requires_grad and x.grad is None for x in loss.parameters())
    assert {"head0", "head1"} < set(loss.state_dict())


def test_keep_ratio_is_asked_of_each_image():
    keep = (torch.rand(4, 9) < 0.5).float()
    for ratio in (0.0, 1 / 3, 1.0):
        expected = np.mean([(ratio - row.mean()) ** 2 for row in keep.double().numpy()])
        assert losses.keep_ratio_loss(keep, ratio).item() == pytest.approx(expected, rel=1e-6)
    one_of_batch = (0.25 - keep.double().numpy().mean()) ** 2
    assert losses.keep_ratio_loss(keep.flatten(), 0.25).item() == pytest.approx(one_of_batch, rel=1e-5)
    x = torch.rand(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k: losses.keep_ratio_loss(k, 0.3), (x,))
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        losses.keep_ratio_loss(keep, 33)


def test_the_adaptive_weight_of_two_layers_is_its_closed_form():
    """y = W2 W1 x, nll = |y - t|^2 / 2, g = -c . y: the gradients by W2 are (y - t)(W1 x)' and -c (W1 x)'."""
    w1, w2 = torch.randn(3, 4), torch.randn(2, 3, requires_grad=True)
    x, t, c = torch.randn(4), torch.randn(2), torch.randn(2)
    y = w2 @ w1 @ x
    weight = losses.adaptive_weight((y - t).square().sum() / 2, -(c @ y), last_layer=w2)
    h, error = (w1 @ x).double().numpy(), (y - t).detach().double().numpy()
    above, below = np.linalg.norm(np.outer(error, h)), np.linalg.norm(np.outer(c.double().numpy(), h))
    assert weight.item() == pytest.approx(0.8 * above / (below + 1e-4), rel=1e-5)
    assert not weight.requires_grad


def test_the_adaptive_weight_is_bounded_and_leaves_the_graph_for_backward():
    w = torch.tensor([2.0], requires_grad=True)
    nll, generator = 3 * w.sum(), 0 * w.sum()
    assert losses.adaptive_weight(nll, generator, last_layer=w).item() == pytest.approx(0.8 * 1e4)
    assert losses.adaptive_weight(0 * nll, 5 * w.sum(), last_layer=w).item() == 0
    assert losses.adaptive_weight(nll * 1e-3, generator, last_layer=w).item() == pytest.approx(0.8 * 30, rel=1e-5)
    (nll + generator).backward()
    assert w.grad.item() == 3


class Quadratic(nn.Module):
    """D(x) = sum a x^2 / 2 + b x, whose gradient is a x + b."""

    def __init__(self, channels):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(channels, 1, 1, dtype=torch.float64)) for _ in range(2))

    def forward(self, pixels):
        return self.a * pixels.square() / 2 + self.b * pixels


def test_r1_of_a_quadratic_discriminator_is_its_closed_form():
    discriminator, pixels = Quadratic(3), torch.randn(4, 3, 2, 5, dtype=torch.float64, requires_grad=True)
    penalty = losses.r1_penalty(discriminator, pixels)
    a, b, x = (v.detach().numpy() for v in (discriminator.a, discriminator.b, pixels))
    slope = a * x + b
    assert penalty.item() == pytest.approx((slope**2).sum() / 4 / 2, rel=1e-12)
    penalty.backward()
    np.testing.assert_allclose(discriminator.a.grad[:, 0, 0], (slope * x).sum((0, 2, 3)) / 4, rtol=1e-12)
    np.testing.assert_allclose(discriminator.b.grad[:, 0, 0], slope.sum((0, 2, 3)) / 4, rtol=1e-12)
    assert pixels.grad is None


@pytest.mark.parametrize(
    "discriminator",
    [lambda: PatchDiscriminator(channels=4, layers=1), lambda: StyleDiscriminator(size=8, max_channels=4, group=2)],
    ids=["patch", "style"],
)
def test_r1_falls_when_it_is_minimised(discriminator):
    network, pixels = discriminator(), torch.rand(4, 3, 8, 8)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    values = []
    for _ in range(20):
        penalty = losses.r1_penalty(network, pixels)
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        values.append(penalty.item())
    assert values[-1] < 0.5 * values[0]


def numpy_lecam(batches, decay):
    averages, out = None, []
    for real, fake in batches:
        now = np.array([real.mean(), fake.mean()])
        averages = now if averages is None else averages
        above, below = np.maximum(0, real - averages[1]), np.maximum(0, averages[0] - fake)
        out.append((above**2).mean() + (below**2).mean())
        averages = decay * averages + (1 - decay) * now
    return out, averages


def test_lecam_pulls_to_the_averages_of_the_batches_before():
    batches = torch.randn(6, 2, 8) + torch.tensor([0.5, -0.5])[:, None]
    lecam = LeCam(decay=0.7).train()
    expected, averages = numpy_lecam(batches.double().numpy(), 0.7)
    values = [lecam(*pair).item() for pair in batches]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    np.testing.assert_allclose([lecam.real_mean, lecam.fake_mean], averages, rtol=1e-5)


def test_lecam_goes_on_where_it_was_saved_and_does_not_learn_in_eval(tmp_path):
    batches = torch.randn(4, 2, 8)
    lecam = LeCam(decay=0.7)
    for pair in batches[:3]:
        lecam(*pair)
    save_file(lecam.state_dict(), tmp_path / "lecam.safetensors")
    resumed = LeCam(decay=0.7)
    resumed.load_state_dict(load_file(tmp_path / "lecam.safetensors"))
    before = {name: x.clone() for name, x in resumed.state_dict().items()}
    assert torch.equal(resumed.eval()(*batches[3]), lecam(*batches[3]))
    assert all(torch.equal(x, before[name]) for name, x in resumed.state_dict().items())


def test_lecam_gives_the_logits_a_gradient_and_its_averages_none():
    lecam = LeCam()
    lecam(torch.tensor([1.0]), torch.tensor([-1.0]))
    real, fake = torch.tensor([2.0, -3.0], requires_grad=True), torch.tensor([0.5, 4.0], requires_grad=True)
    lecam(real, fake).backward()
    torch.testing.assert_close(real.grad, torch.tensor([3.0, 0.0]))  # 2 (2 + 1) / 2; below the fakes' average: none
    torch.testing.assert_close(fake.grad, torch.tensor([-0.5, 0.0]))
    assert not lecam.real_mean.requires_grad
    with pytest.raises(ConfigError, match=r"decay in \[0, 1\)"):
        LeCam(decay=1)


def _lecam_in_a_rank(rank, address, batches, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    lecam = LeCam(decay=0.5)
    for real, fake in batches:
        half = slice(4 * rank, 4 * rank + 4)
        lecam(real[half], fake[half])
    results.put((lecam.real_mean.item(), lecam.fake_mean.item()))
    dist.barrier()
    dist.destroy_process_group()


def test_lecam_has_the_averages_of_one_process_on_every_rank(tmp_path):
    batches = torch.randn(3, 2, 8)
    lecam = LeCam(decay=0.5)
    for pair in batches:
        lecam(*pair)
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    address = f"file://{tmp_path / 'meeting'}"
    ranks = [context.Process(target=_lecam_in_a_rank, args=(r, address, batches, results)) for r in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(100)
        assert rank.exitcode == 0
    for _ in ranks:
        np.testing.assert_allclose(results.get(), [lecam.real_mean, lecam.fake_mean], rtol=1e-5)


def test_an_objective_is_the_weighted_sum_and_its_parts():
    x = torch.tensor(3.0, requires_grad=True)
    objective = Objective({"l2": 2.0, "commitment": 0.25, "entropy": -0.5})
    value = objective({"l2": x * x, "commitment": x, "entropy": 4 * x})
    assert value.total.item() == 2 * 9 + 0.25 * 3 - 0.5 * 12
    assert {name: part.item() for name, part in value.parts.items()} == {"l2": 18, "commitment": 0.75, "entropy": -6}
    assert sum(value.parts.values()) == value.total
    assert not any(part.requires_grad for part in value.parts.values())
    value.total.backward()
    assert x.grad.item() == 2 * 6 + 0.25 - 0.5 * 4


def test_a_loss_of_weight_zero_is_not_asked_for_and_cannot_harm():
    objective = Objective({"l2": 1.0, "perceptual": 0.0})
    assert objective.asks_for("l2")
    assert not objective.asks_for("perceptual")
    assert not objective.asks_for("nothing")
    assert objective({"l2": torch.tensor(2.0)}).total == 2
    assert objective({"l2": torch.tensor(2.0), "perceptual": torch.tensor(math.nan)}).total == 2
    assert set(objective({"l2": torch.tensor([2.0])}).parts) == {"l2"}


def test_names_without_a_partner_are_refused_and_the_nearest_is_named():
    objective = Objective({"commitment": 0.25, "l2": 1.0})
    commitment, l2 = torch.tensor(1.0), torch.tensor(1.0)
    with pytest.raises(ConfigError, match="no weight for the loss 'comitment': did you mean 'commitment'"):
        objective({"comitment": commitment, "l2": l2})
    with pytest.raises(ConfigError, match="a weight for 'commitment', but no such loss: losses: l2"):
        objective({"l2": l2})
    with pytest.raises(ConfigError, match=r"'l2' to be a scalar, got \[4\]"):
        objective({"commitment": commitment, "l2": torch.ones(4)})
    for weights in ({}, {"l2": 0.0}, {"l2": 1.0, "l1": math.nan}, {"l1": math.inf}):
        with pytest.raises(ConfigError, match="finite weights, at least one of them not 0"):
            Objective(weights)
