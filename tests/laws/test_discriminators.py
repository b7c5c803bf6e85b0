"""Laws of the discriminators: the papers' layers in NumPy, published counts, second derivatives."""

import numpy as np
import pytest
import torch
from torch import nn

from vqtok.errors import ConfigError
from vqtok.networks import PatchDiscriminator, StyleDiscriminator
from vqtok.networks.discriminators import blur, minibatch_deviation


def conv(x, kernel, stride=1, padding=0):
    """[B, C, H, W] by [O, C, k, k], in float64."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], (2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bchwij,ocij->bohw", windows, kernel)


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def moved(module):
    """State in float64, after every parameter is moved off its initial value."""
    with torch.no_grad():
        for x in module.parameters():
            x += 0.1 * torch.randn_like(x)
    return {name: x.double().numpy() for name, x in module.state_dict().items()}


def close(ours, expected, atol=1e-5):
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=ours.dtype), rtol=1e-5, atol=atol)


@torch.no_grad()
def test_the_patch_discriminator_is_its_layers_one_by_one():
    discriminator = PatchDiscriminator(channels=4, layers=2).train()
    pixels = torch.rand(3, 3, 24, 20) * 2 - 1
    w = moved(discriminator)
    x = leaky(conv(pixels.double().numpy(), w["layers.0.weight"], 2, 1) + w["layers.0.bias"][:, None, None])
    for i, stride in ((2, 2), (5, 1)):
        x = conv(x, w[f"layers.{i}.weight"], stride, 1)
        mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
        x = (x - mean) / np.sqrt(variance + 1e-5)
        x = leaky(x * w[f"layers.{i + 1}.weight"][:, None, None] + w[f"layers.{i + 1}.bias"][:, None, None])
    expected = conv(x, w["layers.8.weight"], 1, 1) + w["layers.8.bias"][:, None, None]
    close(discriminator(pixels), expected)


def test_vqgans_discriminator_has_the_published_layers_and_count():
    """pix2pix: 2.765 M with 3 channels in; taming's ``loss.discriminator.main`` has these indices."""
    discriminator = PatchDiscriminator()
    assert sum(x.numel() for x in discriminator.parameters()) == 2_765_633
    kinds = [type(x).__name__ for x in discriminator.layers]
    block = ["Conv2d", "BatchNorm2d", "LeakyReLU"]
    assert kinds == ["Conv2d", "LeakyReLU", *block * 3, "Conv2d"]
    convolutions = [x for x in discriminator.layers if isinstance(x, nn.Conv2d)]
    assert [(x.out_channels, x.stride[0], x.bias is not None) for x in convolutions] == [
        (64, 2, True),
        (128, 2, False),
        (256, 2, False),
        (512, 1, False),
        (1, 1, True),
    ]
    for x in convolutions:
        assert abs(x.weight.std() / 0.02 - 1) < 0.1
        assert abs(x.weight.mean()) < 1e-3
    gains = torch.cat([x.weight for x in discriminator.layers if isinstance(x, nn.BatchNorm2d)])
    assert abs(gains.mean() - 1) < 0.005
    assert abs(gains.std() / 0.02 - 1) < 0.1


def test_a_logit_sees_a_patch_of_70_pixels():
    discriminator = PatchDiscriminator(channels=2).eval()
    pixels = torch.rand(1, 3, 160, 160, requires_grad=True)
    discriminator(pixels)[0, 0, 8, 8].backward()
    seen = pixels.grad.abs().sum((0, 1))
    assert (seen.sum(0) > 0).sum() == 70
    assert (seen.sum(1) > 0).sum() == 70


def test_a_discriminator_grows_eightfold_at_most():
    widths = [x.out_channels for x in PatchDiscriminator(channels=2, layers=5).layers if isinstance(x, nn.Conv2d)]
    assert widths == [2, 4, 8, 16, 16, 16, 1]


def naive_blur(x, padding):
    taps = np.array([1, 3, 3, 1]) / 8
    kernel = np.zeros((x.shape[1], x.shape[1], 4, 4))
    for c in range(x.shape[1]):
        kernel[c, c] = np.outer(taps, taps)
    return conv(x, kernel, 1, padding)


def naive_deviation(x, size):
    out = np.zeros((len(x), 1, *x.shape[2:]))
    step = len(x) // size
    for i in range(len(x)):
        group = x[i % step :: step]
        assert len(group) == size
        out[i] = np.sqrt(((group - group.mean(0)) ** 2).mean(0) + 1e-8).mean()
    return out


