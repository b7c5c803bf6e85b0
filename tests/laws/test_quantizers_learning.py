"""Laws of the quantizers whose codebook learns from losses or averages: VectorQuantizer and EmaQuantizer."""

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing
from torch.nn import functional as F

import vqtok
from vqtok import EmaQuantizer, VectorQuantizer
from vqtok.errors import ConfigError
from vqtok.quantizers import ResidualQuantizer

ALL = {
    "vector-l2": lambda: VectorQuantizer(dim=6, vocab_size=31),
    "vector-cosine": lambda: VectorQuantizer(dim=6, vocab_size=31, metric="cosine"),
    "ema-l2": lambda: EmaQuantizer(dim=6, vocab_size=31),
    "ema-cosine": lambda: EmaQuantizer(dim=6, vocab_size=31, metric="cosine", revive_below=0.1, kmeans_iterations=3),
}
every_quantizer = pytest.mark.parametrize("make", ALL.values(), ids=ALL)


@every_quantizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_forward_chooses_as_encode_does_even_where_rounding_decides(make, dtype, training):
    quantizer = make().train(training)
    if isinstance(quantizer, EmaQuantizer):
        quantizer.kmeans_iterations = 0
    with torch.no_grad():  # codes that differ by little, so that a latent rounded once more finds another
        quantizer.codebook.copy_(torch.randn(6) + 1e-6 * torch.randn(31, 6))
    latents = torch.randn(4000, 6)
    latents[::7] *= 1e-30 if dtype == torch.float32 else 1e-4
    latents[1::7] *= 1e37 if dtype == torch.float32 else 1e4
    latents[2::7] = 0
    latents = latents.to(dtype)
    expected = quantizer.encode(latents)
    out = quantizer(latents)
    assert torch.equal(out.codes, expected)
    assert all(loss.isfinite() for loss in out.losses.values()) or dtype == torch.float32
    if not training:
        assert torch.equal(out.vectors, quantizer.decode(expected))


@every_quantizer
def test_a_distinct_code_decodes_and_encodes_to_itself(make):
    quantizer = make().eval()
    codes = torch.arange(31)
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)


@every_quantizer
def test_gradients_pass_straight_through_to_the_latents(make):
    quantizer = make().eval()
    latents = F.normalize(torch.randn(4, 6), dim=-1).requires_grad_()  # of unit norm, so that cosine leaves them alone
    weight = torch.randn(4, 6)
    (quantizer(latents).vectors * weight).sum().backward()
    expected = weight
    if quantizer.metric == "cosine":  # what the normalisation of the latents lets through
        z = latents.detach()
        expected = weight - z * (weight * z).sum(-1, keepdim=True)
    torch.testing.assert_close(latents.grad, expected, rtol=1e-5, atol=1e-6)


@every_quantizer
def test_losses_are_mean_squared_distances(make):
    quantizer = make().eval()
    latents = torch.randn(9, 6)
    out = quantizer(latents)
    seen = F.normalize(latents, dim=-1) if quantizer.metric == "cosine" else latents
    expected = (seen - out.vectors).square().mean()
    for name, loss in out.losses.items():
        torch.testing.assert_close(loss, expected, msg=name)


def test_the_codebook_loss_moves_only_chosen_rows_towards_their_latents():
    quantizer = VectorQuantizer(dim=2, vocab_size=3)
    quantizer.codebook.data = torch.tensor([[0.0, 0.0], [4.0, 0.0], [9.0, 9.0]])
    quantizer(torch.tensor([[1.0, 0.0], [3.0, 2.0]])).losses["codebook"].backward()
    # d/de mean((z - e)^2) over 4 elements: 2 (e - z) / 4
    assert quantizer.codebook.grad.tolist() == [[-0.5, 0.0], [0.5, -1.0], [0.0, 0.0]]


def test_under_cosine_the_codebook_loss_reaches_the_raw_codebook():
    quantizer = VectorQuantizer(dim=3, vocab_size=5, metric="cosine")
    latents = torch.randn(20, 3)
    out = quantizer(latents)
    out.losses["codebook"].backward()
    raw = quantizer.codebook.detach().clone().requires_grad_()
    rows = F.normalize(raw, dim=-1)[out.codes]
    (F.normalize(latents, dim=-1) - rows).square().mean().backward()
    assert raw.grad.abs().sum() > 0
    torch.testing.assert_close(quantizer.codebook.grad, raw.grad, rtol=1e-4, atol=1e-6)


