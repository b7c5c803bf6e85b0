"""Laws of every tokenizer family, on its tiny preset: tokens, files, compilers, bad input."""

import numpy as np
import pytest
import torch
from PIL import Image

import vqtok
from vqtok.errors import ConfigError, VqtokError
from vqtok.presets import PRESETS
from vqtok.types import TokenGrid, TokenRuns

FAMILIES = {
    "vqvae": ("vqvae-tiny", {}),
    "vqvae2": ("vqvae2-tiny", {}),
    "rqvae": ("rqvae-tiny", {}),
    "vqgan": ("vqgan-tiny", {}),
    "vqgan-gumbel": ("vqgan-gumbel-tiny", {}),
    "dvae": ("dvae-tiny", {}),
    "vit-vqgan": ("vit-vqgan-tiny", {}),
    "dynamic": ("dynamic-tiny", {"size": 32}),
}
GRIDS = [name for name in FAMILIES if name != "dynamic"]
every_family = pytest.mark.parametrize("family", FAMILIES)
every_grid = pytest.mark.parametrize("family", GRIDS)


def picture(height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def made() -> dict[str, vqtok.ImageTokenizer]:
    """Fresh weights, with codebooks and thresholds in the middle of what the encoders give, so that codes differ."""
    tokenizers = {}
    for family, (preset, options) in FAMILIES.items():
        torch.manual_seed(3)
        tokenizer = vqtok.build(preset, **options)
        pixels = torch.cat([tokenizer.preprocess(picture(32, 32, seed)) for seed in range(8)])
        tokenizer.train()(pixels)  # starts codebooks by k-means
        tokenizers[family] = tokenizer.eval()
    if isinstance(dynamic := tokenizers["dynamic"], vqtok.DynamicTokenizer):
        likely = dynamic.keep_probability(pixels)
        shift = -(likely / (1 - likely)).log().median()
        dynamic.selector.to_scores.bias.data += shift * torch.tensor([0.5, -0.5])
    return tokenizers


@every_family
def test_tokens_do_not_depend_on_batch_size_order_or_neighbours(made, family):
    tokenizer = made[family]
    arrays = [picture(32, 32, seed) for seed in range(6)]
    alone = [tokenizer.tokenize(array) for array in arrays]
    assert len({tuple(x.ids.tolist()) for x in alone}) == 6, "these images have different tokens"
    for order in ([0, 1, 2, 3, 4, 5], [5, 2, 0], [3], [4, 3, 2, 1, 0, 5]):
        together = tokenizer.tokenize([arrays[i] for i in order])
        for i, row in zip(order, together, strict=True):
            assert np.array_equal(row.ids, alone[i].ids), (order, i)
            assert np.array_equal(row.keep, alone[i].keep)
    if family == "dynamic":
        assert len({x.ids.size for x in alone}) > 1, "these images have runs of different lengths"


@every_family
def test_detokenize_of_tokenize_is_decode_of_encode(made, family):
    tokenizer = made[family]
    pixels = tokenizer.preprocess(picture(32, 32, 9))
    expected = tokenizer.decode(tokenizer.encode(pixels))[0].numpy()
    back = tokenizer.detokenize(tokenizer.tokenize(picture(32, 32, 9)))[0]
    assert np.array_equal(np.asarray(back), vqtok.images.from_pixels(expected, tokenizer.spec, (32, 32)))


@every_family
def test_a_saved_model_gives_the_same_tokens(made, family, tmp_path):
    tokenizer = made[family]
    tokenizer.save(tmp_path / "m")
    again = vqtok.load(tmp_path / "m")
    assert type(again) is type(tokenizer)
    assert again.fingerprint == tokenizer.fingerprint
    tokens = tokenizer.tokenize([picture(32, 32, 1), picture(32, 32, 2)])
    vqtok.save_tokens(tmp_path / "a.vqt", tokens)
    loaded = vqtok.load_tokens(tmp_path / "a.vqt")
    assert np.array_equal(again.tokenize([picture(32, 32, 1), picture(32, 32, 2)]).ids, loaded.ids)
    assert np.array_equal(loaded.keep, tokens.keep)
    for a, b in zip(again.detokenize(loaded), tokenizer.detokenize(tokens), strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))


@every_family
def test_eval_has_no_side_effects_and_training_reaches_every_weight(made, family):
    tokenizer = vqtok.build(FAMILIES[family][0], **FAMILIES[family][1]).eval()
    before = tokenizer.fingerprint
    pixels = torch.cat([tokenizer.preprocess(picture(32, 32, seed)) for seed in range(2)])
    tokenizer(pixels), tokenizer.encode(pixels)
    assert tokenizer.fingerprint == before
    out = tokenizer.train()(pixels)
    loss = out.pixels.square().mean() + sum(x.square().mean() for x in out.statistics.values())
    (loss + sum(out.quantized.losses.values())).backward()
    silent = [n for n, x in tokenizer.named_parameters() if x.requires_grad and (x.grad is None or not x.grad.any())]
    # A key's bias moves all scores of a query alike.
    assert [name for name in silent if "bias" not in name] == []