@torch.no_grad()
def test_the_style_discriminator_is_its_layers_one_by_one():
    discriminator = StyleDiscriminator(size=16, capacity=64, max_channels=12)
    pixels = torch.rand(6, 3, 16, 16) * 2 - 1
    w = moved(discriminator)

    def equalized(name, x, stride=1, padding=0):
        kernel = w[f"{name}.weight"]
        return conv(x, kernel / np.sqrt(kernel[0].size), stride, padding)

    def active(name, x):
        return leaky(x + w[f"{name}.bias"].reshape(-1, *[1] * (x.ndim - 2))) * np.sqrt(2)

    x = active("from_pixels", equalized("from_pixels", pixels.double().numpy()))
    assert x.shape[1] == 4
    for i in range(2):
        block = f"blocks.{i}"
        h = active(f"{block}.conv1", equalized(f"{block}.conv1", x, 1, 1))
        h = active(f"{block}.conv2", equalized(f"{block}.conv2", naive_blur(h, 2), 2))
        x = (h + equalized(f"{block}.shortcut", naive_blur(x, 1), 2)) / np.sqrt(2)
    assert x.shape == (6, 12, 4, 4)
    x = np.concatenate([x, naive_deviation(x, 3)], 1)
    x = active("conv_out", equalized("conv_out", x, 1, 1)).reshape(6, -1)
    x = active("to_hidden", x @ w["to_hidden.weight"].T / np.sqrt(x.shape[1]))
    expected = x @ w["to_logit.weight"].T / np.sqrt(x.shape[1]) + w["to_logit.bias"]
    close(discriminator(pixels), expected)


@pytest.mark.parametrize(("size", "count"), [(256, 28_864_129), (1024, 29_012_513)])
def test_the_style_discriminator_has_the_published_number_of_parameters(size, count):
    """StyleGAN2, config F."""
    with torch.device("meta"):
        assert sum(x.numel() for x in StyleDiscriminator(size=size).parameters()) == count


@pytest.mark.parametrize("size", [8, 16, 64, 128])
def test_any_power_of_two_goes_through(size):
    discriminator = StyleDiscriminator(size=size, capacity=8 * size, max_channels=16)
    assert discriminator(torch.rand(2, 3, size, size)).shape == (2, 1)


def test_activations_neither_vanish_nor_explode_at_first():
    """What the scales are for: a logit of order 1 from noise of order 1, at any depth."""
    logits = StyleDiscriminator(size=128, capacity=2048, max_channels=64)(torch.randn(8, 3, 128, 128))
    assert 0.05 < logits.abs().mean() < 5


@pytest.mark.parametrize(("batch", "size"), [(1, 1), (4, 4), (5, 1), (6, 3), (8, 4)])
def test_the_deviation_is_of_groups_that_divide_the_batch(batch, size):
    x = torch.randn(batch, 3, 2, 2)
    close(minibatch_deviation(x, 4), naive_deviation(x.double().numpy(), size))
    close(minibatch_deviation(x, batch), naive_deviation(x.double().numpy(), batch))


def test_blur_keeps_flat_regions_and_each_channel_to_itself():
    x = torch.randn(2, 3, 6, 9)
    close(blur(x, 2), naive_blur(x.double().numpy(), 2))
    torch.testing.assert_close(blur(torch.ones(1, 2, 5, 5), 0), torch.ones(1, 2, 2, 2))


@pytest.mark.parametrize(
    "discriminator",
    [
        lambda: PatchDiscriminator(channels=2, layers=1, in_channels=1),
        lambda: StyleDiscriminator(size=8, capacity=16, max_channels=3, in_channels=1),
    ],
    ids=["patch", "style"],
)
def test_second_derivatives_are_right(discriminator):
    """What the R1 penalty is made of."""
    network = discriminator().double()
    moved(network)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(network, (x,), nondet_tol=1e-9)


def test_refusals_say_what_was_expected():
    with pytest.raises(ConfigError, match=r"at least 24, got \(64, 23\)"):
        PatchDiscriminator(channels=2)(torch.rand(1, 3, 64, 23))
    for size in (4, 48, -8, 0):
        with pytest.raises(ConfigError, match=f"power of two, at least 8, got {size}"):
            StyleDiscriminator(size=size)
    with pytest.raises(ConfigError, match=r"16 x 16, got \(16, 32\)"):
        StyleDiscriminator(size=16, max_channels=2)(torch.rand(1, 3, 16, 32))


def test_the_smallest_image_gives_a_logit():
    for layers in (1, 2, 3):
        side = 3 << layers
        assert PatchDiscriminator(channels=2, layers=layers)(torch.rand(2, 3, side, side)).shape == (2, 1, 1, 1)
