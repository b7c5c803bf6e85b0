"""Laws of `DynamicTokenizer`: as many tokens as an image needs, and the same whatever is beside it."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vqtok
from vqtok import EmaQuantizer, VectorQuantizer, images, ops
from vqtok.dynamic import DynamicTokenizer
from vqtok.errors import ConfigError, MismatchError, NonFiniteLatents
from vqtok.images import PreprocessSpec
from vqtok.losses import Objective
from vqtok.networks import (
    EvaVit,
    FeatureDecoder,
    SelectionRule,
    SmallDecoder,
    TokenMerger,
    TokenSelector,
    VitDecoder,
)
from vqtok.networks.transformer import Mlp
from vqtok.types import TokenRuns

SIZES = {"width": 32, "depth": 2, "heads": 2, "mlp_width": 48}
SIDE, N = 64, 64


def build(quantizer: vqtok.Quantizer | None = None, **parts) -> DynamicTokenizer:
    """A small tokenizer of 8 x 8 patches; weights are moved off their small initial values, so that things differ."""
    made = {
        "features": EvaVit(**SIZES, patch=8, grid=(8, 8)),
        "selector": TokenSelector(32),
        "merger": TokenMerger(**SIZES),
        "projection": Mlp(32, 32, "tanh", out_dim=4),
        "quantizer": quantizer or VectorQuantizer(4, 64, unit_latents=True),
        "decoder": FeatureDecoder(dim=4, **SIZES, grid=(8, 8)),
        "preprocess": PreprocessSpec(resize="stretch", size=SIDE, multiple=8),
        "pixel_head": SmallDecoder(channels=(8, 8, 16), residual_blocks=(0, 0, 1), dim=32),
        **parts,
    }
    tokenizer = DynamicTokenizer(**made)
    with torch.no_grad():
        for name, x in tokenizer.named_parameters():
            if not name.startswith(("pixel_head", "quantizer")):
                x += 0.15 * torch.randn_like(x)
        last = tokenizer.selector.head[4]
        last.weight.mul_(10)
        margin = tokenizer.selector(tokenizer.eval().features(pixels(16))).diff(dim=2)
        last.bias[0] += margin.median()  # about half of all patches are kept
        tokenizer.rule = SelectionRule("topk", tokens=N)
        latents = ops.normalize_latents(tokenizer.latents(pixels(16)))
        tokenizer.rule = SelectionRule()
        codebook = tokenizer.quantizer.codebook
        codebook.copy_(latents[torch.randperm(len(latents))[: len(codebook)]])
    return tokenizer


def pixels(batch: int, seed: int = 0) -> torch.Tensor:
    """Smooth colours, noise and plain images, so that lengths differ."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 3, 5, 5, generator=generator)
    smooth = nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic")
    noise = torch.randn(batch, 3, SIDE, SIDE, generator=generator) * torch.linspace(0, 1, batch)[:, None, None, None]
    return (smooth + noise).clamp(-1, 1)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return (smooth + rng.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def tiny() -> DynamicTokenizer:
    torch.manual_seed(1)
    return build()


HOW = {
    "threshold": lambda: {},
    "topk-1": lambda: {"selection": "topk", "tokens": 1},
    "topk-5": lambda: {"selection": "topk", "tokens": 5},
    "topk-all": lambda: {"selection": "topk", "tokens": N},
    "gumbel": lambda: {"selection": "gumbel", "generator": torch.Generator().manual_seed(5)},
}


def runs_of(tokens: TokenRuns) -> list[list[int]]:
    return [run.tolist() for run in tokens.ids.split(tokens.lengths.tolist())]


# Selection -----------------------------------------------------------------------------------------------------------


def test_images_have_as_many_tokens_as_the_threshold_keeps(tiny):
    x = pixels(20)
    selection, tokens = tiny.select(x), tiny.encode(x)
    assert selection.keep.shape == (20, N)
    assert torch.equal(selection.lengths, selection.keep.sum(1))
    assert torch.equal(tokens.lengths, selection.lengths)
    assert len(set(tokens.lengths.tolist())) > 8
    with torch.no_grad():
        scores = tiny.selector(tiny.features(x))
    sure = (scores[..., 0] - scores[..., 1]).abs() > 1e-4
    assert torch.equal(selection.keep[sure], (scores[..., 0] > scores[..., 1])[sure])


@pytest.mark.parametrize("tokens", [1, 2, 21, N])
def test_a_budget_is_kept_to_the_token(tokens, tiny):
    x = pixels(5)
    selection = tiny.select(x, "topk", tokens=tokens)
    assert selection.lengths.tolist() == [tokens] * 5
    assert tiny.encode(x, "topk", tokens=tokens).lengths.tolist() == [tokens] * 5
    with torch.no_grad():
        margin = tiny.selector(tiny.features(x)).diff(dim=2)[..., 0].neg()
    for row, keep in zip(margin, selection.keep, strict=True):
        assert tokens == N or row[keep].min() >= row[~keep].max() - 1e-4


def test_gumbel_is_a_function_of_seed_and_image_and_leaves_the_generator_alone(tiny):
    x, generator = pixels(6), torch.Generator().manual_seed(3)
    state = generator.get_state()
    first = tiny.select(x, "gumbel", generator=generator).keep
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(tiny.select(x, "gumbel", generator=generator).keep, first)
    assert torch.equal(tiny.select(x.flip(0), "gumbel", generator=generator).keep, first.flip(0))
    other = tiny.select(x, "gumbel", generator=torch.Generator().manual_seed(4)).keep
    assert 0.02 < (other != first).float().mean() < 0.6


def test_eval_needs_no_randomness(tiny):
    x = pixels(3)
    torch.manual_seed(1)
    first = tiny.encode(x)
    torch.manual_seed(2)
    second, state = tiny.encode(x), torch.get_rng_state()
    tiny(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.ids, second.ids)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"selection": "best"}, "threshold, topk, gumbel"),
        ({"selection": "topk"}, "tokens of at least 1"),
        ({"selection": "topk", "tokens": N + 1}, f"at most the {N}"),
        ({"selection": "gumbel"}, "a generator"),
        ({"tokens": 3}, "none otherwise"),
        ({"generator": torch.Generator()}, "none otherwise"),
    ],
)
@pytest.mark.parametrize("method", ["select", "encode"])
def test_selections_without_what_they_need_are_refused(method, arguments, words, tiny):
    with pytest.raises(ConfigError, match=words):
        getattr(tiny, method)(pixels(1), **arguments)


