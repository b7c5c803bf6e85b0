"""Laws of DALL-E's encoder and decoder: their blocks as float64 statements, how far they see, and how many weights."""

import numpy as np
import pytest
import torch
from torch import nn

from vqtok.networks import DvaeDecoder, DvaeEncoder, reach
from vqtok.networks.dvae import BottleneckBlock

SMALL = {"channels": 8, "multipliers": (1, 2, 4), "residual_blocks": 1}
FULL = {"channels": 256, "multipliers": (1, 2, 4, 8), "residual_blocks": 2}


def convolved(x: np.ndarray, conv: nn.Conv2d) -> np.ndarray:
    """A convolution over [C, h, w] written out: a sum over the window, zeros beyond the border."""
    weight, bias = conv.weight.detach().double().numpy(), conv.bias.detach().double().numpy()
    out, _, side, _ = weight.shape
    r = side // 2
    padded = np.pad(x, ((0, 0), (r, r), (r, r)))
    result = np.empty((out, *x.shape[1:]))
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            window = padded[:, i : i + side, j : j + side]
            result[:, i, j] = (weight * window).sum(axis=(1, 2, 3)) + bias
    return result


@pytest.mark.parametrize("kernels", [(3, 3, 3, 1), (1, 3, 3, 3)])
@pytest.mark.parametrize(("channels", "out"), [(8, 8), (8, 16), (12, 8)])
def test_a_block_is_its_input_plus_a_gain_times_four_convolutions_of_rectified_values(kernels, channels, out):
    block = BottleneckBlock(channels, out, kernels, gain=0.25)
    nn.init.normal_(block.convs[0].bias)
    x = torch.randn(1, channels, 5, 4)
    h = x[0].double().numpy()
    shortcut = h if channels == out else convolved(h, block.shortcut)
    for conv, side in zip(block.convs, kernels, strict=True):
        assert conv.kernel_size == (side, side)
        h = convolved(np.maximum(h, 0), conv)
    before = x.clone()
    np.testing.assert_allclose(block(x)[0].detach().numpy(), shortcut + 0.25 * h, rtol=1e-5, atol=1e-6)
    assert torch.equal(x, before), "a block must not rectify its input in place: the shortcut needs it"


def test_the_hidden_width_is_a_quarter_and_the_gain_one_over_the_square_of_the_blocks():
    for network in (DvaeEncoder(**SMALL, dim=16), DvaeDecoder(**SMALL, dim=4)):
        blocks = [module for module in network.modules() if isinstance(module, BottleneckBlock)]
        assert {block.gain for block in blocks} == {1 / 3**2}
        assert all(4 * block.convs[0].out_channels == block.convs[-1].out_channels for block in blocks)


