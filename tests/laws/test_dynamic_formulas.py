"""Selector, merger and feature decoder are the paper's formulas (LaVIT, section 3.1), in NumPy, image by image."""

import math

import numpy as np
import pytest
import torch

from vqtok.errors import ConfigError
from vqtok.networks import FeatureDecoder, Merger, Selector
from vqtok.networks.policy import policy_attend
from vqtok.networks.transformer import attend

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


def attention(q, k, v, mask, leak=0.0):
    """One head and one query at a time; a query that sees nothing takes the mean over all, and a leak is for all."""
    out, d = np.zeros_like(q), q.shape[1] // HEADS
    for head in range(HEADS):
        part = slice(head * d, head * d + d)
        for i in range(len(q)):
            if leak:
                scores = k[:, part] @ q[i, part] / math.sqrt(d)
                shares = np.exp(scores - scores.max()) * mask[i]
                out[i, part] = (shares + leak / len(k)) / (shares.sum() + leak) @ v[:, part]
                continue
            if not mask[i].any():
                out[i, part] = v[:, part].mean(0)
                continue
            scores = k[mask[i]][:, part] @ q[i, part] / math.sqrt(d)
            shares = np.exp(scores - scores.max())
            out[i, part] = shares / shares.sum() @ v[mask[i]][:, part]
    return out


def cross(w, name, x, context, mask, leak=0.0):
    q, k, v = linear(w, f"{name}.to_q", x), linear(w, f"{name}.to_k", context), linear(w, f"{name}.to_v", context)
    return linear(w, f"{name}.to_out", attention(q, k, v, mask, leak))


def naive_merger(w, features, keep, leak=0.0):
    """[N, C] and bool [N] of one image: only kept patches are there, and only dropped ones are looked up.

    With a leak all are there; those that are kept see what they saw without, and a little of all.
    """
    there = keep | (leak > 0)
    x, context = features[there], layer_norm(w, "context_norm", features)
    causal = (keep[there] | np.eye(len(x), dtype=bool)) & np.tri(len(x), dtype=bool)
    looked_up = np.tile(~keep, (len(x), 1))
    for i in range(SIZES["depth"]):
        block = f"blocks.{i}"
        q, k, v = np.split(linear(w, f"{block}.attention.to_qkv", layer_norm(w, f"{block}.norm0", x)), 3, axis=1)
        x = x + linear(w, f"{block}.attention.to_out", attention(q, k, v, causal, leak))
        x = x + cross(w, f"{block}.cross_attention", layer_norm(w, f"{block}.norm1", x), context, looked_up, leak)
        x = x + perceptron(w, f"{block}.mlp", layer_norm(w, f"{block}.norm2", x))
    return layer_norm(w, "norm", x)[keep[there]]


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
    return moved(Merger(**SIZES))


