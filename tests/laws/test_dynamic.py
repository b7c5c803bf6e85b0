"""Laws of the dynamic tokenizer: what is kept, that neighbours change nothing, that training and inference agree."""

import numpy as np
import pytest
import torch

from vqtok import EmaQuantizer, VectorQuantizer
from vqtok.dynamic import DynamicTokenizer
from vqtok.errors import ConfigError, MismatchError, NonFiniteLatents, VqtokError
from vqtok.images import PreprocessSpec
from vqtok.losses import cosine_feature_loss, keep_ratio_loss
from vqtok.networks import EvaVit, FeatureDecoder, Merger, PatchTokens, Selector, SmallDecoder, VitDecoder
from vqtok.networks.policy import policy_attend
from vqtok.networks.selection import carry, gumbel, image_noise, keep_likely, keep_most_likely
from vqtok.networks.transformer import Mlp, attend
from vqtok.types import TokenRuns

SIZES = {"width": 32, "depth": 2, "heads": 2, "mlp_width": 64}
N = 64


def build(*, pixels=True, quantizer=VectorQuantizer, **options) -> DynamicTokenizer:
    """A small model whose selector has opinions and whose networks are not near zero."""
    decoder = VitDecoder(dim=32, width=32, depth=1, heads=2, mlp_width=64, patch=8, head_dim=16) if pixels else None
    tokenizer = DynamicTokenizer(
        EvaVit(image_size=64, patch=8, **SIZES),
        Selector(32),
        Merger(**SIZES),
        Mlp(32, 32, "tanh", 8),
        quantizer(8, 128),
        FeatureDecoder(dim=8, positions=N, **SIZES),
        decoder,
        PreprocessSpec(resize="center", size=64, multiple=8),
        **options,
    )
    with torch.no_grad():
        tokenizer.features.from_pixels.weight.mul_(4)
        tokenizer.quantizer.codebook.copy_(torch.nn.functional.normalize(torch.randn(128, 8), dim=1))
        features = tokenizer.features(pictures(16))
        # Half of all patches are kept, by images from few to many.
        scores = tokenizer.selector(features)
        tokenizer.selector.to_scores.bias[0] -= (scores[..., 0] - scores[..., 1]).median()
    return tokenizer


@pytest.fixture(scope="module")
def tiny() -> DynamicTokenizer:
    torch.manual_seed(1)
    return build().eval()


def pictures(batch: int, seed: int = 3) -> torch.Tensor:
    """Pixels [batch, 3, 64, 64]: smooth, noisy, dark and bright, so that what is kept differs much."""
    noise = torch.Generator().manual_seed(seed)
    smooth = torch.nn.functional.interpolate(
        torch.randn(batch, 3, 5, 5, generator=noise), (64, 64), mode="bicubic", align_corners=False
    )
    level = torch.randn(batch, 3, 1, 1, generator=noise)
    return (smooth * torch.rand(batch, 1, 1, 1, generator=noise) + level).clamp(-1, 1)


def runs(tokens: TokenRuns) -> list[list[int]]:
    return [run.tolist() for run in tokens.ids.split(tokens.lengths.tolist())]


# Selection -----------------------------------------------------------------------------------------------------------


def test_the_threshold_keeps_what_is_likelier_kept_than_dropped_and_never_nothing():
    likely = torch.tensor([[0.5, 0.4999, 0.9, 0.1], [0.2, 0.4, 0.4, 0.1]])
    scores = torch.stack([likely, 1 - likely], dim=-1).log()
    assert keep_likely(scores).tolist() == [[True, False, True, False], [False, True, False, False]]


def test_the_threshold_is_the_keep_probability_of_one_half(tiny):
    x = pictures(8)
    probability, selection = tiny.keep_probability(x), tiny.select(x)
    assert ((probability - 0.5).abs() > 1e-6).all(), "none is near enough for a rounding to decide"
    likely = probability >= 0.5
    likely[torch.arange(8), probability.argmax(dim=1)] |= ~likely.any(dim=1)
    assert torch.equal(selection.keep, likely)
    assert torch.equal(selection.lengths, selection.keep.sum(dim=1))
    assert len(set(selection.lengths.tolist())) > 4, "pictures differ in what is kept"