# Nobody's tokens depend on neighbours -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_tokens_of_an_image_are_the_same_alone_in_any_batch_and_in_any_order(how, tiny):
    x = pixels(20)
    alone = [runs_of(tiny.encode(image[None], **how()))[0] for image in x]
    assert len({len(run) for run in alone}) == 1 or len(alone[0]) not in (1, 5, N)
    for size in (3, 16, 20):
        together = [run for part in x.split(size) for run in runs_of(tiny.encode(part, **how()))]
        assert together == alone, size
    order = torch.randperm(20, generator=torch.Generator().manual_seed(7))
    assert runs_of(tiny.encode(x[order], **how())) == [alone[i] for i in order.tolist()]
    neighbours = pixels(7, seed=9)
    assert runs_of(tiny.encode(torch.cat([neighbours, x[4:6]]), **how()))[7:] == alone[4:6]


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_latents_of_an_image_have_the_same_bits_in_any_batch(epsilon, monkeypatch):
    """Codes may hide a changed bit; so what the quantizer sees is compared, of few tokens and of many."""
    torch.manual_seed(3)
    tokenizer = build(merger=TokenMerger(**SIZES, epsilon=epsilon))
    seen = []
    encode = tokenizer.quantizer.encode
    monkeypatch.setattr(tokenizer.quantizer, "encode", lambda x: seen.append(x) or encode(x))

    def latents(x, **how):
        seen.clear()
        lengths = tokenizer.encode(x, **how).lengths.tolist()
        return [run for part in [torch.cat(seen)] for run in part.split(lengths)]

    x = pixels(20)
    for how in ({}, {"selection": "topk", "tokens": 1}, {"selection": "topk", "tokens": 3}):
        together = latents(x, **how)
        for i in (0, 3, 9, 17, 19):
            assert torch.equal(latents(x[i : i + 1], **how)[0], together[i]), (how, i)
            assert torch.equal(latents(x[[i, 2, 2]], **how)[0], together[i]), (how, i)