def test_a_code_of_zeros_has_no_gradient_under_cosine_instead_of_nan():
    quantizer = VectorQuantizer(dim=3, vocab_size=2, metric="cosine")
    with torch.no_grad():
        quantizer.codebook[1] = 0
    out = quantizer(torch.ones(4, 3))
    (out.vectors.sum() + sum(out.losses.values())).backward()
    assert quantizer.codebook.grad.isfinite().all()


def test_cosine_hands_out_unit_vectors():
    for quantizer in (VectorQuantizer(5, 17, "cosine"), EmaQuantizer(5, 17, "cosine")):
        norms = quantizer.decode(torch.arange(17)).norm(dim=-1)
        torch.testing.assert_close(norms, torch.ones(17))


def test_ema_without_decay_and_smoothing_is_the_mean_of_the_batch():
    quantizer = EmaQuantizer(dim=2, vocab_size=3, decay=0.0, epsilon=0.0)
    quantizer.codebook = torch.tensor([[0.0, 0.0], [10.0, 0.0], [99.0, 99.0]])
    quantizer.train()(torch.tensor([[1.0, 1.0], [2.0, -4.0], [11.0, 0.0]]))
    # Row 2 won no latent: it stays where it was.
    assert quantizer.codebook.tolist() == [[1.5, -1.5], [11.0, 0.0], [99.0, 99.0]]


def test_ema_follows_the_equations_of_the_paper():
    """Appendix A.1, equations 6 to 8, with Laplace smoothing, computed here step by step in float64."""
    gamma, eps, k = 0.9, 1e-2, 4
    quantizer = EmaQuantizer(dim=3, vocab_size=k, decay=gamma, epsilon=eps).train()
    codebook = quantizer.codebook.double()
    size, total = torch.ones(k).double(), codebook.clone()
    for _ in range(5):
        latents = torch.randn(50, 3)
        codes = torch.cdist(latents.double(), codebook).argmin(1)
        quantizer(latents)
        one_hot = F.one_hot(codes, k).double()
        size = gamma * size + (1 - gamma) * one_hot.sum(0)
        total = gamma * total + (1 - gamma) * one_hot.T @ latents.double()
        smoothed = (size + eps) / (size.sum() + k * eps) * size.sum()
        codebook = total / smoothed[:, None]
        torch.testing.assert_close(quantizer.codebook.double(), codebook, rtol=1e-5, atol=1e-6)


def test_dead_codes_move_onto_latents_of_the_batch_and_live_ones_stay():
    quantizer = EmaQuantizer(dim=2, vocab_size=3, decay=0.5, epsilon=0.0, revive_below=0.5).train()
    quantizer.codebook = torch.tensor([[0.0, 0.0], [1.0, 0.0], [50.0, 50.0]])
    quantizer.adopt_codebook()
    latents = torch.tensor([[0.0, 0.1], [1.0, 0.1]]).repeat(100, 1)
    for _ in range(3):
        quantizer(latents)
    assert quantizer.cluster_size[2] > 0.5 * quantizer.cluster_size.mean()
    assert any(torch.equal(quantizer.codebook[2], row) for row in latents[:2])
    assert quantizer.codebook[0, 0] < 0.5 < quantizer.codebook[1, 0]


def test_kmeans_starts_the_codebook_at_the_clusters():
    centres = torch.tensor([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0], [0.0, -5.0]])
    latents = centres.repeat_interleave(50, 0) + 0.1 * torch.randn(200, 2)
    quantizer = EmaQuantizer(dim=2, vocab_size=40, kmeans_iterations=5).train()
    assert not quantizer.started
    quantizer(latents)
    assert quantizer.started
    distances = torch.cdist(centres, quantizer.codebook).amin(1)
    assert (distances < 0.2).all(), distances


def test_each_iteration_of_kmeans_lowers_the_error():
    latents = torch.randn(500, 2)
    errors = []
    for iterations in (1, 3, 10):
        torch.manual_seed(1)
        quantizer = EmaQuantizer(dim=2, vocab_size=24, kmeans_iterations=iterations)
        quantizer.initialize(latents)
        errors.append((quantizer.decode(quantizer.encode(latents)) - latents).square().mean().item())
    assert errors[0] > 1.05 * errors[1] > 1.05**2 * errors[2]