def test_topk_keeps_exactly_the_likeliest_and_of_equals_the_first(tiny):
    scores = torch.tensor([[0.3, 0.6, 0.6, 0.1, 0.6]])
    scores = torch.stack([scores, 1 - scores], dim=-1).log()
    assert keep_most_likely(scores, 2).tolist() == [[False, True, True, False, False]]
    assert keep_most_likely(torch.zeros(1, 300, 2), 7)[0].nonzero()[:, 0].tolist() == list(range(7))
    x = pictures(4)
    for tokens in (1, 7, N):
        selection = tiny.select(x, "topk", tokens=tokens)
        assert selection.lengths.tolist() == [tokens] * 4
        probability = tiny.keep_probability(x)
        if tokens < N:
            kept = probability.masked_fill(~selection.keep, 2).amin(dim=1)
            assert (kept >= probability.masked_fill(selection.keep, -1).amax(dim=1)).all()


@pytest.mark.parametrize("ratio", [0.1, 1 / 3, 0.8])
def test_calibrated_the_threshold_keeps_the_wanted_share_in_the_order_there_was(ratio):
    torch.manual_seed(2)
    tokenizer, images = build(pixels=False).eval(), pictures(12)
    order = tokenizer.keep_probability(images).flatten().argsort(stable=True)
    tokenizer.calibrate(images, ratio)
    likely = tokenizer.keep_probability(images).flatten()
    assert (likely >= 0.5).float().mean().item() == pytest.approx(ratio, abs=2 / likely.numel())
    # The order of patches is as before, but for roundings of equals.
    assert (likely[order].diff() > -1e-6).all()
    for wrong in (0.0, 1.0, -1.0):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            tokenizer.calibrate(images, wrong)


def test_a_frozen_selector_decides_in_training_as_in_eval(tiny):
    torch.manual_seed(2)
    tokenizer, images = build(pixels=False).train(), pictures(3)
    tokenizer.selector.requires_grad_(False)
    keep = tokenizer(images).statistics["keep"]
    assert torch.equal(keep.bool(), tokenizer.select(images).keep)
    assert not keep.requires_grad


def test_gumbel_samples_the_keep_probability():
    likely = torch.tensor([0.1, 0.5, 0.8]).repeat(100_000, 1)
    scores = torch.stack([likely, 1 - likely], dim=-1).log()
    share = keep_likely(scores, gumbel(torch.rand_like(scores))).float().mean(dim=0)
    # Rows of which nothing would be kept, 9 of 100, keep their likeliest.
    none = 0.9 * 0.5 * 0.2
    expected = torch.tensor([0.1, 0.5, 0.8])
    assert (share[:2] - expected[:2] < none).all()
    assert (share - expected > -0.006).all()
    assert share.sum() - expected.sum() == pytest.approx(none, abs=0.01)


def test_noise_is_gumbel_and_never_infinite():
    u = torch.tensor([0.0, 0.25, 1 - 2**-24])
    # u and 1 - u are alike uniform; written with log1p, the ends stay finite.
    np.testing.assert_allclose(gumbel(u)[1], -np.log(-np.log(0.75)), rtol=1e-6)
    assert gumbel(u).isfinite().all()


def test_gumbel_depends_on_the_seed_and_the_image_and_nothing_else(tiny):
    x = pictures(6)
    seeded = lambda seed, x: tiny.select(x, "gumbel", generator=torch.Generator().manual_seed(seed)).keep  # noqa: E731
    keep = seeded(1, x)
    generator = torch.Generator().manual_seed(1)
    torch.rand(5, generator=generator)
    assert torch.equal(keep, tiny.select(x, "gumbel", generator=generator).keep), "the initial seed, not the state"
    assert not torch.equal(keep, seeded(2, x))
    assert torch.equal(torch.cat([seeded(1, x[i : i + 1]) for i in range(6)]), keep)
    assert torch.equal(seeded(1, x.flip(0)), keep.flip(0))
    noise = image_noise(torch.cat([x[:2], x[:1]]), (N, 2), seed=1)
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])


# Neighbours ----------------------------------------------------------------------------------------------------------


def ask(selection):
    if selection == "topk":
        return {"selection": "topk", "tokens": 9}
    if selection == "gumbel":
        return {"selection": "gumbel", "generator": torch.Generator().manual_seed(5)}
    return {"selection": selection}