def test_half_precision_is_for_networks_and_not_for_the_choice(tiny):
    x, float32 = pixels(18), tiny.encode(pixels(18))
    seen = []
    hooks = [
        part.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
        for part in (tiny.selector.to_hidden, tiny.merger.blocks[0].mlp, tiny.decoder.from_vectors)
    ]
    try:
        tiny.precision = "bfloat16"
        tokens = tiny.encode(x)
        assert set(seen) == {torch.float32, torch.bfloat16}
        assert seen[0] == torch.float32
        assert runs_of(tiny.encode(x[5:6])) == runs_of(tokens)[5:6]
        assert tiny.decode(tokens).dtype == torch.float32
        assert seen[-1] == torch.bfloat16
    finally:
        tiny.precision = "float32"
        for hook in hooks:
            hook.remove()
    assert (tokens.lengths - float32.lengths).abs().max() < 8


def test_decoding_runs_is_decoding_each_alone_bit_for_bit(tiny):
    tokens = tiny.encode(pixels(20))
    for name in ("decode", "decode_features"):
        together = getattr(tiny, name)(tokens)
        for i, run in enumerate(tokens.ids.split(tokens.lengths.tolist())):
            alone = getattr(tiny, name)(TokenRuns(run, tokens.lengths[i : i + 1], 64))
            assert torch.equal(alone[0], together[i]), (name, i)
    assert together.shape == (20, N, 32)


def test_one_kept_token_goes_there_and_back(tiny):
    tokens = tiny.encode(pixels(3), "topk", tokens=1)
    assert tokens.ids.shape == (3,)
    assert tiny.decode(tokens).shape == (3, 3, SIDE, SIDE)
    assert tiny.decode(tokens).isfinite().all()


def test_no_images_have_no_tokens(tiny):
    tokens = tiny.encode(pixels(2)[:0])
    assert (tokens.ids.shape, tokens.lengths.shape) == ((0,), (0,))
    assert tiny.decode(tokens).shape == (0, 3, SIDE, SIDE)
    assert tiny.select(pixels(2)[:0]).keep.shape == (0, N)


# Images and files ----------------------------------------------------------------------------------------------------


def test_detokenize_of_tokenize_is_decode_of_encode_bit_for_bit(tiny, tmp_path):
    arrays = [picture(50, 70, 1), picture(64, 64, 2), picture(9, 200, 3)]
    tokens = tiny.tokenize(arrays)
    vqtok.save_tokens(tmp_path / "a.vqt", tokens)
    again = vqtok.load_tokens(tmp_path / "a.vqt")
    assert np.array_equal(again.keep, tokens.keep)
    for image, array, row in zip(tiny.detokenize(again), arrays, tokens, strict=True):
        runs = tiny.encode(tiny.preprocess(array))
        assert np.array_equal(row.ids, runs.ids.numpy())
        assert row.grids.tolist() == [[1, 8, 8]]
        assert row.sizes.tolist() == [[SIDE, SIDE]]
        assert np.array_equal(row.keep, tiny.select(tiny.preprocess(array)).keep[0].numpy())
        expected = images.from_pixels(tiny.decode(runs)[0].numpy(), tiny.spec, (SIDE, SIDE))
        assert np.array_equal(np.asarray(image), expected)


