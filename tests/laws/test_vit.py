"""Laws of attention, of fixed positions and of ViT-VQGAN's networks: the papers' formulas in NumPy, with loops."""

import math

import numpy as np
import pytest
import torch

from vqtok.errors import ConfigError
from vqtok.networks import VitDecoder, VitEncoder
from vqtok.networks.transformer import CrossAttention, Mlp, SelfAttention, attend, sincos_positions

SIZES = {"dim": 4, "width": 16, "depth": 2, "heads": 2, "mlp_width": 24, "patch": 4, "head_dim": 6}
VARIANTS = [{}, {"tanh_head": 12}, {"activation": "gelu"}, {"positions": "stored", "grid": (2, 3)}]
IDS = ["published", "tanh_head", "gelu", "stored"]
erf = np.vectorize(math.erf)


def weights(module):
    """Parameters and buffers in float64, after every one is moved off its initial zeros and ones."""
    with torch.no_grad():
        for x in module.parameters():
            x += 0.2 * torch.randn_like(x)
    return {name: x.double().numpy() for name, x in module.state_dict().items()}


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def layer_norm(w, name, x):
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred / deviation * w[f"{name}.weight"] + w[f"{name}.bias"]


def softmax_attention(q, k, v, heads, mask=None):
    """q [N, inner], k and v [M, inner] of one item: one head and one query at a time."""
    out = np.zeros_like(q)
    d = q.shape[1] // heads
    for head in range(heads):
        part = slice(head * d, head * d + d)
        for i in range(len(q)):
            seen = np.ones(len(k), bool) if mask is None else mask[i]
            scores = np.array([q[i, part] @ row / math.sqrt(d) for row in k[seen][:, part]])
            shares = np.exp(scores - scores.max())
            out[i, part] = (shares / shares.sum()) @ v[seen][:, part]
    return out


def naive_positions(height, width, dim):
    table = np.zeros((height * width, dim))
    quarter = dim // 4
    for y in range(height):
        for x in range(width):
            for i in range(quarter):
                f = 1 / 10000 ** (i / quarter)
                row = table[y * width + x]
                row[[i, quarter + i]] = math.sin(x * f), math.cos(x * f)
                row[[2 * quarter + i, 3 * quarter + i]] = math.sin(y * f), math.cos(y * f)
    return table


def naive_blocks(w, x, activation, depth=SIZES["depth"]):
    for i in range(depth):
        block = f"blocks.{i}"
        q, k, v = np.split(linear(w, f"{block}.attention.to_qkv", layer_norm(w, f"{block}.norm1", x)), 3, axis=1)
        x = x + linear(w, f"{block}.attention.to_out", softmax_attention(q, k, v, SIZES["heads"]))
        hidden = linear(w, f"{block}.mlp.to_hidden", layer_norm(w, f"{block}.norm2", x))
        hidden = np.tanh(hidden) if activation == "tanh" else hidden * (1 + erf(hidden / math.sqrt(2))) / 2
        x = x + linear(w, f"{block}.mlp.to_out", hidden)
    x = layer_norm(w, "norm", x)
    return np.tanh(linear(w, "head.0", x)) if "head.0.weight" in w else x


def naive_encoder(w, image, activation="tanh"):
    """[3, H, W] to [dim, h, w]."""
    p = SIZES["patch"]
    height, width = image.shape[1] // p, image.shape[2] // p
    kernel = w["from_pixels.weight"]
    patches = [image[:, y * p : y * p + p, x * p : x * p + p] for y in range(height) for x in range(width)]
    x = np.array([(kernel * patch).sum((1, 2, 3)) + w["from_pixels.bias"] for patch in patches])
    x = naive_blocks(w, x + w.get("positions.table", naive_positions(height, width, x.shape[1])), activation)
    return linear(w, "to_latents", x).T.reshape(-1, height, width)


def naive_decoder(w, latents, activation="tanh"):
    """[dim, h, w] to [3, H, W]."""
    p = SIZES["patch"]
    height, width = latents.shape[1:]
    x = linear(w, "from_latents", latents.reshape(len(latents), -1).T)
    x = naive_blocks(w, x + w.get("positions.table", naive_positions(height, width, x.shape[1])), activation)
    image = np.zeros((w["to_pixels.bias"].size, height * p, width * p))
    for n, row in enumerate(x):
        top, left = n // width * p, n % width * p
        patch = np.einsum("i,ioyx->oyx", row, w["to_pixels.weight"]) + w["to_pixels.bias"][:, None, None]
        image[:, top : top + p, left : left + p] = patch
    return image


