"""Laws of the encoders and decoders."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vqtok
from vqtok.architecture import Architecture
from vqtok.networks import (
    ConvDecoder,
    ConvEncoder,
    CosmosDecoder,
    CosmosEncoder,
    Emu3Decoder,
    Emu3Encoder,
    Magvit2Decoder,
    Magvit2Encoder,
    MaskgitDecoder,
    MaskgitEncoder,
    SmallDecoder,
    SmallEncoder,
)
from vqtok.networks.conv import Attention, Downsample, ResidualBlock, Upsample
from vqtok.networks.conv3x3 import Conv3x3, Normalize
from vqtok.networks.magvit2 import AdaptiveNorm, DepthToSpace
from vqtok.networks.titok import PixelPatches
from vqtok.presets import PRESETS

SMALL = {"channels": (8, 16, 24), "residual_blocks": (1, 0, 2), "dim": 4}
CONV = {
    "channels": 32,
    "multipliers": (1, 2, 2),
    "residual_blocks": 1,
    "attention_levels": (2,),
    "z_channels": 16,
    "dim": 4,
}
PLAIN = {"channels": 32, "multipliers": (1, 2, 2), "residual_blocks": 1, "dim": 4}
COSMOS = {
    "channels": 32,
    "multipliers": (1, 2),
    "residual_blocks": 1,
    "attention_levels": (1,),
    "z_channels": 16,
    "dim": 4,
    "patch": 4,
    "halvings": 1,
}
EMU3 = {**PLAIN, "attention_levels": (2,), "z_channels": 4, "heads": 2, "frames": 4}
PAIRS = {
    "small": (lambda: SmallEncoder(**SMALL), lambda: SmallDecoder(**SMALL), 8),
    "conv": (lambda: ConvEncoder(**CONV), lambda: ConvDecoder(**CONV), 4),
    "maskgit": (lambda: MaskgitEncoder(**PLAIN), lambda: MaskgitDecoder(**PLAIN), 4),
    "magvit2": (lambda: Magvit2Encoder(**PLAIN), lambda: Magvit2Decoder(**PLAIN), 4),
    "emu3": (lambda: Emu3Encoder(**EMU3), lambda: Emu3Decoder(**EMU3), 4),
    "cosmos": (lambda: CosmosEncoder(**COSMOS), lambda: CosmosDecoder(**COSMOS), 8),
}


@pytest.mark.parametrize(("encoder", "decoder", "factor"), PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("grid", [(1, 1), (2, 5), (7, 3)])
def test_any_multiple_of_the_factor_goes_through_and_comes_back(encoder, decoder, factor, grid):
    pixels = torch.randn(2, 3, grid[0] * factor, grid[1] * factor)
    latents = encoder()(pixels)
    assert latents.shape == (2, 4, *grid)
    assert decoder()(latents).shape == pixels.shape


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("vqgan-f16-1024", 72.14), ("vqgan-f16-16384", 76.07)],
)
def test_vqgan_has_the_published_number_of_parameters(preset, millions):
    """taming-transformers, imagenet f16: 343 tensors, 72.14 M with 1024 codes; 15360 more of 256 are 3.93 M more."""
    with torch.device("meta"):
        tokenizer = vqtok.build(preset)
    assert len(tokenizer.state_dict()) == 343
    assert round(sum(x.numel() for x in tokenizer.parameters()) / 1e6, 2) == millions


GRIDS = [name for name, preset in PRESETS.items() if isinstance(preset.architecture, Architecture)]


@pytest.mark.parametrize("name", GRIDS)
def test_every_preset_builds_and_its_grid_is_the_factors(name):
    with torch.device("meta"):
        tokenizer = vqtok.build(name)
        f, channels = tokenizer.factor, 3 if tokenizer.output == "pixels" else 6
        latents = tokenizer.encoder(torch.zeros(1, 3, 4 * f, 6 * f))
        assert latents.shape == (1, tokenizer.quantizer.latent_dim, 4, 6)
        vectors = torch.zeros(1, tokenizer.quantizer.dim, 4, 6)
        assert tokenizer.decoder(vectors).shape == (1, channels, 4 * f, 6 * f)


def test_a_small_code_depends_on_nearby_pixels_only():
    encoder = SmallEncoder(**SMALL)
    pixels = torch.randn(1, 3, 192, 192)
    changed = pixels.clone()
    changed[..., 160:, 160:] += 1
    before, after = encoder(pixels), encoder(changed)
    assert torch.equal(before[..., :16, :16], after[..., :16, :16])
    assert not torch.equal(before[..., 20:, 20:], after[..., 20:, 20:])


def test_downsampling_pads_the_bottom_and_right_only():
    down = Downsample(32)
    x = torch.randn(1, 32, 6, 8)
    padded = torch.zeros(1, 32, 7, 9)
    padded[..., :6, :8] = x
    assert torch.equal(down(x), F.conv2d(padded, down.conv.weight, down.conv.bias, stride=2))


def test_upsampling_repeats_each_position_before_the_convolution():
    up = Upsample(32)
    x = torch.randn(1, 32, 3, 4)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(up(x), up.conv(repeated))


def test_depth_to_space_gives_each_quarter_of_the_channels_a_corner():
    up = DepthToSpace(3)
    x = torch.randn(2, 3, 4, 5)
    corners, whole = up.conv(x), up(x)
    for i, j in itertools.product(range(2), range(2)):
        quarter = (2 * i + j) * 3
        assert torch.equal(whole[:, :, i::2, j::2], corners[:, quarter : quarter + 3])


def test_patches_are_laid_out_by_row_column_and_colour():
    head = PixelPatches(8, patch=2)
    nn.init.dirac_(head.conv_out.weight)
    nn.init.zeros_(head.conv_out.bias)
    x = torch.randn(2, 8, 3, 4)
    patches, pixels = head.to_patch(x), head(x)
    for i, j, c in itertools.product(range(2), range(2), range(3)):
        torch.testing.assert_close(pixels[:, c, i::2, j::2], patches[:, (2 * i + j) * 3 + c])


def test_an_adaptive_norm_has_the_spread_and_mean_of_the_latents():
    norm = AdaptiveNorm(32, dim=4)
    x, latents = torch.randn(2, 32, 6, 6), torch.randn(2, 4, 3, 5)
    flat = latents.double().flatten(2).numpy()
    spread = torch.from_numpy((flat.var(axis=2, ddof=1) + 1e-6) ** 0.5).float()
    mean = torch.from_numpy(flat.mean(axis=2)).float()
    expected = norm.scale(spread)[..., None, None] * F.group_norm(x, 32, eps=1e-6) + norm.shift(mean)[..., None, None]
    torch.testing.assert_close(norm(x, latents), expected, rtol=0, atol=2e-5)
    assert norm(x, latents[..., :1, :1]).isfinite().all()


def test_an_image_is_a_clip_whose_frames_are_equal():
    """The publisher's way: the image repeated, every frame through the network; the first of all decoded frames."""
    decoder = Emu3Decoder(**EMU3).eval()
    latents = torch.randn(1, 4, 3, 5)
    both = torch.cat((decoder.from_latents(latents[:, :, None]), latents[:, :, None]))
    for block in decoder.over_frames:
        both = block(both)
    for split in decoder.splits:
        both = F.silu(split(F.interpolate(both, scale_factor=(2.0, 1.0, 1.0))))
    assert both.shape[2] == 4
    x, vectors = (part.transpose(1, 2).flatten(0, 1) for part in both.chunk(2))
    x = decoder.conv_in(x)
    for part in decoder.middle:
        x = part(x, vectors)
    for level, upsample in zip(reversed(decoder.levels), reversed(decoder.upsamples), strict=True):
        x = upsample(level(x, vectors))
    frames = decoder.conv_out(F.silu(decoder.norm_out(x, vectors)))
    torch.testing.assert_close(decoder(latents), frames[:1], rtol=0, atol=2e-5)