def test_a_rule_holds_for_files_and_is_recorded(tiny):
    array = picture(64, 64)
    plain = tiny.tokenize(array).record["execution"]
    try:
        for rule, told in [
            (SelectionRule("topk", tokens=9), {"selection": "topk", "tokens": 9}),
            (SelectionRule("gumbel", seed=0), {"selection": "gumbel", "seed": 0}),
        ]:
            tiny.rule = rule
            tokens = tiny.tokenize([array, array])
            assert tokens.record["execution"] == {**plain, **told}
            assert json.dumps(tokens.record)
            assert np.array_equal(tokens.sequences()[0], tokens.sequences()[1])
            assert np.array_equal(tokens[0].keep, tiny.select(tiny.preprocess(array)).keep[0].numpy())
            assert rule.kind != "topk" or len(tokens.sequences()[0]) == 9
            # What a call says goes before the rule.
            assert tiny.encode(tiny.preprocess(array), "topk", tokens=4).lengths.tolist() == [4]
    finally:
        tiny.rule = SelectionRule()
    assert "selection" not in plain


def test_tokens_that_cannot_be_this_models_are_refused(tiny):
    good = tiny.tokenize(picture(64, 64))
    none = np.zeros(0, np.bool_)
    same = {name: getattr(good, name) for name in ("ids", "offsets", "grids", "sizes", "vocab_size", "keys")}

    def make(**changes):
        return vqtok.Tokens(**{**same, "fingerprint": "", "keep": none, **changes})

    tiny.check_tokens(make())
    for changes in (
        {"grids": np.array([[1, 4, 16]])},
        {"grids": np.array([[2, 8, 8]])},
        {"sizes": np.array([[64, 72]])},
        {"ids": good.ids[:0], "offsets": np.array([0, 0])},
        {"ids": np.zeros(65, np.int64), "offsets": np.array([0, 65])},
    ):
        with pytest.raises(MismatchError, match="1 to 64 tokens"):
            tiny.detokenize(make(**changes))
    for changes in ({"vocab_size": 65}, {"fingerprint": "0" * 64}):
        with pytest.raises(MismatchError, match="load the model of those"):
            tiny.detokenize(make(**changes))


def test_features_that_are_not_finite_are_refused_and_others_go_on(tiny):
    x = pixels(3)
    x[1, 0, 0, 0] = math.nan
    with pytest.raises(NonFiniteLatents):
        tiny.encode(x)
    assert len(tiny.encode(x[[0, 2]]).ids)


# Bad inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "words"),
    [((2, 3, 64, 72), "64 x 64"), ((2, 3, 60, 64), "multiples of 8"), ((2, 1, 64, 64), r"\[B, 3, H, W\]")],
)
@pytest.mark.parametrize("method", ["encode", "select", "latents", "forward"])
def test_pixels_of_another_size_are_refused(method, size, words, tiny):
    with pytest.raises(ConfigError, match=words):
        getattr(tiny, method)(torch.zeros(size))


@pytest.mark.parametrize(
    ("ids", "lengths", "vocab_size", "error", "words"),
    [
        ([1, 2], [3], 64, ConfigError, "sum to T"),
        ([[1, 2]], [2], 64, ConfigError, r"ids \[T\]"),
        ([1, 2], [[2]], 64, ConfigError, r"lengths int64 \[B\]"),
        ([1, 2], [2.0], 64, ConfigError, "int64"),
        ([1, 2], [2, 0], 64, ConfigError, "1 to 64 tokens, got 0 to 2"),
        ([1] * 65, [65], 64, ConfigError, "1 to 64 tokens, got 65"),
        ([1, 64], [2], 64, ConfigError, r"0\.\.63"),
        ([1, -1], [2], 64, ConfigError, r"0\.\.63"),
        ([1.0, 2.0], [2], 64, ConfigError, "int64"),
        ([1, 2], [2], 63, MismatchError, "vocabulary of 64"),
    ],
)
def test_runs_that_are_none_are_refused(ids, lengths, vocab_size, error, words, tiny):
    with pytest.raises(error, match=words):
        tiny.decode_features(TokenRuns(torch.tensor(ids), torch.tensor(lengths), vocab_size))