def numbers(x, like):
    return torch.tensor(np.asarray(x), dtype=like.dtype)


@pytest.mark.parametrize("variant", VARIANTS, ids=IDS)
@torch.no_grad()
def test_encoder_and_decoder_are_the_papers_in_numpy(variant):
    encoder, decoder = VitEncoder(**SIZES, **variant), VitDecoder(**SIZES, **variant, out_channels=6)
    pixels, latents = torch.rand(2, 3, 8, 12), torch.randn(2, 4, 2, 3)
    w, activation = weights(encoder), variant.get("activation", "tanh")
    expected = [naive_encoder(w, x, activation) for x in pixels.double().numpy()]
    torch.testing.assert_close(encoder(pixels), numbers(expected, pixels), rtol=1e-5, atol=2e-5)
    w = weights(decoder)
    expected = [naive_decoder(w, x, activation) for x in latents.double().numpy()]
    torch.testing.assert_close(decoder(latents), numbers(expected, latents), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("bias", ["all", "qv", "none"])
@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_self_attention_is_softmax_by_hand(bias, causal):
    attention = SelfAttention(8, 2, head_dim=3, bias=bias)
    x = torch.randn(1, 5, 8)
    w = weights(attention)
    if bias == "qv":
        w["to_qkv.bias"] = np.concatenate([w["q_bias"], np.zeros(6), w["v_bias"]])
    assert ("to_qkv.bias" in w) == (bias != "none")
    q, k, v = np.split(linear(w, "to_qkv", x[0].double().numpy()), 3, axis=1)
    mask = np.tri(5, dtype=bool) if causal else None
    expected = numbers(linear(w, "to_out", softmax_attention(q, k, v, 2, mask)), x)
    torch.testing.assert_close(attention(x, is_causal=causal)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", ["all", "qv", "none"])
@torch.no_grad()
def test_cross_attention_is_softmax_by_hand_over_what_the_mask_shows(bias):
    attention = CrossAttention(8, 2, context_dim=6, head_dim=3, bias=bias)
    x, context = torch.randn(2, 5, 8), torch.randn(2, 7, 6)
    mask = torch.rand(2, 5, 7) < 0.5
    mask[..., 0] = True
    w = weights(attention)
    biased = {name for name in ("to_q", "to_k", "to_v") if f"{name}.bias" in w}
    assert biased == {"all": {"to_q", "to_k", "to_v"}, "qv": {"to_q", "to_v"}, "none": set()}[bias]
    for i in range(2):
        query, key = x[i].double().numpy(), context[i].double().numpy()
        parts = linear(w, "to_q", query), linear(w, "to_k", key), linear(w, "to_v", key)
        expected = numbers(linear(w, "to_out", softmax_attention(*parts, 2, mask[i].numpy())), x)
        torch.testing.assert_close(attention(x, context, mask)[i], expected, rtol=1e-5, atol=1e-5)


def test_a_mask_of_keys_alone_is_for_every_query_and_head():
    attention = SelfAttention(8, 2)
    x = torch.randn(2, 6, 8)
    kept = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    torch.testing.assert_close(attention(x, kept[:, None])[0, :4], attention(x[:1, :4])[0])
    torch.testing.assert_close(attention(x, kept[:, None])[1], attention(x)[1])


def test_a_query_that_sees_nothing_gets_zeros_and_no_bad_gradient():
    x = torch.randn(1, 3, 4, requires_grad=True)
    out = attend(x, x, x, 2, torch.tensor([[True, True, True], [False] * 3, [True, False, True]]))
    assert torch.equal(out[0, 1], torch.zeros(4))
    out.sum().backward()
    assert x.grad.isfinite().all()


def test_a_key_bias_changes_nothing():
    """Why ``"qv"`` leaves it out: softmax does not see what all scores of a query share."""
    attention = SelfAttention(8, 2, bias="all")
    x = torch.randn(1, 5, 8)
    before = attention(x)
    with torch.no_grad():
        attention.to_qkv.bias[8:16] += 3
    torch.testing.assert_close(attention(x), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "dim"), [(3, 5, 8), (1, 1, 4), (7, 2, 12)])
def test_positions_are_the_formula_rounded_once(height, width, dim):
    expected = naive_positions(height, width, dim)
    table = sincos_positions(height, width, dim)
    assert table.dtype == torch.float32
    ulp = np.spacing(np.abs(expected).astype(np.float32)).astype(float)
    assert (np.abs(table.double().numpy() - expected) <= 0.5001 * ulp + 1e-15).all()
    double = sincos_positions(height, width, dim, dtype=torch.float64)
    np.testing.assert_allclose(double.numpy(), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", ["sincos", "stored"])
def test_positions_alone_tell_patches_apart(kind):
    """Without them a permutation of patches would be a permutation of latents."""
    encoder = VitEncoder(**SIZES, positions=kind, grid=(1, 2) if kind == "stored" else None)
    left, right = torch.rand(2, 1, 3, 4, 4).unbind()
    one, other = encoder(torch.cat([left, right], 3)), encoder(torch.cat([right, left], 3)).flip(3)
    assert (one - other).abs().max() > 1e-2
    encoder.positions = NoPositions()
    one, other = encoder(torch.cat([left, right], 3)), encoder(torch.cat([right, left], 3)).flip(3)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


class NoPositions(torch.nn.Module):
    def forward(self, x, height, width):
        return x


@pytest.mark.parametrize("variant", VARIANTS[:3], ids=IDS[:3])
@pytest.mark.parametrize("grid", [(1, 1), (2, 5), (7, 3)])
def test_any_grid_goes_through_and_comes_back(variant, grid):
    latents = VitEncoder(**SIZES, **variant)(torch.rand(2, 3, 4 * grid[0], 4 * grid[1]))
    assert latents.shape == (2, 4, *grid)
    assert VitDecoder(**SIZES, **variant)(latents).shape == (2, 3, 4 * grid[0], 4 * grid[1])


def test_stored_positions_start_as_the_computed_ones_and_count():
    computed, stored = VitEncoder(**SIZES), VitEncoder(**SIZES, positions="stored", grid=(2, 3))
    stored.load_state_dict({**computed.state_dict(), "positions.table": stored.positions.table})
    pixels = torch.rand(1, 3, 8, 12)
    assert torch.equal(computed(pixels), stored(pixels))
    stored.positions.table *= 0.7
    assert (computed(pixels) - stored(pixels)).abs().max() > 1e-3


def test_an_image_knows_nothing_of_its_batch():
    encoder, decoder = VitEncoder(**SIZES, tanh_head=8), VitDecoder(**SIZES, tanh_head=8)
    pixels = torch.rand(5, 3, 12, 8)
    order = torch.tensor([3, 0, 4, 1, 2])
    latents = encoder(pixels)
    torch.testing.assert_close(encoder(pixels[order]), latents[order], rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.cat([encoder(x[None]) for x in pixels]), latents, rtol=0, atol=1e-6)
    out = decoder(latents)
    torch.testing.assert_close(decoder(latents[order]), out[order], rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.cat([decoder(x[None]) for x in latents]), out, rtol=0, atol=1e-6)


def counted(module, sizes, **options):
    state = module(dim=32, patch=8, **sizes, **options).state_dict().values()
    return sum(x.numel() for x in state), len(state)


SMALL = {"width": 512, "depth": 8, "heads": 8, "mlp_width": 2048}
BASE = {"width": 768, "depth": 12, "heads": 12, "mlp_width": 3072}
LARGE = {"width": 1280, "depth": 32, "heads": 16, "mlp_width": 5120}


def test_small_has_the_published_number_of_parameters():
    """enhancing-transformers, small: 191 tensors, 51.96 M: its position tables, 2 x 1024 x 512, are counted there."""
    codebook = 8192 * 32
    with torch.device("meta"):
        encoder, decoder = counted(VitEncoder, SMALL), counted(VitDecoder, SMALL)
        ours = encoder[0] + decoder[0] + codebook
        assert encoder[1] + decoder[1] + 1 == 189
        assert ours == 50_908_195
        assert round((ours + 2 * 1024 * 512) / 1e6, 2) == 51.96
        stored = [counted(x, SMALL, positions="stored", grid=(32, 32)) for x in (VitEncoder, VitDecoder)]
        assert sum(tensors for _, tensors in stored) + 1 == 191
        assert sum(n for n, _ in stored) + codebook == ours + 2 * 1024 * 512


@pytest.mark.parametrize(
    ("encoder", "decoder", "total"), [(BASE, BASE, 170_664_483), (SMALL, LARGE, 613_487_907)], ids=["base", "large"]
)
def test_base_and_large_have_this_number_of_parameters(encoder, decoder, total):
    with torch.device("meta"):
        assert counted(VitEncoder, encoder)[0] + counted(VitDecoder, decoder)[0] + 8192 * 32 == total


@pytest.mark.parametrize("variant", VARIANTS[1::2], ids=IDS[1::2])
def test_networks_compile_without_a_break_and_export_with_any_batch(variant):
    """Backend aot_eager: what is checked is the graph; no compiler is waited for."""
    for network, shape in ((VitEncoder(**SIZES, **variant), (3, 8, 12)), (VitDecoder(**SIZES, **variant), (4, 2, 3))):
        network.eval()
        two, five = torch.rand(2, *shape), torch.rand(5, *shape)
        torch.compiler.reset()
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        batch = torch.export.Dim("batch", min=1, max=64)
        exported = torch.export.export(network, (two,), dynamic_shapes=({0: batch},)).module()
        for x in (two, five):
            torch.testing.assert_close(compiled(x), network(x), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(exported(x), network(x), rtol=1e-5, atol=1e-5)


def test_an_exported_encoder_takes_any_grid():
    encoder = VitEncoder(**SIZES).eval()
    sides = {2: 4 * torch.export.Dim("h", min=1, max=64), 3: 4 * torch.export.Dim("w", min=1, max=64)}
    exported = torch.export.export(encoder, (torch.rand(2, 3, 16, 24),), dynamic_shapes=(sides,)).module()
    pixels = torch.rand(2, 3, 28, 12)
    torch.testing.assert_close(exported(pixels), encoder(pixels), rtol=1e-5, atol=1e-5)


def test_under_autocast_the_sum_over_blocks_stays_float32():
    encoder = VitEncoder(**SIZES)
    seen = []
    encoder.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoder(torch.rand(1, 3, 8, 8))
    assert seen == [torch.float32]


def test_one_image_can_be_learned_by_heart():
    encoder, decoder = VitEncoder(**SIZES), VitDecoder(**SIZES)
    pixels = torch.rand(1, 3, 8, 12)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], lr=1e-2, weight_decay=0)
    for _ in range(200):
        loss = (decoder(encoder(pixels)) - pixels).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01 * pixels.var()


def test_refusals_say_what_was_expected():
    for options, words in (
        ({"positions": "stored"}, "with a grid"),
        ({"grid": (2, 3)}, "with a grid"),
        ({"positions": "learned", "grid": (2, 3)}, "'learned'"),
        ({"activation": "relu"}, "tanh, gelu"),
    ):
        with pytest.raises(ConfigError, match=words):
            VitEncoder(**SIZES, **options)
        with pytest.raises(ConfigError, match=words):
            VitDecoder(**SIZES, **options)
    with pytest.raises(ConfigError, match=r"multiples of 4, got \(8, 10\)"):
        VitEncoder(**SIZES)(torch.rand(1, 3, 8, 10))
    with pytest.raises(ConfigError, match=r"grid of 2 x 3 patches.*got 3 x 2"):
        VitDecoder(**SIZES, positions="stored", grid=(2, 3))(torch.rand(1, 4, 3, 2))
    with pytest.raises(ConfigError, match="heads that divide dim"):
        SelfAttention(8, 3)
    with pytest.raises(ConfigError, match="all, qv, none"):
        CrossAttention(8, 2, bias="q")
    with pytest.raises(ConfigError, match="multiple of 4"):
        sincos_positions(2, 2, 6)
    x = torch.rand(1, 2, 4)
    for mask, causal in ((torch.ones(2, 2, dtype=torch.bool), True), (torch.ones(2, 2), False)):
        with pytest.raises(ConfigError, match="boolean mask"):
            attend(x, x, x, 2, mask, is_causal=causal)
    with pytest.raises(ConfigError, match="tanh, gelu"):
        Mlp(4, 8, "silu")


def test_weights_start_as_glorots_with_a_patch_as_one_vector_and_biases_at_zero():
    for network, name, fans in (
        (VitEncoder(**SIZES), "from_pixels", 3 * 16 + 16),
        (VitDecoder(**SIZES), "to_pixels", 3 * 16 + 16),
        (VitEncoder(**SIZES), "blocks.0.mlp.to_hidden", 16 + 24),
    ):
        layer = network.get_submodule(name)
        bound = math.sqrt(6 / fans)
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()
