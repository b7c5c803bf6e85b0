"""Laws of selector, merger, feature decoder and EVA's features: the papers' formulas in NumPy, image by image."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from vqtok import VectorQuantizer, ops
from vqtok.errors import ConfigError
from vqtok.networks import EvaVit, FeatureDecoder, SelectionRule, TokenMerger, TokenSelector, TokensOfVit, sample_keep
from vqtok.networks.policy import policy_attend
from vqtok.networks.ragged import ROWS, in_row_blocks, run_places, spread
from vqtok.networks.selection import selection_noise
from vqtok.networks.transformer import Mlp, attend, sincos_positions

N, C, HEADS = 12, 16, 2
SIZES = {"width": C, "depth": 2, "heads": HEADS, "mlp_width": 24}
erf = np.vectorize(math.erf)


def moved(module):
    """The module in eval mode, after every parameter is moved off its initial small or zero values."""
    with torch.no_grad():
        for x in module.parameters():
            x += 0.3 * torch.randn_like(x)
    return module.eval()


def weights(module):
    return {name: x.double().numpy() for name, x in module.state_dict().items()}


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(w, name, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x):
    return x * (1 + erf(x / math.sqrt(2))) / 2


def perceptron(w, name, x, activation=gelu):
    return linear(w, f"{name}.to_out", activation(linear(w, f"{name}.to_hidden", x)))


def attention(q, k, v, mask):
    """One head and one query at a time; a query that sees nothing takes the mean over all."""
    out, d = np.zeros_like(q), q.shape[1] // HEADS
    for head in range(HEADS):
        part = slice(head * d, head * d + d)
        for i in range(len(q)):
            if not mask[i].any():
                out[i, part] = v[:, part].mean(0)
                continue
            scores = k[mask[i]][:, part] @ q[i, part] / math.sqrt(d)
            shares = np.exp(scores - scores.max())
            out[i, part] = shares / shares.sum() @ v[mask[i]][:, part]
    return out


def cross(w, name, x, context, mask):
    q, k, v = linear(w, f"{name}.to_q", x), linear(w, f"{name}.to_k", context), linear(w, f"{name}.to_v", context)
    return linear(w, f"{name}.to_out", attention(q, k, v, mask))


def naive_merger(w, features, keep):
    """[N, C] and bool [N] of one image: only kept patches are there, and only dropped ones are looked up."""
    x, context = features[keep], layer_norm(w, "context_norm", features)
    causal, looked_up = np.tri(len(x), dtype=bool), np.tile(~keep, (len(x), 1))
    for i in range(SIZES["depth"]):
        block = f"blocks.{i}"
        q, k, v = np.split(linear(w, f"{block}.self_attention.to_qkv", layer_norm(w, f"{block}.norm1", x)), 3, axis=1)
        x = x + linear(w, f"{block}.self_attention.to_out", attention(q, k, v, causal))
        x = x + cross(w, f"{block}.cross_attention", layer_norm(w, f"{block}.norm2", x), context, looked_up)
        x = x + perceptron(w, f"{block}.mlp", layer_norm(w, f"{block}.norm3", x))
    return layer_norm(w, "norm", x)


def selections():
    """One kept, all kept, all but one, a third, the last one alone, every second."""
    keep = torch.zeros(6, N, dtype=torch.bool)
    keep[0, 3] = keep[1] = keep[2, 1:] = keep[4, N - 1] = True
    keep[3, torch.tensor([0, 5, 6, 9])] = True
    keep[5, ::2] = True
    return keep


@pytest.fixture(scope="module")
def merger():
    torch.manual_seed(1)
    return moved(TokenMerger(**SIZES))


@pytest.fixture(scope="module")
def features():
    torch.manual_seed(2)
    return torch.randn(6, N, C)


# Ragged --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, ROWS["cpu"] - 1, ROWS["cpu"], 3 * ROWS["cpu"] + 5])
def test_row_blocks_have_one_shape_and_change_nothing(length):
    x, y, shapes = torch.randn(length, 3), torch.randn(length), set()

    def function(a, b):
        shapes.add((a.shape, b.shape))
        return torch.stack([a.sum(1), b], dim=1)

    assert torch.equal(in_row_blocks(function, x, y), torch.stack([x.sum(1), y], dim=1))
    assert shapes == {((ROWS["cpu"], 3), (ROWS["cpu"],))}


def test_rows_of_a_block_do_not_see_how_many_there_are():
    """A plain product of few rows sums in another order than one of many, at least where this was written."""
    layer, x = nn.Linear(128, 512), torch.randn(300, 128)
    with torch.no_grad():
        together = in_row_blocks(layer, x)
        for start, length in [(0, 1), (7, 2), (63, 3), (150, 7), (200, 64)]:
            part = slice(start, start + length)
            assert torch.equal(in_row_blocks(layer, x[part]), together[part]), length


def test_spread_puts_values_back_where_compact_took_them():
    values, places = torch.randn(6, N, 3, requires_grad=True), selections()
    back = spread(ops.compact(values, places)[0], places)
    assert torch.equal(back, values * places[..., None])
    back.backward(torch.full_like(back, 5.0))
    assert torch.equal(values.grad, 5.0 * places[..., None].expand_as(values))
    assert run_places(torch.tensor([0, 3, 4]), 4).sum(1).tolist() == [0, 3, 4]


# The selector --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_the_selector_is_the_papers(weighted, features):
    selector = moved(TokenSelector(C))
    policy = torch.rand(6, N) if weighted else torch.ones(6, N)
    with torch.no_grad():
        found = selector(features, policy) if weighted else selector(features)
    w = weights(selector)
    for image, share, ours in zip(features.double().numpy(), policy.double().numpy(), found.numpy(), strict=True):
        hidden = gelu(linear(w, "to_hidden", layer_norm(w, "norm", image)))
        mean = (hidden[:, C // 2 :] * share[:, None]).sum(0) / share.sum()
        x = np.concatenate([hidden[:, : C // 2], np.tile(mean, (N, 1))], axis=1)
        scores = linear(w, "head.4", gelu(linear(w, "head.2", gelu(linear(w, "head.0", x)))))
        expected = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        np.testing.assert_allclose(ours, expected, atol=2e-6)


def log_probabilities(rows):
    p = torch.tensor(rows)
    return torch.stack([p.log(), (1 - p).log()], dim=-1)


PIXELS = torch.arange(3 * 3 * 4 * 4).reshape(3, 3, 4, 4).float()


def test_the_threshold_is_a_half_and_somebody_is_always_kept():
    rows = [[0.5, 0.49, 0.51, 0.2], [0.1, 0.4, 0.3, 0.4], [0.9, 0.8, 0.7, 0.6]]
    assert SelectionRule().keep(log_probabilities(rows), PIXELS).int().tolist() == [
        [1, 0, 1, 0],
        [0, 1, 0, 0],  # none reaches a half: the most probable, and of equals the first
        [1, 1, 1, 1],
    ]


def test_topk_keeps_exactly_so_many_and_the_first_of_equals():
    rows = [[0.5, 0.2, 0.5, 0.5], [0.1, 0.1, 0.1, 0.1], [0.9, 0.8, 0.7, 0.95]]
    for tokens, expected in [
        (1, ["1000", "1000", "0001"]),
        (2, ["1010", "1100", "1001"]),
        (3, ["1011", "1110", "1101"]),
        (4, ["1111", "1111", "1111"]),
    ]:
        keep = SelectionRule("topk", tokens=tokens).keep(log_probabilities(rows), PIXELS)
        assert ["".join(map(str, row)) for row in keep.int().tolist()] == expected


def test_topk_tells_probabilities_apart_that_round_to_one():
    margin = torch.tensor([[20.0, 30.0, 25.0, 40.0]])
    scores = torch.stack([margin, torch.zeros_like(margin)], dim=-1).log_softmax(-1)
    assert (scores[..., 0].exp() == 1).all()
    assert SelectionRule("topk", tokens=2).keep(scores, PIXELS[:1]).tolist() == [[False, True, False, True]]


def test_gumbel_keeps_as_often_as_the_probability_says():
    p = torch.tensor([0.1, 0.3, 0.5, 0.9]).repeat_interleave(5000)[None]
    scores = torch.stack([p.log(), (1 - p).log()], dim=-1)
    share = SelectionRule("gumbel", seed=5).keep(scores, PIXELS[:1]).float().reshape(4, 5000).mean(1)
    deviation = (torch.tensor([0.1, 0.3, 0.5, 0.9]) * (1 - torch.tensor([0.1, 0.3, 0.5, 0.9])) / 5000).sqrt()
    assert ((share - torch.tensor([0.1, 0.3, 0.5, 0.9])).abs() < 4 * deviation).all()


def test_gumbel_noise_is_a_function_of_seed_and_pixels_alone():
    noise = selection_noise(PIXELS, 50, 7)
    assert torch.equal(selection_noise(PIXELS.flip(0), 50, 7), noise.flip(0))
    assert torch.equal(selection_noise(PIXELS[1:2], 50, 7), noise[1:2])
    assert torch.equal(selection_noise(PIXELS[1:2].to(memory_format=torch.channels_last), 50, 7), noise[1:2])
    near = PIXELS.clone()
    near[0, 0, 0, 0] += 1e-4
    for other in (selection_noise(PIXELS, 50, 8), selection_noise(near, 50, 7)[:1], noise[1:2]):
        assert not (other[:1] == noise[:1]).any()
    assert selection_noise(PIXELS[:0], 50, 7).shape == (0, 50)


def test_gumbel_noise_is_logistic():
    """The difference of two Gumbel variables: mean 0, variance pi^2 / 3, and 1 / (1 + e^-x) below x."""
    noise = selection_noise(PIXELS[:1], 40_000, 3)[0]
    assert abs(noise.mean()) < 4 * math.pi / math.sqrt(3 * 40_000)
    for x in (-3.0, -1.0, 0.0, 2.0):
        p = 1 / (1 + math.exp(-x))
        assert abs((noise < x).double().mean() - p) < 4 * math.sqrt(p * (1 - p) / 40_000)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "top"}, "threshold, topk, gumbel"),
        ({"kind": "topk"}, "tokens of at least 1"),
        ({"kind": "topk", "tokens": 0}, "tokens of at least 1"),
        ({"tokens": 3}, "none otherwise"),
        ({"kind": "gumbel"}, "a generator"),
        ({"seed": 3}, "none otherwise"),
        ({"kind": "gumbel", "seed": 1 << 64}, r"2\^64-1"),
    ],
)
def test_rules_that_contradict_themselves_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        SelectionRule(**arguments)


def test_a_budget_above_the_grid_is_refused():
    with pytest.raises(ConfigError, match="at most the 4 patches"):
        SelectionRule("topk", tokens=5).keep(log_probabilities([[0.1, 0.2, 0.3, 0.4]]), PIXELS[:1])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_the_samplers_value_is_the_sample_and_its_gradient_the_softmaxs(temperature):
    scores = torch.randn(4, 50, 2).log_softmax(-1).requires_grad_()
    torch.manual_seed(3)
    keep = sample_keep(scores, temperature)
    torch.manual_seed(3)
    noisy = (scores - torch.empty_like(scores).exponential_().log()).detach()
    assert torch.equal(keep, (noisy[..., 0] >= noisy[..., 1]).float())
    upstream = torch.randn(4, 50)
    keep.backward(upstream)
    soft = torch.sigmoid((noisy[..., 0] - noisy[..., 1]).double() / temperature)
    slope = upstream.double() * soft * (1 - soft) / temperature
    torch.testing.assert_close(scores.grad.double(), torch.stack([slope, -slope], dim=-1), rtol=1e-4, atol=1e-6)


def test_the_sampler_keeps_somebody_and_needs_a_temperature():
    never = torch.tensor([[-50.0, 0.0], [-40.0, 0.0], [-50.0, 0.0]])[None]
    assert sample_keep(never).sum().item() == 1
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="above 0"):
            sample_keep(never, temperature)


def test_the_sampler_keeps_as_often_as_the_probability_says():
    p = torch.full((1, 20_000), 0.2)
    share = sample_keep(torch.stack([p.log(), (1 - p).log()], dim=-1)).mean().item()
    assert abs(share - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 20_000)


# The merger ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_merger_is_the_papers_for_one_kept_for_all_and_between(merger, features):
    keep, w = selections(), weights(merger)
    runs = merger(features, keep).split(keep.sum(1).tolist())
    for image, kept, run in zip(features.double().numpy(), keep.numpy(), runs, strict=True):
        np.testing.assert_allclose(run.numpy(), naive_merger(w, image, kept), atol=5e-5)


@torch.no_grad()
def test_the_dense_merger_has_the_ragged_ones_values(merger, features):
    keep = selections()
    dense = merger.dense(features, keep.float())
    torch.testing.assert_close(dense[keep], merger(features, keep), rtol=0, atol=5e-5)


@torch.no_grad()
def test_an_image_merges_to_the_same_bits_whatever_its_neighbours_are(merger, features):
    keep = selections()
    together = merger(features, keep).split(keep.sum(1).tolist())
    for i in range(6):
        assert torch.equal(merger(features[i : i + 1], keep[i : i + 1]), together[i]), i
    order = torch.tensor([4, 1, 1, 0, 5])
    again = merger(features[order], keep[order]).split(keep[order].sum(1).tolist())
    for i, run in zip(order.tolist(), again, strict=True):
        assert torch.equal(run, together[i]), i


@torch.no_grad()
def test_images_of_which_nothing_is_kept_give_nothing_and_disturb_nobody(merger, features):
    keep = selections()
    alone = merger(features[3:4], keep[3:4])
    keep[[0, 1, 2, 4, 5]] = False
    assert torch.equal(merger(features, keep), alone)
    assert merger(features, torch.zeros_like(keep)).shape == (0, C)
    assert merger(features[:0], keep[:0]).shape == (0, C)


@torch.no_grad()
@pytest.mark.parametrize("dense", [False, True])
def test_kept_patches_see_kept_ones_before_them_and_all_dropped_ones(merger, features, dense):
    keep = selections()[3:4]  # 0, 5, 6, 9
    run = lambda x: merger.dense(x, keep.float())[keep] if dense else merger(x, keep)  # noqa: E731
    before = run(features[:1])
    for patch in range(N):
        changed = features[:1].clone()
        changed[0, patch] = torch.randn(C)
        moves = (run(changed) - before).abs().amax(1) > 1e-6
        kept = keep[0].nonzero()[:, 0]
        assert torch.equal(moves, (kept >= patch) if keep[0, patch] else torch.ones(4, dtype=torch.bool)), patch


@torch.no_grad()
def test_epsilon_computes_dense_and_leaks(merger, features):
    leaky, keep = TokenMerger(**SIZES, epsilon=1e-6).eval(), selections()
    leaky.load_state_dict(merger.state_dict())
    found = leaky(features, keep)
    assert torch.equal(found, leaky.dense(features, keep.float())[keep])
    torch.testing.assert_close(found, merger(features, keep), rtol=0, atol=5e-3)
    assert not torch.equal(found, merger(features, keep))


def test_the_ragged_merger_has_gradients(merger, features):
    """For training beside a frozen selector."""
    keep, x, y = selections(), features.clone().requires_grad_(), features.clone().requires_grad_()
    upstream = torch.randn(int(keep.sum()), C)
    merger(x, keep).backward(upstream)
    ragged = {name: p.grad.clone() for name, p in merger.named_parameters()}
    merger.zero_grad()
    merger.dense(y, keep.float())[keep].backward(upstream)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-3)
    for name, p in merger.named_parameters():
        torch.testing.assert_close(ragged[name], p.grad, rtol=1e-3, atol=2e-3, msg=name)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.05])
def test_policy_attention_is_its_formula_with_loops(epsilon):
    q, k, v = (torch.randn(2, 5, 6) for _ in range(3))
    kept = torch.rand(2, 5, 5) < 0.5
    kept[0, 2] = False
    found = policy_attend(q, k, v, HEADS, kept.float(), epsilon)
    for b in range(2):
        for head in range(HEADS):
            part = slice(3 * head, 3 * head + 3)
            for i in range(5):
                scores = (k[b, :, part] @ q[b, i, part]).double() / math.sqrt(3)
                strengths = torch.exp(scores - scores.max()) * kept[b, i]
                if epsilon:
                    shares = (strengths + epsilon / 5) / (strengths.sum() + epsilon)
                else:
                    shares = strengths / strengths.sum() if kept[b, i].any() else torch.full((5,), 0.2)
                expected = shares.double() @ v[b, :, part].double()
                torch.testing.assert_close(found[b, i, part].double(), expected, rtol=0, atol=2e-6)


def test_policy_attention_has_the_values_of_masked_attention():
    q, k, v = (torch.randn(3, 7, 8) for _ in range(3))
    mask = (torch.rand(3, 7, 7) < 0.4) | torch.eye(7, dtype=torch.bool)
    torch.testing.assert_close(policy_attend(q, k, v, 2, mask.float()), attend(q, k, v, 2, mask), rtol=0, atol=2e-6)


def test_the_gradient_of_a_weight_is_what_more_of_that_key_would_do():
    """At seen keys and at hidden ones; a hidden one that would be strongest counts as the strongest seen one does."""
    q, k, v = (torch.randn(1, 6, 3, dtype=torch.float64) for _ in range(3))
    w = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64).expand(1, 6, 6).clone().requires_grad_()
    upstream = torch.randn(1, 6, 3, dtype=torch.float64)
    policy_attend(q, k, v, 1, w).backward(upstream)
    capped = 0
    for i in range(6):
        scores = k[0] @ q[0, i] / math.sqrt(3)
        top = scores[w[0, i] > 0].max()
        capped += int((scores > top).sum())
        strengths = (scores - top).clamp(max=0).exp()

        def value(weights, strengths=strengths):
            shares = strengths * weights
            return shares / shares.sum() @ v[0]

        for j in range(6):
            step = torch.zeros(6, dtype=torch.float64)
            step[j] = 1e-6
            slope = (value(w[0, i].detach() + step) - value(w[0, i].detach() - step)) @ upstream[0, i] / 2e-6
            assert abs(slope - w.grad[0, i, j]) < 1e-6, (i, j)
    assert capped > 0


def test_the_gradient_of_scores_and_values_is_masked_attentions():
    q, k, v = (torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = (torch.rand(2, 6, 6) < 0.4) | torch.eye(6, dtype=torch.bool)
    upstream = torch.randn(2, 6, 4, dtype=torch.float64)
    expected = torch.autograd.grad((attend(q, k, v, 2, mask) * upstream).sum(), (q, k, v))
    found = torch.autograd.grad((policy_attend(q, k, v, 2, mask.double()) * upstream).sum(), (q, k, v))
    for ours, masked in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, masked, rtol=0, atol=1e-12)


def test_hidden_keys_of_any_strength_leave_values_and_gradients_finite():
    q, k, v = torch.full((1, 2, 4), 30.0), torch.tensor([[-30.0] * 4, [30.0] * 4])[None], torch.randn(1, 2, 4)
    w = torch.tensor([[[1.0, 0.0]]]).requires_grad_()
    out = policy_attend(q, k, v, 1, w)
    out.sum().backward()
    torch.testing.assert_close(out[0], v[0, :1].expand(2, 4))
    assert w.grad.isfinite().all()
    assert w.grad.abs().max() < 100


# The decoder ---------------------------------------------------------------------------------------------------------

DECODER = {**SIZES, "dim": 5, "grid": (3, 4), "feature_width": 7}


def naive_decoder(w, vectors):
    run = linear(w, "from_vectors", vectors) + w["positions"][: len(vectors)]
    x, everything = w["queries"], np.ones((N, N), bool)
    for i in range(SIZES["depth"]):
        block = f"blocks.{i}"
        q, k, v = np.split(linear(w, f"{block}.self_attention.to_qkv", layer_norm(w, f"{block}.norm1", x)), 3, axis=1)
        x = x + linear(w, f"{block}.self_attention.to_out", attention(q, k, v, everything))
        seen = np.ones((N, len(run)), bool)
        x = x + cross(w, f"{block}.cross_attention", layer_norm(w, f"{block}.norm2", x), run, seen)
        x = x + perceptron(w, f"{block}.mlp", layer_norm(w, f"{block}.norm3", x))
    return perceptron(w, "to_features", layer_norm(w, "norm", x), np.tanh)


@torch.no_grad()
def test_the_feature_decoder_is_the_papers_for_runs_of_any_length():
    decoder = moved(FeatureDecoder(**DECODER))
    lengths = torch.tensor([1, N, 5, 2])
    vectors = torch.randn(int(lengths.sum()), 5)
    found, w = decoder(vectors, lengths), weights(decoder)
    for features, run in zip(found, vectors.split(lengths.tolist()), strict=True):
        np.testing.assert_allclose(features.numpy(), naive_decoder(w, run.double().numpy()), atol=5e-5)


@torch.no_grad()
def test_an_empty_run_beside_others_changes_nothing():
    decoder = moved(FeatureDecoder(**DECODER))
    vectors = torch.randn(4, 5)
    found = decoder(vectors, torch.tensor([1, 0, 3]))
    assert found.isfinite().all()
    torch.testing.assert_close(found[[0, 2]], decoder(vectors, torch.tensor([1, 3])))


@pytest.mark.parametrize(
    ("vectors", "lengths", "words"),
    [
        ((4, 6), [4], r"vectors \[T, 5\]"),
        ((4, 5, 1), [4], r"vectors \[T, 5\]"),
        ((4, 5), [[4]], r"lengths \[B\]"),
        ((13, 5), [13], "at most 12"),
        ((4, 5), [1, 2], "sum to the 4"),
    ],
)
def test_runs_that_do_not_fit_are_refused(vectors, lengths, words):
    with pytest.raises(ConfigError, match=words):
        FeatureDecoder(**DECODER)(torch.zeros(vectors), torch.tensor(lengths))


def test_merger_and_selector_refuse_what_does_not_fit(merger, features):
    for x, keep in [(features, selections()[:2]), (features[..., :8], selections()), (features[0], selections()[0])]:
        with pytest.raises(ConfigError, match=r"features \[B, N, 16\]"):
            merger(x, keep)
    with pytest.raises(ConfigError, match="keep of bool"):
        merger(features, selections().float())
    with pytest.raises(ConfigError, match="epsilon of at least 0"):
        TokenMerger(**SIZES, epsilon=-1.0)
    with pytest.raises(ConfigError, match="even width"):
        TokenSelector(7)
    with pytest.raises(ConfigError, match="at least 1 x 1"):
        FeatureDecoder(**{**DECODER, "grid": (0, 4)})


# The teacher ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_computed_positions_are_a_table_without_a_place_for_the_class_token():
    learned = moved(EvaVit(**SIZES, patch=4, grid=(2, 3)))
    computed = EvaVit(**SIZES, patch=4, positions="sincos").eval()
    learned.positions[0] = 0
    learned.positions[1:] = sincos_positions(2, 3, C)
    computed.load_state_dict({name: x for name, x in learned.state_dict().items() if name != "positions"})
    pixels = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(computed(pixels), learned(pixels))
    assert computed(torch.randn(1, 3, 4, 20)).shape == (1, 5, C)


def test_the_teacher_refuses_sizes_that_are_not_its_own():
    learned, computed = EvaVit(**SIZES, patch=4, grid=(2, 3)), EvaVit(**SIZES, patch=4, positions="sincos")
    for size in [(8, 8), (12, 8), (9, 12)]:
        with pytest.raises(ConfigError, match=r"2 x 3 in patches of 4"):
            learned(torch.zeros(1, 3, *size))
    for size in [(3, 4), (6, 8)]:
        with pytest.raises(ConfigError, match="any size in patches of 4"):
            computed(torch.zeros(1, 3, *size))
    for arguments in [{"grid": (2, 3), "positions": "sincos"}, {}, {"grid": (2, 3), "positions": "rotary"}]:
        with pytest.raises(ConfigError, match="learned"):
            EvaVit(**SIZES, patch=4, **arguments)


def test_tokens_of_a_vit_need_its_interface():
    with pytest.raises(ConfigError, match="forward_features"):
        TokensOfVit(nn.Linear(2, 2))


# What is published ---------------------------------------------------------------------------------------------------


def size(module):
    return len(module.state_dict()), sum(x.numel() for x in module.state_dict().values())


def test_full_sizes_are_the_published_ones():
    """285 tensors of 409.8 million numbers in the encoder's file beside the teacher, 276 in the decoder's."""
    sizes = {"width": 1408, "depth": 12, "heads": 16, "mlp_width": int(4.3637 * 1408)}
    with torch.device("meta"):
        selector, merger, projection = TokenSelector(1408), TokenMerger(**sizes), Mlp(1408, 1408, "tanh", out_dim=32)
        codebook = VectorQuantizer(32, 16384)
        decoder = FeatureDecoder(dim=32, **sizes, grid=(16, 16))
        teacher = EvaVit(width=1408, depth=40, heads=16, mlp_width=6144, patch=14, grid=(16, 16))
        # Both files hold one more linear map, into a language model and a diffusion model: no parts of a tokenizer.
        language, diffusion = nn.Linear(1408, 4096), nn.Linear(1408, 768)
    counts = [size(part) for part in (selector, merger, projection, codebook, language)]
    assert counts == [(10, 3_227_490), (268, 398_267_392), (4, 2_028_960), (1, 524_288), (2, 5_771_264)]
    assert [sum(column) for column in zip(*counts, strict=True)] == [285, 409_819_394]
    assert [size(decoder)[0] + size(diffusion)[0], size(decoder)[1]] == [276, 402_999_680]
    # EVA-CLIP's 1,011 million parameters but for its last norm and its classifier.
    assert size(teacher) == (524, 1_011_143_296)