def test_without_a_head_features_come_back_and_pixels_are_refused():
    tokenizer = build(pixel_head=None)
    tokens = tokenizer.encode(pixels(2))
    assert tokenizer.decode_features(tokens).shape == (2, N, 32)
    assert tokenizer(pixels(2)).pixels.shape == (2, 3, 0, 0)
    with pytest.raises(ConfigError, match="decode_features"):
        tokenizer.decode(tokens)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"quantizer": VectorQuantizer(5, 64)}, "dim 5 beside 4"),
        ({"selector": TokenSelector(16)}, "32 beside 16"),
        ({"preprocess": PreprocessSpec(resize="stretch", size=72, multiple=8)}, "got 72"),
        ({"preprocess": PreprocessSpec(resize="stretch", size=64, multiple=16)}, "patches of 16"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, words):
    with pytest.raises(ConfigError, match=words):
        build(**parts)


def test_a_teacher_of_other_features_is_refused():
    tokenizer = build()
    for features in (nn.Flatten(2), nn.Sequential(tokenizer.features, nn.ZeroPad2d((0, 0, 1, 0)))):
        tokenizer.features = features
        with pytest.raises(ConfigError, match=r"features \[2, 64, 32\].*no class token"):
            tokenizer(pixels(2))


# Training ------------------------------------------------------------------------------------------------------------


def test_training_and_eval_are_the_same_function_but_for_the_sample(tiny, monkeypatch):
    """So the dense merger of training is the ragged one of eval."""

    def threshold(scores, _):
        return ops.pass_through((scores[..., 0] >= scores[..., 1]).float(), scores[..., 0])

    x, expected = pixels(8), tiny(pixels(8))
    monkeypatch.setattr("vqtok.dynamic.sample_keep", threshold)
    try:
        found = tiny.train()(x)
    finally:
        tiny.eval()
    assert found.statistics["keep"].requires_grad
    assert not expected.statistics["keep"].requires_grad
    assert torch.equal(found.quantized.codes, expected.quantized.codes)
    for ours, evals in (
        (found.statistics["features"], expected.statistics["features"]),
        (found.pixels, expected.pixels),
    ):
        torch.testing.assert_close(ours, evals, rtol=0, atol=1e-4)
    tokens = tiny.encode(x)
    assert torch.equal(tokens.ids, expected.quantized.codes)
    torch.testing.assert_close(tiny.decode_features(tokens), expected.statistics["features"], rtol=0, atol=1e-4)


def gradients(tokenizer: DynamicTokenizer) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, x in tokenizer.named_parameters():
        part = name.split(".")[0]
        found[part] = found.get(part, 0.0) + (0.0 if x.grad is None else x.grad.abs().sum().item())
    return found


@pytest.mark.parametrize("quantize", [True, False])
def test_the_feature_loss_reaches_every_part_but_the_teacher(quantize):
    """The selector too, without the keep ratio's help; the codebook has a loss of its own."""
    tokenizer = build().train()
    out = tokenizer(pixels(4), quantize=quantize)
    losses = tokenizer.losses(out)
    losses["features"].backward()
    found = gradients(tokenizer)
    assert all(found[part] > 0 for part in ("selector", "merger", "projection", "decoder"))
    assert found["features"] == found["pixel_head"] == 0
    assert all(x.grad is None for x in tokenizer.features.parameters())
    assert (
        sorted(losses) == ["codebook", "commitment", "features", "keep_ratio"]
        if quantize
        else ["features", "keep_ratio"]
    )


def test_the_teacher_stays_in_eval_mode_and_frozen():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.vit, self.drop = EvaVit(**SIZES, patch=8, grid=(8, 8)), nn.Dropout(0.5)

        def forward(self, pixels):
            return self.drop(self.vit(pixels))

    tokenizer = build(features=Dropping()).train()
    assert tokenizer.merger.training
    assert not any(part.training for part in tokenizer.features.modules())
    assert not any(x.requires_grad for x in tokenizer.features.parameters())
    first, second = (tokenizer(pixels(2)).statistics["teacher"] for _ in range(2))
    assert torch.equal(first, second)