@pytest.fixture(scope="module")
def features():
    torch.manual_seed(2)
    return torch.randn(6, N, C)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_selector_is_the_papers(weighted, features):
    selector = moved(Selector(C))
    policy = torch.rand(6, N) if weighted else torch.ones(6, N)
    with torch.no_grad():
        found = selector(features, policy) if weighted else selector(features)
    w = weights(selector)
    for image, share, ours in zip(features.double().numpy(), policy.double().numpy(), found.numpy(), strict=True):
        hidden = gelu(linear(w, "from_features", layer_norm(w, "norm", image)))
        mean = (hidden[:, C // 2 :] * share[:, None]).sum(0) / share.sum()
        x = np.concatenate([hidden[:, : C // 2], np.tile(mean, (N, 1))], axis=1)
        scores = linear(w, "to_scores", gelu(linear(w, "to_quarter", gelu(linear(w, "to_half", x)))))
        expected = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        np.testing.assert_allclose(ours, expected, atol=2e-6)


@torch.no_grad()
def test_the_merger_is_the_papers_for_one_kept_for_all_and_between(merger, features):
    keep, w = selections(), weights(merger)
    runs = merger(features, keep)[0].split(keep.sum(1).tolist())
    for image, kept, run in zip(features.double().numpy(), keep.numpy(), runs, strict=True):
        np.testing.assert_allclose(run.numpy(), naive_merger(w, image, kept), atol=5e-5)


@torch.no_grad()
def test_the_dense_merger_has_the_ragged_ones_values(merger, features):
    keep = selections()
    dense = merger.forward_dense(features, keep.float())
    torch.testing.assert_close(dense[keep], merger(features, keep)[0], rtol=0, atol=5e-5)


@torch.no_grad()
def test_images_of_which_nothing_is_kept_give_nothing_and_disturb_nobody(merger, features):
    keep = selections()
    alone = merger(features[3:4], keep[3:4])[0]
    keep[[0, 1, 2, 4, 5]] = False
    assert torch.equal(merger(features, keep)[0], alone)
    assert merger(features, torch.zeros_like(keep))[0].shape == (0, C)
    assert merger(features[:0], keep[:0])[0].shape == (0, C)


@torch.no_grad()
def test_with_a_leak_the_merger_is_the_published_formula(merger, features):
    leaky, keep, w = Merger(**SIZES, leak=0.05).eval(), selections(), weights(merger)
    leaky.load_state_dict(merger.state_dict())
    found, lengths = leaky(features, keep)
    assert torch.equal(found, leaky.forward_dense(features, keep.float())[keep])
    for image, kept, run in zip(features.double().numpy(), keep.numpy(), found.split(lengths.tolist()), strict=True):
        np.testing.assert_allclose(run.numpy(), naive_merger(w, image, kept, 0.05), atol=5e-5)


def test_the_ragged_merger_has_gradients(merger, features):
    """For training beside a frozen selector."""
    keep, x, y = selections(), features.clone().requires_grad_(), features.clone().requires_grad_()
    upstream = torch.randn(int(keep.sum()), C)
    merger(x, keep)[0].backward(upstream)
    ragged = {name: p.grad.clone() for name, p in merger.named_parameters()}
    merger.zero_grad()
    merger.forward_dense(y, keep.float())[keep].backward(upstream)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-3)
    for name, p in merger.named_parameters():
        torch.testing.assert_close(ragged[name], p.grad, rtol=1e-3, atol=2e-3, msg=name)


@pytest.mark.parametrize("leak", [0.0, 1e-6, 0.05])
def test_policy_attention_is_its_formula_with_loops(leak):
    q, k, v = (torch.randn(2, 5, 6) for _ in range(3))
    kept = torch.rand(2, 5, 5) < 0.5
    kept[0, 2] = False
    found = policy_attend(q, k, v, HEADS, kept.float(), leak)
    for b in range(2):
        for head in range(HEADS):
            part = slice(3 * head, 3 * head + 3)
            for i in range(5):
                scores = (k[b, :, part] @ q[b, i, part]).double() / math.sqrt(3)
                strengths = torch.exp(scores - scores.max()) * kept[b, i]
                if leak:
                    shares = (strengths + leak / 5) / (strengths.sum() + leak)
                else:
                    shares = strengths / strengths.sum() if kept[b, i].any() else torch.full((5,), 0.2)
                expected = shares.double() @ v[b, :, part].double()
                torch.testing.assert_close(found[b, i, part].double(), expected, rtol=0, atol=2e-6)


def test_the_gradient_of_scores_and_values_is_masked_attentions():
    q, k, v = (torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = (torch.rand(2, 6, 6) < 0.4) | torch.eye(6, dtype=torch.bool)
    upstream = torch.randn(2, 6, 4, dtype=torch.float64)
    expected = torch.autograd.grad((attend(q, k, v, 2, mask) * upstream).sum(), (q, k, v))
    found = torch.autograd.grad((policy_attend(q, k, v, 2, mask.double()) * upstream).sum(), (q, k, v))
    for ours, masked in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, masked, rtol=0, atol=2e-6)


DECODER = {**SIZES, "dim": 5, "positions": N, "out_dim": 7}


def naive_decoder(w, vectors):
    run = linear(w, "from_vectors", vectors) + w["positions"][: len(vectors)]
    x, everything = w["queries"], np.ones((N, N), bool)
    for i in range(SIZES["depth"]):
        block = f"blocks.{i}"
        q, k, v = np.split(linear(w, f"{block}.attention.to_qkv", layer_norm(w, f"{block}.norm0", x)), 3, axis=1)
        x = x + linear(w, f"{block}.attention.to_out", attention(q, k, v, everything))
        seen = np.ones((N, len(run)), bool)
        x = x + cross(w, f"{block}.cross_attention", layer_norm(w, f"{block}.norm1", x), run, seen)
        x = x + perceptron(w, f"{block}.mlp", layer_norm(w, f"{block}.norm2", x))
    return perceptron(w, "to_features", layer_norm(w, "norm", x), np.tanh)


@torch.no_grad()
def test_the_feature_decoder_is_the_papers_for_runs_of_any_length():
    decoder = moved(FeatureDecoder(**DECODER))
    lengths = torch.tensor([1, N, 5, 2])
    vectors = torch.randn(int(lengths.sum()), 5)
    found, w = decoder(vectors, lengths), weights(decoder)
    for features, run in zip(found, vectors.split(lengths.tolist()), strict=True):
        np.testing.assert_allclose(features.numpy(), naive_decoder(w, run.double().numpy()), atol=5e-5)


def test_a_negative_leak_is_refused():
    with pytest.raises(ConfigError, match="leak of at least 0"):
        Merger(**SIZES, leak=-1e-6)