@pytest.mark.parametrize("selection", ["threshold", "topk", "gumbel"])
def test_tokens_of_an_image_are_the_same_alone_in_any_batch_and_in_any_order(tiny, selection):
    x = pictures(19)
    together = runs(tiny.encode(x, **ask(selection)))
    assert together == [runs(tiny.encode(x[i : i + 1], **ask(selection)))[0] for i in range(19)]
    order = torch.randperm(19)
    assert runs(tiny.encode(x[order], **ask(selection))) == [together[i] for i in order]
    assert runs(tiny.encode(x[5:12], **ask(selection))) == together[5:12]


@pytest.mark.parametrize("first", [1, 21])
def test_merged_vectors_are_the_same_bits_whatever_neighbours_keep(tiny, first):
    features, merged = tiny.features(pictures(2)), []
    for others in (1, 2, 7, 20, N):
        keep = torch.zeros(2, N, dtype=torch.bool)
        keep[0, 3 : 3 + first], keep[1, :others] = True, True
        with torch.no_grad():
            merged.append(tiny.merger(features, keep)[0][:first])
    assert all(torch.equal(merged[0], other) for other in merged)


def test_latents_are_the_same_bits_whatever_the_neighbours_are(tiny):
    x = pictures(16)
    own = int(tiny.select(x[:1]).lengths)
    with torch.no_grad():
        latents = tiny.latents(x)[:own]
        assert torch.equal(latents, tiny.latents(torch.cat([x[:1], x[1:].flip(0)]))[:own])
        assert torch.equal(latents, tiny.latents(torch.cat([x[1:], x[:1]]))[-own:])


def test_half_precision_is_for_networks_and_not_for_the_choice():
    """Half precision would make many patches equally likely, and one other decision moves all tokens after it."""
    tokenizer, x = build().eval(), pictures(18)
    tokenizer.precision = "bfloat16"
    seen = {}
    for part in ("selector.to_scores", "merger.blocks.0.mlp", "projection", "feature_decoder.to_features"):
        tokenizer.get_submodule(part).register_forward_hook(
            lambda _, __, out, part=part: seen.update({part: out.dtype})
        )
    tokens = tokenizer.encode(x)
    assert tokenizer.decode(tokens).dtype == torch.float32
    assert seen.pop("selector.to_scores") == torch.float32
    assert set(seen.values()) == {torch.bfloat16}
    assert len(seen) == 3
    assert runs(tokenizer.encode(x[5:6])) == runs(tokens)[5:6]


def test_what_fills_a_batch_up_is_not_merged(tiny):
    lengths = []
    hook = tiny.merger.register_forward_hook(lambda _, __, out: lengths.append(out[1]))
    try:
        tokens = tiny.encode(pictures(19))
    finally:
        hook.remove()
    assert [x.shape for x in lengths] == [(16,), (16,)]
    assert torch.equal(torch.cat(lengths)[:19], tokens.lengths)
    assert not lengths[1][3:].any()


def test_decoding_runs_together_is_decoding_each_alone(tiny):
    tokens = tiny.encode(pictures(19))
    features, pixels = tiny.decode_features(tokens), tiny.decode(tokens)
    start = 0
    for i, length in enumerate(tokens.lengths.tolist()):
        own = TokenRuns(tokens.ids[start : start + length], tokens.lengths[i : i + 1], tokens.vocab_size)
        assert torch.equal(tiny.decode_features(own)[0], features[i])
        assert torch.equal(tiny.decode(own)[0], pixels[i])
        start += length


def test_a_run_is_read_in_its_order(tiny):
    run = torch.tensor([5, 9, 77])
    one, other = (tiny.decode_features(TokenRuns(x, torch.tensor([3]), 128)) for x in (run, run.flip(0)))
    assert not torch.allclose(one, other, atol=1e-3)


# The merger ----------------------------------------------------------------------------------------------------------


def test_a_kept_token_sees_kept_ones_before_it_and_dropped_ones_anywhere(tiny):
    features = tiny.features(pictures(1)).detach()
    keep = torch.zeros(1, N, dtype=torch.bool)
    keep[0, [4, 10, 30]] = True
    before = tiny.merger(features, keep)[0].detach()

    def moved(position):
        other = features.clone()
        other[0, position] += torch.randn(32)
        return ((tiny.merger(other, keep)[0].detach() - before).abs().amax(dim=1) > 1e-6).tolist()

    assert moved(4) == [True, True, True]
    assert moved(10) == [False, True, True]
    assert moved(30) == [False, False, True]
    assert moved(0) == moved(63) == [True, True, True]


