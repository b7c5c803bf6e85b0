"""Laws of the two-level tokenizer: how levels are packed, what depends on what, and that nothing is lost on the way."""

import numpy as np
import pytest
import torch

import vqtok
from vqtok import EmaQuantizer, VectorQuantizer, images
from vqtok.errors import ConfigError, MismatchError
from vqtok.evaluation.codebooks import codebooks_of
from vqtok.hierarchy import HierarchicalTokenizer
from vqtok.images import PreprocessSpec
from vqtok.networks import Vqvae2Network
from vqtok.quantizers.levels import Levels, LevelsQuantizer, pack_levels, unpack_levels
from vqtok.types import TokenGrid

KINDS = {"vector": VectorQuantizer, "ema": EmaQuantizer}


def build(kind=VectorQuantizer, *, vocab_size=32) -> HierarchicalTokenizer:
    """A small tokenizer whose codes are latents of its own, so that all of them can be chosen."""
    network = Vqvae2Network(channels=16, residual_blocks=1, residual_channels=8, dim=6)
    quantizer = LevelsQuantizer(kind(6, vocab_size), kind(6, vocab_size))
    tokenizer = HierarchicalTokenizer(network, quantizer, PreprocessSpec(multiple=8))
    with torch.no_grad():
        for level, first, last in ((quantizer.top, 0, 1), (quantizer.bottom, 1, 5)):
            latents = tokenizer.latents(pixels(4, 64, 64)).unflatten(3, (5, 6))[..., first:last, :].reshape(-1, 6)
            level.codebook.copy_(latents[torch.randperm(len(latents))[:vocab_size]])
    return tokenizer


@pytest.fixture(scope="module")
def tiny() -> HierarchicalTokenizer:
    torch.manual_seed(1)
    return build().eval()


def pixels(batch: int, height: int, width: int) -> torch.Tensor:
    smooth = torch.nn.functional.interpolate(torch.randn(batch, 3, 5, 5), (height, width), mode="bicubic")
    return (smooth + 0.2 * torch.randn(batch, 3, height, width)).clamp(-1, 1)