def test_losses_are_the_papers():
    tokenizer = build().train()
    out = tokenizer(pixels(5))
    losses = tokenizer.losses(out, keep_ratio=0.25)
    features, teacher, keep = (
        out.statistics[name].detach().double().numpy() for name in ("features", "teacher", "keep")
    )
    assert set(np.unique(keep)) == {0.0, 1.0}
    cosines = (features * teacher).sum(2) / np.linalg.norm(features, axis=2) / np.linalg.norm(teacher, axis=2)
    assert losses["features"].item() == pytest.approx(np.mean(1 - cosines), abs=1e-6)
    assert losses["keep_ratio"].item() == pytest.approx(np.mean((0.25 - keep.mean(1)) ** 2), abs=1e-6)
    assert out.quantized.codes.shape == (int(keep.sum()),)


def test_without_quantization_the_decoder_sees_what_would_be_compared():
    x = pixels(4)
    for quantizer in (VectorQuantizer(4, 64, unit_latents=True), EmaQuantizer(4, 64, "cosine"), VectorQuantizer(4, 64)):
        tokenizer = build(quantizer)
        out, latents = tokenizer(x, quantize=False), tokenizer.latents(x)
        assert torch.equal(out.quantized.codes, quantizer.encode(latents))
        assert out.quantized.losses == {}
        plain = isinstance(quantizer, VectorQuantizer) and not quantizer.unit_latents
        norms = out.quantized.vectors.norm(dim=1)
        expected = latents.norm(dim=1) if plain else torch.ones(len(latents))
        torch.testing.assert_close(norms, expected)


def test_a_frozen_selector_is_sampled_and_merged_ragged(monkeypatch):
    tokenizer = build().train()
    tokenizer.selector.requires_grad_(False)
    monkeypatch.setattr(tokenizer.merger, "dense", None)
    losses = tokenizer.losses(tokenizer(pixels(4)))
    losses["features"].backward()
    found = gradients(tokenizer)
    assert found["selector"] == 0
    assert found["merger"] > 0


def test_the_pixel_head_learns_from_reconstructed_features():
    for head in (None, VitDecoder(dim=32, width=16, depth=1, heads=1, mlp_width=16, patch=8, head_dim=16)):
        tokenizer = build(**({} if head is None else {"pixel_head": head})).train()
        out = tokenizer(pixels(2))
        assert out.pixels.shape == (2, 3, SIDE, SIDE)
        out.pixels.square().mean().backward()
        assert gradients(tokenizer)["pixel_head"] > 0
        features = out.statistics["features"].transpose(1, 2).unflatten(2, (8, 8))
        torch.testing.assert_close(tokenizer.pixel_head(features), out.pixels)


def test_a_short_training_reconstructs_and_keeps_the_wanted_share():
    """The two weights of the paper; the share falls from about a half to about a third while features come closer."""
    torch.manual_seed(0)
    tokenizer = build(EmaQuantizer(4, 64, "cosine", decay=0.9), pixel_head=None).train()
    objective = Objective({"features": 1.0, "keep_ratio": 2.0, "commitment": 0.25})
    optimizer = torch.optim.Adam([x for x in tokenizer.parameters() if x.requires_grad], lr=2e-3)
    x, history = pixels(16), []
    for step in range(60):
        quantize = step >= 20
        out = tokenizer(x, quantize=quantize)
        losses = {"commitment": torch.zeros(()), **tokenizer.losses(out)}
        optimizer.zero_grad()
        objective(losses).total.backward()
        optimizer.step()
        history.append((losses["features"].item(), out.statistics["keep"].mean().item()))
    first, last = np.mean(history[:3], axis=0), np.mean(history[-5:], axis=0)
    assert last[0] < 0.8 * first[0]
    assert abs(last[1] - 1 / 3) < 0.1