@pytest.mark.parametrize("kept", [1, 2, N - 1, N])
def test_dense_and_ragged_merging_give_the_same(tiny, kept):
    features = tiny.features(pictures(3)).detach()
    keep = torch.zeros(3, N, dtype=torch.bool)
    for i in range(3):
        keep[i, torch.randperm(N)[: kept if i else 5]] = True
    with torch.no_grad():
        ragged, lengths = tiny.merger(features, keep)
        dense = tiny.merger.forward_dense(features, keep.float())[keep]
    assert lengths.tolist() == [5, kept, kept]
    torch.testing.assert_close(ragged, dense, rtol=0, atol=2e-5)


def test_a_policy_of_zeros_and_ones_is_masked_attention_even_where_the_others_score_far_above():
    query, key, value = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    key[:, 0] = 1000 * query[:, 1]
    mask = torch.tensor([False, True, True, False, True]).expand(2, 3, 5)
    policy = mask.float().requires_grad_()
    seen = policy_attend(query, key, value, 2, policy)
    torch.testing.assert_close(seen, attend(query, key, value, 2, mask), rtol=0, atol=1e-6)
    seen.sum().backward()
    # A head's weight of a key, once it is added, is at most one: so is what it changes, in differences of values.
    assert policy.grad.abs().max() <= 3 * 8 * (value.amax() - value.amin())


def test_the_gradient_of_a_policy_is_what_its_key_would_change():
    query, key, value = (torch.randn(1, 4, 6, dtype=torch.float64) for _ in range(3))
    policy = torch.rand(1, 4, 4, requires_grad=True)
    policy_attend(query, key, value, 1, policy).sum().backward()
    exponents = np.exp((query @ key.mT)[0].numpy() / np.sqrt(6))
    p, v = policy.detach().double().numpy()[0], value[0].sum(dim=1).numpy()
    total = (exponents * p).sum(axis=1, keepdims=True)
    expected = exponents * (v - (exponents * p) @ v[:, None] / total) / total
    np.testing.assert_allclose(policy.grad[0].numpy(), expected, rtol=1e-4, atol=1e-5)


# Training ------------------------------------------------------------------------------------------------------------


def test_the_training_path_in_eval_mode_is_encode_and_decode(tiny):
    x = pictures(5)
    with torch.no_grad():
        out, tokens = tiny(x), tiny.encode(x)
    assert torch.equal(out.quantized.codes, tokens.ids)
    assert torch.equal(out.statistics["keep"], tiny.select(x).keep.float())
    torch.testing.assert_close(out.statistics["target"], tiny.features(x), rtol=0, atol=2e-5)
    torch.testing.assert_close(out.statistics["features"], tiny.decode_features(tokens), rtol=0, atol=2e-5)
    torch.testing.assert_close(out.pixels, tiny.decode(tokens), rtol=0, atol=2e-5)
    torch.testing.assert_close(tiny.latents(x).norm(dim=1), torch.ones(len(tokens.ids)))


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("mode", [False, True], ids=["eval", "train"])
def test_gradients_reach_every_part_but_the_teacher(quantize, mode):
    tokenizer = build().train(mode)
    tokenizer.quantize = quantize
    out = tokenizer(pictures(4))
    cosine_feature_loss(out.statistics["features"], out.statistics["target"]).backward()
    for part in ("selector", "merger", "projection", "feature_decoder"):
        reached = [name for name, x in getattr(tokenizer, part).named_parameters() if x.grad is not None]
        assert len(reached) == len(list(getattr(tokenizer, part).parameters())), part
        total = sum(float(x.grad.abs().sum()) for x in getattr(tokenizer, part).parameters())
        assert 0 < total < float("inf"), part
    assert all(x.grad is None and not x.requires_grad for x in tokenizer.features.parameters())
    assert not tokenizer.features.training
    assert (out.quantized.losses == {}) is not quantize


def test_the_selector_learns_from_what_kept_tokens_do_in_the_decoder_and_dropped_ones_in_the_merger():
    tokenizer = build(pixels=False).eval()
    target = tokenizer.features(pictures(2)).detach()
    keep = torch.zeros(2, N, dtype=torch.bool)
    keep[:, ::3] = True
    policy = keep.float().requires_grad_()
    merged = tokenizer.merger.forward_dense(target, policy)[keep]
    vectors = tokenizer.projection(merged)
    tokenizer.feature_decoder(vectors, keep.sum(1)).square().sum().backward(retain_graph=True)
    in_merger, policy.grad = policy.grad, None
    tokenizer.feature_decoder(vectors, keep.sum(1), policy[keep]).square().sum().backward()
    # The last patch is dropped, and no kept one comes after it: it has its gradient as one of those that are looked at.
    assert (in_merger.abs() > 0).all()
    in_decoder = (policy.grad - in_merger).abs()
    assert (in_decoder[keep] > 1e-7).all()
    torch.testing.assert_close(policy.grad[~keep], in_merger[~keep])


