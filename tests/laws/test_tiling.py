"""Laws of tiles: where networks are local, the whole image's codes and pixels; where not, a difference that is told."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vqtok
from vqtok.errors import ConfigError
from vqtok.networks import reach
from vqtok.tiling import Tiles
from vqtok.types import TokenGrid

PHOTO = Path(__file__).parents[2] / "examples/photo.jpg"


@pytest.fixture
def photo(photo_f8) -> torch.Tensor:
    return photo_f8.preprocess(np.asarray(Image.open(PHOTO).convert("RGB"))[:200, :330])


def test_windows_cover_each_position_once_and_see_their_halo():
    for size in range(1, 40):
        for tiles in (Tiles(1, 0), Tiles(4, 3), Tiles(7, 20), Tiles(64, 2)):
            windows = tiles.windows(size)
            assert [i for start, stop, _, _ in windows for i in range(start, stop)] == list(range(size))
            for start, stop, first, last in windows:
                assert first == max(0, start - tiles.halo)
                assert last == min(size, stop + tiles.halo) or stop == size == last


def support(network, x: torch.Tensor, at: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return top, bottom, left, right of what one output position depends on, by its gradient."""
    x = x.requires_grad_()
    network(x)[0, :, at[0], at[1]].sum().backward()
    rows, columns = x.grad.abs().sum((0, 1)).nonzero().T
    return int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())


@pytest.mark.parametrize("depth", [(0, 0), (1, 2), (0, 3, 1)])
def test_the_reach_of_local_networks_is_what_their_gradients_reach(depth):
    options = {"channels": (6,) * len(depth), "residual_blocks": depth, "dim": 3}
    encoder, decoder = vqtok.networks.SmallEncoder(**options), vqtok.networks.SmallDecoder(**options)
    for network in (encoder, decoder):
        for name, x in network.named_parameters():
            torch.nn.init.constant_(x, 0.01 if "weight" in name else 1.0)  # no ReLU is closed
    f, far = 2 ** len(depth), reach(encoder)
    size = 8 * f * (1 + -(-far // (4 * f)))
    middle = size // f // 2
    seen = (middle * f - far, middle * f + f - 1 + far)
    assert support(encoder, torch.ones(1, 3, size, size), (middle, middle)) == seen * 2
    found = [support(decoder, torch.ones(1, 3, 40, 40), (20 * f + i, 20 * f + i)) for i in range(f)]
    assert min(x[0] for x in found) == 20 - reach(decoder)
    assert max(x[1] for x in found) == 20 + reach(decoder)


@pytest.mark.parametrize("tile", [64, 72, 136])
def test_tiles_of_a_local_tokenizer_give_the_whole_images_tokens_and_pixels(photo_f8, photo, tile):
    assert not photo_f8.sees_everything
    whole = photo_f8.encode(photo)
    pixels = photo_f8.decode(whole)
    photo_f8.tile = tile
    try:
        ids, back = photo_f8.encode(photo).ids, photo_f8.decode(whole)
        assert photo_f8.record()["execution"]["tile"] == tile
    finally:
        photo_f8.tile = None
    assert torch.equal(ids, whole.ids)
    # A convolution's sums may be ordered by the size of its input.
    torch.testing.assert_close(back, pixels, rtol=0, atol=1e-5)
    assert "tile" not in photo_f8.record()["execution"]


def test_a_halo_too_small_is_seen(photo_f8, photo, monkeypatch):
    whole = photo_f8.encode(photo).ids
    monkeypatch.setattr(photo_f8.encoder, "reach", 0)
    monkeypatch.setattr(photo_f8, "tile", 64)
    ids = photo_f8.encode(photo).ids
    differs = (ids != whole)[0]
    assert differs.any()
    borders = torch.tensor([i % 8 in (0, 7) for i in range(differs.shape[1])])
    assert differs[:, borders].float().mean() > differs[:, ~borders].float().mean()


def test_tiles_do_not_depend_on_the_batch_and_small_images_stay_whole(photo_f8, photo, monkeypatch):
    monkeypatch.setattr(photo_f8, "tile", 64)
    both = torch.cat([photo, photo.flip(3)])
    ids = photo_f8.encode(both).ids
    assert torch.equal(photo_f8.encode(both[1:]).ids[0], ids[1])
    small = photo[..., :64, :64]
    tiled = photo_f8.encode(small).ids
    monkeypatch.setattr(photo_f8, "tile", None)
    assert torch.equal(photo_f8.encode(small).ids, tiled)


def test_a_tokenizer_that_sees_everything_says_so_and_its_difference_is_told(photo, monkeypatch):
    torch.manual_seed(0)
    tokenizer = vqtok.build("vqgan-f8-16384", channels=32, residual_blocks=1, vocab_size=256).eval()
    tokenizer.quantizer.codebook.data = torch.randn(256, 4) * tokenizer.latents(photo).std((0, 1, 2))
    assert tokenizer.sees_everything
    difference = tokenizer.tiling_difference(photo, tile=96)
    assert 0 < difference < 0.5
    whole = tokenizer.encode(photo).ids
    monkeypatch.setattr(tokenizer, "tile", 96)
    assert difference == pytest.approx((tokenizer.encode(photo).ids != whole).float().mean().item())


@pytest.mark.parametrize("tile", [0, 7, -8])
def test_tiles_smaller_than_a_token_are_refused(photo_f8, photo, tile, monkeypatch):
    monkeypatch.setattr(photo_f8, "tile", tile)
    with pytest.raises(ConfigError, match="at least 8 pixels"):
        photo_f8.encode(photo)
    with pytest.raises(ConfigError, match="at least 8 pixels"):
        photo_f8.decode(TokenGrid(torch.zeros(1, 9, 9, dtype=torch.int64), 8192))