def test_attention_is_softmax_of_scaled_products_over_all_positions():
    attention = Attention(32)
    x = torch.randn(1, 32, 3, 5)
    h = attention.norm(x)
    q, k, v = (f(h).reshape(32, 15) for f in (attention.query, attention.key, attention.value))
    weights = (q.T @ k / 32**0.5).softmax(-1)
    expected = x + attention.proj((v @ weights.T).reshape(1, 32, 3, 5))
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)


def test_a_residual_block_adds_its_input():
    for channels, out in ((32, 32), (32, 64)):
        block = ResidualBlock(channels, out)
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
        x = torch.randn(1, channels, 4, 4)
        assert torch.equal(block(x), block.shortcut(x))


def test_normalisation_of_a_flat_image_survives_channels_last():
    """torch's own channels_last kernel on the CPU is off by 40 here: mean 10, deviation 1e-2."""
    norm = Normalize(64)
    x = (10 + 1e-2 * torch.randn(1, 64, 32, 32)).to(memory_format=torch.channels_last)
    grouped = x.double().reshape(1, 32, -1)
    mean, var = grouped.mean(-1, keepdim=True), grouped.var(-1, unbiased=False, keepdim=True)
    expected = ((grouped - mean) / (var + 1e-6).sqrt()).reshape(x.shape)
    with torch.no_grad():
        torch.testing.assert_close(norm(x).double(), expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(norm(x).double(), expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize("name", ["conv", "maskgit", "magvit2", "emu3"])
@pytest.mark.parametrize("level", [-1.0, 0.0, 0.004, 1.0, None], ids=["black", "grey", "nearly grey", "white", "noise"])
def test_without_gradients_networks_give_what_they_do_in_float64(name, level):
    """Flat images are where statistics that subtract squares go wrong; 0.004 is one step of a byte."""
    torch.manual_seed(5)
    encoder, decoder, factor = PAIRS[name]
    pixels = torch.randn(2, 3, 8 * factor, 6 * factor)
    if level is not None:
        pixels = torch.full_like(pixels, level)
        pixels[..., 5, 7] += 0.004
    latents = torch.randn(2, 4, 8, 6) if level is None else torch.full((2, 4, 8, 6), level)
    for network, given in ((encoder().eval(), pixels), (decoder().eval(), latents)):
        with torch.no_grad():
            came, exact = network(given), copy.deepcopy(network).double()(given.double())
        assert (came - exact).abs().max() <= 2e-5 * max(1, exact.abs().max())
        torch.testing.assert_close(network(given), came, rtol=0, atol=4e-5 * max(1, exact.abs().max().item()))


def test_without_gradients_an_image_has_the_same_latents_in_any_batch_and_with_any_threads():
    encoder, images = ConvEncoder(**CONV).eval(), torch.randn(3, 3, 32, 48)
    before = torch.get_num_threads()
    with torch.no_grad():
        blocks = torch.nn.Sequential(*encoder.levels[0].blocks)
        maps = torch.randn(3, 32, 20, 24)
        together = blocks(maps)
        try:
            torch.set_num_threads(3)
            assert torch.equal(blocks(maps), together)
        finally:
            torch.set_num_threads(before)
        assert torch.equal(blocks(maps[1:2]), together[1:2])
        torch.testing.assert_close(encoder(images)[1:2], encoder(images[1:2]))


@pytest.mark.parametrize("name", ["conv", "maskgit", "magvit2", "emu3"])
def test_without_code_for_the_processor_networks_are_torchs_own(name, monkeypatch):
    """torch's convolutions round worse in channels_last, so maps are laid out for code that is there only."""
    torch.manual_seed(5)
    encoder, decoder, factor = PAIRS[name]
    monkeypatch.setenv("VQTOK_CPU_ISA", "scalar")
    for network, given in (
        (encoder().eval(), torch.randn(1, 3, 4 * factor, 2 * factor)),
        (decoder().eval(), torch.randn(1, 4, 4, 2)),
    ):
        with torch.no_grad():
            came = network(given)
        assert torch.equal(came, network(given))
        assert came.is_contiguous()


def test_packed_weights_follow_every_change_of_the_weights():
    conv, other = Conv3x3(32, 32), Conv3x3(32, 32)
    x = torch.randn(1, 32, 5, 6)

    def agrees():
        with torch.no_grad():
            torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1), rtol=0, atol=1e-5)

    agrees()
    conv.weight.data = other.weight.data.clone()
    agrees()
    conv.load_state_dict(Conv3x3(32, 32).state_dict())
    agrees()
    conv.weight = nn.Parameter(torch.randn(32, 32, 3, 3) / 17)
    agrees()
    conv(x).sum().backward()
    torch.optim.SGD(conv.parameters(), lr=1e-4).step()
    agrees()
    again = pickle.loads(pickle.dumps(conv))
    with torch.no_grad():
        assert torch.equal(again(x), conv(x))
        again.weight.mul_(2)
        assert not torch.equal(again(x), conv(x))
    assert sum(x.numel() for x in conv.state_dict().values()) == 32 * 32 * 9 + 32


def test_half_precision_multiplies_in_it_and_keeps_maps_in_it():
    block, x = ResidualBlock(64, 128), torch.randn(1, 64, 12, 12)
    with torch.no_grad():
        exact = copy.deepcopy(block).double()(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            came = block(x)
        assert came.dtype == torch.bfloat16
        error = (came - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        assert 2**-11 < error < 2**-6
        wide = copy.deepcopy(block).double()
        assert wide(x.double()).dtype == torch.float64
        assert copy.deepcopy(block).bfloat16()(x.bfloat16()).dtype == torch.bfloat16