def test_the_ratio_alone_moves_the_share_that_is_kept():
    tokenizer = build(pixels=False)
    x, optimizer = pictures(8), torch.optim.Adam(tokenizer.selector.parameters(), 3e-3)
    before = float(tokenizer.select(x).keep.float().mean())
    for _ in range(40):
        optimizer.zero_grad()
        keep_ratio_loss(tokenizer(x).statistics["keep"], 0.15).backward()
        optimizer.step()
    after = float(tokenizer.keep_probability(x).mean())
    assert abs(after - 0.15) < 0.1 < before - 0.15


def test_straight_through_is_exactly_zero_and_one_with_the_soft_gradient():
    soft = torch.rand(1000, requires_grad=True)
    keep = torch.rand(1000) > 0.5
    policy = carry(keep, soft)
    assert torch.equal(policy, keep.float())
    policy.backward(weights := torch.randn(1000))
    assert torch.equal(soft.grad, weights)


def test_training_samples_and_eval_does_not(tiny):
    tokenizer, x = build(pixels=False), pictures(2)
    one, other = (tokenizer.train()(x).statistics["keep"] for _ in range(2))
    assert not torch.equal(one, other)
    assert torch.equal(*(tokenizer.eval()(x).statistics["keep"] for _ in range(2)))


def test_a_moving_average_codebook_learns_from_kept_tokens_only():
    tokenizer = build(quantizer=lambda dim, size: EmaQuantizer(dim, size, kmeans_iterations=2), pixels=False).train()
    out = tokenizer(pictures(4))
    kept = int(out.statistics["keep"].sum())
    assert len(out.quantized.codes) == kept < 4 * N
    assert tokenizer.quantizer.started
    assert out.pixels.shape == (4, 3, 0, 0)


# Files and refusals --------------------------------------------------------------------------------------------------


def test_images_become_tokens_that_say_what_was_kept_and_pictures_again(tiny):
    arrays = [np.random.default_rng(i).integers(0, 256, (40 + 30 * i, 90, 3), np.uint8) for i in range(3)]
    tokens = tiny.tokenize(arrays)
    assert tokens.grids.tolist() == [[1, 8, 8]] * 3
    assert tokens.record["execution"]["selection"] == "threshold"
    for i, array in enumerate(arrays):
        selection = tiny.select(tiny.preprocess(array))
        assert np.array_equal(tokens[i].keep, selection.keep[0].numpy())
        assert np.array_equal(tokens[i].ids, tiny.encode(tiny.preprocess(array)).ids.numpy())
    assert [image.size for image in tiny.detokenize(tokens)] == [(64, 64)] * 3


def test_the_models_own_selection_is_what_files_are_made_with():
    tokenizer = build().eval()
    tokenizer.selection, tokenizer.selected_tokens = "topk", 5
    tokens = tokenizer.tokenize(np.zeros((64, 64, 3), np.uint8))
    assert len(tokens.ids) == tokens.keep.sum() == 5
    assert tokens.record["execution"]["tokens"] == 5
    assert tokenizer.encode(pictures(1)).lengths.tolist() == [5]


def test_no_images_are_no_tokens(tiny):
    tokens = tiny.encode(pictures(1)[:0])
    assert tokens.ids.shape == tokens.lengths.shape == (0,)
    assert tiny.decode(tokens).shape == (0, 3, 64, 64)