# Packing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1, 2, 3])
@pytest.mark.parametrize("tail", [(), (4,)], ids=["codes", "vectors"])
def test_a_position_is_the_top_and_then_its_cell_row_by_row(ratio, tail):
    top = torch.randn(2, 3, 5, *tail)
    bottom = torch.randn(2, 3 * ratio, 5 * ratio, *tail)
    packed = pack_levels(Levels(top, bottom))
    assert packed.shape == (2, 3, 5, 1 + ratio**2, *tail)
    for i in range(3):
        for j in range(5):
            assert torch.equal(packed[:, i, j, 0], top[:, i, j])
            for k in range(ratio**2):
                below = bottom[:, ratio * i + k // ratio, ratio * j + k % ratio]
                assert torch.equal(packed[:, i, j, 1 + k], below), (i, j, k)
    again = unpack_levels(packed, ratio)
    assert torch.equal(again.top, top)
    assert torch.equal(again.bottom, bottom)


def test_packing_comes_after_unpacking_too():
    packed = torch.randint(0, 99, (2, 4, 3, 10))
    assert torch.equal(pack_levels(unpack_levels(packed, 3)), packed)


def test_levels_that_do_not_fit_are_refused():
    for bottom in ((1, 4, 7), (1, 3, 6), (2, 4, 6), (1, 1, 3), (1, 4, 6, 1)):
        with pytest.raises(ConfigError, match="r times as fine"):
            pack_levels(Levels(torch.zeros(1, 2, 3), torch.zeros(bottom)))
    for packed in ((1, 2, 3, 4), (1, 2, 5)):
        with pytest.raises(ConfigError, match=r"\[B, h, w, 5, \.\.\.\]"):
            unpack_levels(torch.zeros(packed), 2)


# The quantizer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_each_level_is_quantized_by_its_own_codebook_and_losses_add_up(kind):
    quantizer = LevelsQuantizer(kind(3, 8), kind(3, 8)).eval()
    quantizer.top.codebook.data.normal_()
    quantizer.bottom.codebook.data.normal_()
    latents = torch.randn(2, 4, 15)
    out = quantizer(latents)
    parts, books = latents.double().numpy().reshape(2, 4, 5, 3), []
    for level in (quantizer.top, *(quantizer.bottom,) * 4):
        books.append(level.codebook.detach().double().numpy())
    errors = np.empty((2, 4, 5, 3))
    for k, book in enumerate(books):
        codes = ((parts[:, :, k, None, :] - book) ** 2).sum(-1).argmin(-1)
        assert np.array_equal(out.codes[..., k].numpy(), codes), k
        errors[:, :, k] = parts[:, :, k] - book[codes]
    expected = (errors[:, :, 0] ** 2).mean() + (errors[:, :, 1:] ** 2).mean()
    for name in ("commitment", "codebook") if kind is VectorQuantizer else ("commitment",):
        np.testing.assert_allclose(out.losses[name].item(), expected, rtol=1e-6)
    assert torch.equal(quantizer.encode(latents), out.codes)
    assert torch.equal(quantizer.decode(out.codes), out.vectors)
    assert (quantizer.dim, quantizer.latent_dim, quantizer.codebooks, quantizer.vocab_size) == (15, 15, 5, 8)


@pytest.mark.parametrize("size", [(3, 9), (2, 8)])
def test_levels_of_different_sizes_are_refused(size):
    with pytest.raises(ConfigError, match="one vocab_size and dim"):
        LevelsQuantizer(VectorQuantizer(3, 8), VectorQuantizer(*size))


def test_the_networks_and_the_quantizers_ratio_must_agree():
    network = Vqvae2Network(channels=4, residual_blocks=0, residual_channels=4, dim=3)
    quantizer = LevelsQuantizer(VectorQuantizer(3, 8), VectorQuantizer(3, 8), ratio=3)
    with pytest.raises(ConfigError, match="ratio 2"):
        HierarchicalTokenizer(network, quantizer, PreprocessSpec(multiple=8))


# The tokenizer -------------------------------------------------------------------------------------------------------


def test_decode_of_encode_is_the_forward_pass_bit_for_bit(tiny):
    """On a full micro-batch: another number of images may round sums in another order."""
    x = pixels(tiny.micro_batch(64 * 96), 64, 96)
    with torch.no_grad():
        out = tiny(x)
    grid = tiny.encode(x)
    assert torch.equal(out.quantized.codes, grid.ids)
    assert torch.equal(out.pixels, tiny.decode(grid))
    assert torch.equal(out.quantized.vectors, tiny.quantizer.decode(grid.ids))
    assert torch.equal(tiny.quantizer(tiny.latents(x)).codes, grid.ids)
    used = [len(level.unique()) for level in (grid.ids[..., 0], grid.ids[..., 1:])]
    assert min(used) > 20, "a test of a collapsed codebook tests nothing"


def test_the_top_conditions_the_bottom():
    """Another top code of one position gives other latents in its cell, and the same ones far from it."""
    tokenizer = build().eval()
    x = pixels(1, 256, 256)
    with torch.no_grad():
        before = unpack_levels(tokenizer.latents(x).unflatten(3, (5, 6)), 2)
        codes = tokenizer.quantizer.top.encode(before.top)
        found, counts = codes.unique(return_counts=True)
        rare = found[counts.argmin()]
        tokenizer.quantizer.top.codebook[rare] += 10 * before.top.std()
        after = unpack_levels(tokenizer.latents(x).unflatten(3, (5, 6)), 2)
    assert torch.equal(before.top, after.top)
    changed = codes != tokenizer.quantizer.top.encode(after.top)
    changed |= codes == rare
    assert 0 < changed.sum() < changed.numel()
    moved = (before.bottom != after.bottom).any(-1)
    for _, i, j in changed.nonzero().tolist():
        assert moved[0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].all(), (i, j)
    # 3x3 in, one block of 3x3, and the way up: five top positions around are more than a bottom latent hears.
    near = torch.nn.functional.max_pool2d(changed.float()[None], 11, stride=1, padding=5)[0] > 0
    far = ~near.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert far.any()
    assert not moved[far].any()


def test_the_decoder_hears_both_levels(tiny):
    ids = tiny.encode(pixels(1, 64, 64)).ids
    original = tiny.decode(TokenGrid(ids, 32))
    for k in range(5):
        changed = ids.clone()
        changed[0, 4, 4, k] = (changed[0, 4, 4, k] + 1) % 32
        moved = (tiny.decode(TokenGrid(changed, 32)) != original).any(1)[0]
        # A bottom code is heard in its own 4 x 4 pixels of the cell, the top in all 8 x 8.
        row, column = (0, 0) if k == 0 else (4 * ((k - 1) // 2), 4 * ((k - 1) % 2))
        assert moved[32 + row : 36 + row, 32 + column : 36 + column].all(), k
        assert not moved[:8].any(), k


def test_a_code_depends_on_nearby_pixels_only(tiny):
    x = pixels(1, 192, 192)
    changed = x.clone()
    changed[..., 160:, 160:] += 1
    before, after = tiny.encode(x).ids, tiny.encode(changed).ids
    assert torch.equal(before[:, :14, :14], after[:, :14, :14])
    assert not torch.equal(before[:, 20:, 20:], after[:, 20:, 20:])


def test_codes_do_not_depend_on_the_batch(tiny):
    x = pixels(5, 40, 56)
    ids = tiny.encode(x).ids
    decoded = tiny.decode(TokenGrid(ids, 32))
    for i in range(5):
        assert torch.equal(tiny.encode(x[i : i + 1]).ids[0], ids[i])
        assert torch.equal(tiny.decode(TokenGrid(ids[i : i + 1], 32))[0], decoded[i])
    assert tiny.encode(x[:0]).ids.shape == (0, 5, 7, 5)
    assert tiny.decode(TokenGrid(ids[:0], 32)).shape == (0, 3, 40, 56)


def test_networks_always_see_one_number_of_images(tiny):
    """So that no code can depend on how many images came together."""
    seen = []
    length = tiny.micro_batch(40 * 56)
    handles = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        for module in (tiny.network.encode_bottom, tiny.network.decode_both)
    ]
    for batch in (1, length, length + 1):
        tiny.decode(tiny.encode(pixels(batch, 40, 56)))
    for handle in handles:
        handle.remove()
    assert seen == [length] * 8


def test_images_go_through_a_token_file_and_come_back(tiny, tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((30, 50), (8, 8))]
    tokens = tiny.tokenize(arrays)
    assert tokens.grids.tolist() == [[5, 4, 7], [5, 1, 1]]
    vqtok.save_tokens(tmp_path / "a.vqt", tokens)
    again = vqtok.load_tokens(tmp_path / "a.vqt")
    for array, image in zip(arrays, tiny.detokenize(again), strict=True):
        decoded = tiny.decode(tiny.encode(tiny.preprocess(array)))
        expected = images.from_pixels(decoded[0].numpy(), tiny.spec, array.shape[:2])
        assert np.array_equal(np.asarray(image), expected)


def test_tokens_of_another_shape_or_vocabulary_are_refused(tiny):
    ids = torch.zeros(1, 2, 2, 5, dtype=torch.int64)
    with pytest.raises(MismatchError, match="32"):
        tiny.decode(TokenGrid(ids, 64))
    for bad in (ids[..., 0], ids[..., :4], ids[:, :0]):
        with pytest.raises(ConfigError, match=r"\[B, h, w, 5\]"):
            tiny.decode(TokenGrid(bad, 32))
    with pytest.raises(ConfigError, match=r"0\.\.31"):
        tiny.decode(TokenGrid(ids + 32, 32))
    with pytest.raises(ConfigError, match="multiples of 8"):
        tiny.encode(torch.zeros(1, 3, 12, 16))
    grid, size = np.array([[1, 2, 2]]), np.array([[16, 16]])
    flat = vqtok.Tokens(np.zeros(4, np.int64), np.array([0, 4]), grid, size, 32, ("a",), "")
    with pytest.raises(MismatchError, match="5 tokens"):
        tiny.detokenize(flat)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_training_reaches_every_weight(kind):
    tokenizer = build(kind, vocab_size=4).train()
    out = tokenizer(pixels(2, 64, 64))
    (out.pixels.square().mean() + sum(out.quantized.losses.values())).backward()
    silent = [name for name, x in tokenizer.named_parameters() if x.grad is None or not x.grad.any()]
    assert silent == []


def test_a_step_moves_each_codebook_once_by_its_own_latents():
    """VQ-VAE, appendix, equation 6: sizes after a step follow from those before it and one count of the codes."""
    tokenizer = build(EmaQuantizer).train()
    levels = (tokenizer.quantizer.top, tokenizer.quantizer.bottom)
    before = [level.cluster_size.double().numpy() for level in levels]
    codes = tokenizer(pixels(2, 64, 64)).quantized.codes
    for level, sizes, own in zip(levels, before, (codes[..., :1], codes[..., 1:]), strict=True):
        counts = np.bincount(own.flatten().numpy(), minlength=32)
        np.testing.assert_allclose(level.cluster_size.numpy(), 0.99 * sizes + 0.01 * counts, rtol=1e-5)


def test_asking_for_latents_teaches_nothing():
    tokenizer = build(EmaQuantizer).train()
    before = {name: x.clone() for name, x in tokenizer.state_dict().items()}
    tokenizer.latents(pixels(1, 32, 32))
    assert all(torch.equal(x, before[name]) for name, x in tokenizer.state_dict().items())


def test_the_papers_networks_have_the_published_number_of_parameters():
    """rosinality/vq-vae-2-pytorch: 1.52 M in 64 tensors, six of them codebooks, their sums and their sizes."""
    with torch.device("meta"):
        network = Vqvae2Network(channels=128, residual_blocks=2, residual_channels=32, dim=64)
        levels = [EmaQuantizer(64, 512) for _ in range(2)]
    tensors = [*network.state_dict().values()]
    tensors += [x for level in levels for x in (level.codebook, level.cluster_sum, level.cluster_size)]
    assert len(tensors) == 64
    assert round(sum(x.numel() for x in tensors) / 1e6, 2) == 1.52


def test_fingerprints_follow_both_codebooks_and_nothing_that_only_training_reads():
    tokenizer = build(EmaQuantizer).eval()
    first = tokenizer.record()["fingerprints"]
    tokenizer.quantizer.top.cluster_size += 1
    assert tokenizer.record()["fingerprints"] == first
    for level in (tokenizer.quantizer.top, tokenizer.quantizer.bottom):
        level.codebook[0] += 1
        now = tokenizer.record()["fingerprints"]
        assert now["codebook"] != first["codebook"]
        assert now["model"] != first["model"]
        first = now


def test_its_codebooks_are_found_for_inspection(tiny):
    found = codebooks_of(tiny)
    assert [*found] == ["quantizer.top", "quantizer.bottom"]
    for rows, level in zip(found.values(), (tiny.quantizer.top, tiny.quantizer.bottom), strict=True):
        assert np.array_equal(rows, level.codebook.detach().numpy())


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_it_compiles_in_one_piece(kind):
    tokenizer = build(kind).eval()
    x = pixels(1, 32, 48)
    with torch.no_grad():
        encode = torch.compile(tokenizer.encode_pixels, fullgraph=True, backend="aot_eager")
        decode = torch.compile(tokenizer.decode_ids, fullgraph=True, backend="aot_eager")
        ids = encode(x)
        assert torch.equal(ids, tokenizer.encode_pixels(x))
        torch.testing.assert_close(decode(ids), tokenizer.decode_ids(ids))
    train = torch.compile(lambda x: tokenizer(x).pixels, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(train(x), tokenizer(x).pixels)