def test_kmeans_of_fewer_latents_than_codes_puts_codes_on_all_of_them():
    latents = torch.randn(5, 6)
    quantizer = EmaQuantizer(dim=6, vocab_size=31, kmeans_iterations=3).train()
    quantizer.initialize(latents)
    assert quantizer.codebook.isfinite().all()
    torch.testing.assert_close(quantizer.decode(quantizer.encode(latents)), latents)
    with pytest.raises(ConfigError, match="got none"):
        quantizer.initialize(latents[:0])


def test_kmeans_runs_once_and_never_in_eval():
    quantizer = EmaQuantizer(dim=2, vocab_size=4, kmeans_iterations=5).eval()
    before = quantizer.codebook
    quantizer(torch.randn(30, 2))
    assert torch.equal(quantizer.codebook, before)
    quantizer.adopt_codebook()
    quantizer.train()(quantizer.codebook.repeat(50, 1))  # latents that lie on the codes
    torch.testing.assert_close(quantizer.codebook, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim": 0}, "dim >= 1"),
        ({"vocab_size": -1}, "vocab_size >= 1"),
        ({"metric": "euclid"}, "l2, cosine"),
        ({"decay": 1.0}, r"decay in \[0, 1\)"),
        ({"epsilon": -1e-5}, "at least 0"),
        ({"revive_below": -1.0}, "at least 0"),
        ({"kmeans_iterations": -1}, "at least 0"),
    ],
)
def test_impossible_options_are_refused_with_what_was_expected(options, words):
    with pytest.raises(ConfigError, match=words):
        EmaQuantizer(**{"dim": 2, "vocab_size": 2} | options)


def _learn_in_a_rank(rank: int, address: str, batches: torch.Tensor, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    plain, picking = _deterministic_ema(), _deterministic_ema(revive_below=0.5, kmeans_iterations=2)
    levels = [_deterministic_ema(revive_below=0.5, kmeans_iterations=2) for _ in range(4)]
    residual, depths = ResidualQuantizer(levels, dropout=0.8).train(), []
    joined = _deterministic_ema(revive_below=0.5, kmeans_iterations=2)
    for seed, batch in enumerate(batches):
        torch.manual_seed(seed + 100 * rank)  # rank 0 draws what one process would
        joined(batch[24:] if rank else batch[:24])
    torch.manual_seed(rank)  # ranks of a real training draw other numbers, and their batches need not be of one size
    for batch in batches:
        half = batch[:24] if rank else batch[24:]
        plain(half), picking(half)
        depths.append(residual(half).codes.shape[-1])
    states = [{name: x.numpy() for name, x in q.state_dict().items()} for q in (plain, picking, residual, joined)]
    results.put((rank, [*states, {"depths": torch.tensor(depths).numpy()}]))
    dist.barrier()
    dist.destroy_process_group()


def _deterministic_ema(**options) -> EmaQuantizer:
    torch.manual_seed(3)
    return EmaQuantizer(dim=4, vocab_size=16, decay=0.8, **options).train()


def test_two_processes_hold_one_codebook_and_learn_what_one_learns_on_the_joined_batch(tmp_path):
    batches = torch.randn(6, 64, 4)
    plain = _deterministic_ema()
    joined = _deterministic_ema(revive_below=0.5, kmeans_iterations=2)
    for seed, batch in enumerate(batches):
        torch.manual_seed(seed)
        plain(batch), joined(batch)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    address = f"file://{tmp_path / 'rendezvous'}"
    arguments = [(rank, address, batches, results) for rank in range(2)]
    ranks = [context.Process(target=_learn_in_a_rank, args=args, daemon=True) for args in arguments]
    for rank in ranks:
        rank.start()
    found = dict(results.get(timeout=60) for _ in ranks)  # ranks that disagree wait for each other
    for rank in ranks:
        rank.join()
    for first, second in zip(found[0], found[1], strict=True):
        for name, x in first.items():
            assert (x == second[name]).all(), name
    assert len({*found[0][-1]["depths"].tolist()}) > 1  # ranks drew, and both used what rank 0 drew
    for alone, place in ((plain, 0), (joined, 3)):
        came = {name: torch.from_numpy(x) for name, x in found[0][place].items()}
        # The sums of two halves are rounded in another order than one sum.
        torch.testing.assert_close(came, alone.state_dict(), rtol=1e-6, atol=1e-6)


def test_public_names_are_the_classes():
    assert vqtok.VectorQuantizer is VectorQuantizer