def test_a_small_convolutional_decoder_fits_too():
    tokenizer = build()
    tokenizer.pixel_decoder = SmallDecoder(channels=(8, 16, 16), residual_blocks=(1, 1, 1), dim=32)
    tokenizer.eval()
    assert tokenizer.decode(tokenizer.encode(pictures(1))).shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"selection": "best"}, "one of threshold, topk, gumbel"),
        ({"selection": "topk"}, "1 to 64 tokens"),
        ({"selection": "topk", "tokens": 0}, "1 to 64 tokens"),
        ({"selection": "topk", "tokens": 65}, "1 to 64 tokens"),
        ({"selection": "topk", "tokens": 2.5}, "1 to 64 tokens"),
        ({"tokens": 5}, "with 'topk' only"),
        ({"selection": "gumbel"}, "no generator"),
        ({"generator": torch.Generator()}, "a generator"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(tiny, arguments, says):
    for call in (tiny.select, tiny.encode):
        with pytest.raises(ConfigError, match=says):
            call(pictures(1), **arguments)


def test_pixels_that_do_not_fit_are_refused(tiny):
    for bad in (torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 60, 64), torch.zeros(3, 64, 64), np.zeros((1, 3, 64, 64))):
        for call in (tiny.encode, tiny.select, tiny.keep_probability, tiny.latents, tiny):
            with pytest.raises(ConfigError, match="expected"):
                call(bad)
    with pytest.raises(NonFiniteLatents):
        tiny.encode(torch.full((1, 3, 64, 64), torch.nan))


@pytest.mark.parametrize(
    ("ids", "lengths", "vocab"),
    [
        ([1, 2, 3], [2], 128),
        ([1, 2, 3], [3, 0], 128),
        ([1] * 65, [65], 128),
        ([1, 128], [2], 128),
        ([-1, 1], [2], 128),
        ([1, 2], [2], 64),
        ([[1, 2]], [2], 128),
        ([1, 2], [[2]], 128),
    ],
)
def test_runs_that_do_not_fit_are_refused(tiny, ids, lengths, vocab):
    with pytest.raises(VqtokError, match="expected"):
        tiny.decode(TokenRuns(torch.tensor(ids), torch.tensor(lengths), vocab))


def test_tokens_of_other_models_are_refused(tiny):
    tokens = tiny.tokenize(np.zeros((64, 64, 3), np.uint8))
    other = build().eval()
    with pytest.raises(MismatchError, match="load the model"):
        other.detokenize(tokens)


def test_a_model_without_a_pixel_decoder_says_so():
    tokenizer = build(pixels=False).eval()
    tokens = tokenizer.encode(pictures(2))
    assert tokenizer.decode_features(tokens).shape == (2, N, 32)
    with pytest.raises(ConfigError, match="decode_features"):
        tokenizer.decode(tokens)


def test_a_teacher_with_a_class_token_or_of_another_width_is_refused():
    tokenizer, vit = build().eval(), build().features
    for features in (torch.nn.Sequential(vit, torch.nn.ZeroPad2d((0, 0, 1, 0))), torch.nn.Flatten(2)):
        tokenizer.features = features
        for call in (tokenizer.encode, tokenizer.select, tokenizer.latents, tokenizer):
            with pytest.raises(ConfigError, match=r"features \[\d+, 64, 32\].*class"):
                call(pictures(2))


def test_a_foreign_vit_can_be_the_teacher():
    class Foreign(torch.nn.Module):
        """What timm's models have, with a class token and a register."""

        num_prefix_tokens = 2

        def __init__(self, vit):
            super().__init__()
            self.vit, self.drop = vit, torch.nn.Dropout(0.5)

        def forward_features(self, pixels):
            features = self.drop(self.vit(pixels))
            return torch.cat([features[:, :2] + 1, features], dim=1)

    tokenizer, x = build().eval(), pictures(3)
    expected = tokenizer.encode(x)
    tokens = DynamicTokenizer(
        PatchTokens(Foreign(tokenizer.features)),
        *(tokenizer.selector, tokenizer.merger, tokenizer.projection, tokenizer.quantizer, tokenizer.feature_decoder),
        *(tokenizer.pixel_decoder, tokenizer.spec),
    ).encode(x)
    assert torch.equal(tokens.ids, expected.ids)
    with pytest.raises(ConfigError, match="num_prefix_tokens"):
        PatchTokens(torch.nn.Linear(2, 2))


def test_models_that_contradict_themselves_are_refused(tiny):
    parts = (tiny.features, tiny.selector, tiny.merger, tiny.projection, tiny.quantizer, tiny.feature_decoder, None)
    for spec in (PreprocessSpec(multiple=8), PreprocessSpec(resize="center", size=60, multiple=8)):
        with pytest.raises(ConfigError, match="positions are learned"):
            DynamicTokenizer(*parts, spec)
    with pytest.raises(ConfigError, match="256 positions"):
        DynamicTokenizer(*parts, PreprocessSpec(resize="center", size=128, multiple=8))
    with pytest.raises(ConfigError, match="temperature above 0"):
        build(temperature=0.0)