def test_going_down_takes_the_largest_of_four_and_going_up_repeats():
    """With all residual paths silent, what is left is the way through shortcuts, which look at one position."""
    encoder, decoder = DvaeEncoder(**SMALL, dim=16), DvaeDecoder(**SMALL, dim=4)
    for network in (encoder, decoder):
        for block in (m for m in network.modules() if isinstance(m, BottleneckBlock)):
            block.gain = 0.0
    pixels, latents = torch.rand(1, 3, 12, 8), torch.randn(1, 4, 3, 2)
    with torch.no_grad():
        h = encoder.conv_in(pixels)
        for group in encoder.groups[:-1]:
            h = group[0].shortcut(h)
            h = torch.stack([h[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0)
        logits = encoder.conv_out(encoder.groups[-1][0].shortcut(h).relu())
        torch.testing.assert_close(encoder(pixels), logits)
        expected = latents + decoder.bias[:, None, None]
        for group in decoder.groups:
            expected = group[0].shortcut(expected)
        expected = decoder.conv_out(expected.relu()).repeat_interleave(4, 2).repeat_interleave(4, 3)
        torch.testing.assert_close(decoder(latents), expected)


def test_the_papers_networks_have_the_published_number_of_parameters():
    """openai/DALL-E: 53.79 M in 74 tensors and 43.83 M in 76, one of which is a codebook here."""
    with torch.device("meta"):
        encoder, decoder = DvaeEncoder(**FULL, dim=8192), DvaeDecoder(**FULL, dim=128)
    assert len(encoder.state_dict()) == 74
    assert round(sum(x.numel() for x in encoder.parameters()) / 1e6, 2) == 53.79
    assert len(decoder.state_dict()) + 1 == 76
    assert round((sum(x.numel() for x in decoder.parameters()) + 8192 * 128) / 1e6, 2) == 43.83


@pytest.mark.parametrize("grid", [(1, 1), (2, 5), (7, 3)])
def test_any_multiple_of_the_factor_goes_through_and_comes_back(grid):
    pixels = torch.rand(2, 3, grid[0] * 4, grid[1] * 4)
    assert DvaeEncoder(**SMALL, dim=16)(pixels).shape == (2, 16, *grid)
    assert DvaeDecoder(**SMALL, dim=5)(torch.randn(2, 5, *grid)).shape == (2, 6, *pixels.shape[2:])


def positive(network: nn.Module) -> nn.Module:
    """With positive weights on positive values every path counts: a larger input is seen wherever it can be seen."""
    for parameter in network.double().parameters():
        nn.init.uniform_(parameter, 0.1, 1.0)
    return network


def seen(network: nn.Module, x: torch.Tensor, at: int) -> tuple[int, int]:
    """Return the first and last row of the output that see row ``at`` of the input."""
    changed = x.clone()
    changed[..., at, :] += 1
    with torch.no_grad():
        rows = (network(changed) != network(x)).any(dim=(0, 1, 3)).nonzero().flatten().tolist()
    assert rows == list(range(rows[0], rows[-1] + 1))
    return rows[0], rows[-1]


@pytest.mark.parametrize("blocks", [1, 2])
def test_networks_see_exactly_as_far_as_they_say(blocks):
    options = {"channels": 4, "multipliers": (1, 1, 2), "residual_blocks": blocks}
    encoder, decoder = positive(DvaeEncoder(**options, dim=2)), positive(DvaeDecoder(**options, dim=2))
    pixels, latents = torch.ones(1, 3, 160, 4).double(), torch.ones(1, 2, 40, 1).double()
    for at in (80, 81, 83):
        # Latent i has the pixels 4i .. 4i + 3 and sees `reach` more on either side.
        first, last = -(-(at - 3 - reach(encoder)) // 4), (at + reach(encoder)) // 4
        assert seen(encoder, pixels, at) == (first, last)
    # Pixel p lies in the cell of latent p // 4; of those in cells `reach` away, the nearest sees it.
    first, last = seen(decoder, latents, 20)
    assert (first // 4, last // 4) == (20 - reach(decoder), 20 + reach(decoder))


def test_every_weight_learns():
    encoder, decoder = DvaeEncoder(**SMALL, dim=16), DvaeDecoder(**SMALL, dim=16)
    decoder(encoder(torch.rand(2, 3, 16, 16)).softmax(dim=1)).square().mean().backward()
    for network in (encoder, decoder):
        assert [name for name, x in network.named_parameters() if x.grad is None or not x.grad.any()] == []


def test_fresh_networks_keep_the_scale_of_what_goes_through():
    """Weights of variance 1 / fan-in: logits of noise are of order one, neither tiny nor huge."""
    encoder = DvaeEncoder(channels=64, multipliers=(1, 2, 4), residual_blocks=2, dim=64)
    for conv in (m for m in encoder.modules() if isinstance(m, nn.Conv2d)):
        fan_in = conv.in_channels * conv.kernel_size[0] ** 2
        assert abs(conv.weight.var().item() * fan_in - 1) < 0.15
        assert not conv.bias.any()
    assert 0.1 < encoder(torch.randn(1, 3, 32, 32)).std().item() < 3


def test_it_compiles_in_one_piece():
    encoder, decoder = DvaeEncoder(**SMALL, dim=16), DvaeDecoder(**SMALL, dim=16)
    both = torch.compile(lambda x: decoder(encoder(x)), fullgraph=True, backend="aot_eager")
    pixels = torch.rand(1, 3, 16, 24)
    torch.testing.assert_close(both(pixels), decoder(encoder(pixels)))