@every_grid
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compiled_and_exported_it_gives_the_same(made, family):
    tokenizer = made[family]
    pixels = torch.cat([tokenizer.preprocess(picture(32, 32, seed)) for seed in range(2)])
    tokens = tokenizer.encode(pixels)
    decoded = tokenizer.decode(tokens)
    with torch.no_grad():
        encode = torch.compile(tokenizer.encode_pixels, fullgraph=True, backend="aot_eager")
        decode = torch.compile(tokenizer.decode_ids, fullgraph=True, backend="aot_eager")
        # Compilers round the networks' sums in another order: another code then is one with nearly the same vector.
        vectors = tokenizer.quantizer.decode(tokens.ids)
        torch.testing.assert_close(tokenizer.quantizer.decode(encode(pixels)), vectors, rtol=0, atol=1e-3)
        torch.testing.assert_close(decode(tokens.ids), decoded, rtol=1e-4, atol=1e-4)
        for method, argument, expected in (("encode_pixels", pixels, tokens.ids), ("decode_ids", tokens.ids, decoded)):
            exported = torch.export.export(Method(tokenizer, method), (argument,)).module()
            if method == "encode_pixels":
                found = tokenizer.quantizer.decode(exported(argument))
                torch.testing.assert_close(found, vectors, rtol=0, atol=1e-3)
            else:
                torch.testing.assert_close(exported(argument), expected, rtol=1e-4, atol=1e-4)


class Method(torch.nn.Module):
    """A method of a tokenizer as a module of its own, for torch.export."""

    def __init__(self, tokenizer: vqtok.ImageTokenizer, method: str) -> None:
        super().__init__()
        self.tokenizer, self.method = tokenizer, method

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self.tokenizer, self.method)(x)


@pytest.mark.parametrize("family", ["vqvae", "dynamic"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_encode_and_decode_compile_as_people_call_them(made, family):
    tokenizer = made[family]
    pixels = torch.cat([tokenizer.preprocess(picture(32, 32, seed)) for seed in range(2)])
    tokens = tokenizer.encode(pixels)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(tokenizer.encode, backend="aot_eager")(pixels).ids, tokens.ids)
    decoded = torch.compile(tokenizer.decode, backend="aot_eager")(tokens)
    torch.testing.assert_close(decoded, tokenizer.decode(tokens), rtol=1e-4, atol=1e-4)


@every_family
@pytest.mark.parametrize("shape", [(1, 3, 33, 32), (1, 1, 32, 32), (3, 32, 32), (1, 3, 0, 32)])
def test_pixels_of_another_shape_are_refused_with_what_was_expected(made, family, shape):
    with pytest.raises(VqtokError, match="expected"):
        made[family].encode(torch.zeros(shape))


@every_family
def test_tokens_of_another_shape_or_vocabulary_are_refused(made, family):
    tokenizer = made[family]
    k = tokenizer.vocab_size
    wrong = [TokenGrid(torch.zeros(1, 2, 2, 9, dtype=torch.int64), k), TokenGrid(torch.zeros(4, dtype=torch.int64), k)]
    if family == "dynamic":
        ids, lengths = torch.zeros(3, dtype=torch.int64), torch.tensor([3])
        wrong = [TokenRuns(ids, torch.tensor([4]), k), TokenRuns(ids + k, lengths, k), TokenRuns(ids, lengths, k + 1)]
    for tokens in wrong:
        with pytest.raises(VqtokError, match="expected"):
            tokenizer.decode(tokens)


@pytest.mark.parametrize("preset", PRESETS)
def test_unknown_options_are_refused_with_the_nearest_one(preset):
    with pytest.raises(ConfigError, match="did you mean 'vocab_size'"), torch.device("meta"):
        vqtok.build(preset, vocab_sice=3)


@pytest.mark.parametrize(
    ("preset", "millions", "tables"),
    [
        ("vqgan-f16-1024", 72.14, 0),
        ("vit-vqgan-small-parti", 51.96, 2 * 1024 * 512),
        ("vqvae2-256", 1.52, 2 * (2 * 64 * 512 + 512)),
        ("dvae-f8-8192", 53.79 + 43.83, 0),
        ("lavit-dynamic", 1011.14 + 404.05 + 403.0, 0),
    ],
)
def test_full_sizes_have_the_published_numbers_of_parameters(preset, millions, tables):
    """Tables: what publishers store and we compute (positions), or keep as buffers (codebooks of averages)."""
    with torch.device("meta"):
        tokenizer = vqtok.build(preset)
    assert round((sum(x.numel() for x in tokenizer.parameters()) + tables) / 1e6, 2) == pytest.approx(
        millions, abs=0.006
    )
