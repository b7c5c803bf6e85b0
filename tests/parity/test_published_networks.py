"""Our networks, with a publisher's weights under our names, give what the publisher's code gave."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vqtok import VectorQuantizer
from vqtok.adapters.rules import apply, changed
from vqtok.adapters.vit_vqgan import RULES
from vqtok.networks import VitDecoder, VitEncoder

FOLDER = Path(__file__).parents[1] / "golden" / "published" / "vit_vqgan"
SIZES = {"dim": 16, "width": 96, "depth": 2, "heads": 2, "mlp_width": 160, "patch": 8}


@pytest.fixture(scope="module")
def parts():
    """Encoder, quantizer and decoder with the publisher's weights: every tensor has a place, and every place one."""
    stored = torch.load(FOLDER / "model.ckpt", weights_only=True)["state_dict"]
    found = apply(RULES, {name: tuple(x.shape) for name, x in stored.items()})
    assert found.leftovers == ()
    weights = {name: changed(stored[source.name], source.change) for name, source in found.tensors.items()}
    parts = torch.nn.ModuleDict(
        {
            "encoder": VitEncoder(**SIZES, positions="stored", grid=(8, 8)),
            "quantizer": VectorQuantizer(dim=16, vocab_size=512, metric="cosine"),
            "decoder": VitDecoder(**SIZES, positions="stored", grid=(8, 8)),
        }
    )
    parts.load_state_dict(weights, strict=True)
    return parts.eval()


@pytest.fixture(scope="module")
def numbers():
    return {name: torch.from_numpy(x) for name, x in np.load(FOLDER / "expected.npz").items()}


@torch.no_grad()
def test_vit_vqgan_gives_the_published_latents_and_codes(parts, numbers):
    pixels = torch.from_numpy(np.load(FOLDER / "input.npy"))
    latents = parts["encoder"](pixels).permute(0, 2, 3, 1)
    # Ten times what the publisher's own code moves between ways to compute it.
    torch.testing.assert_close(latents.flatten(1, 2), numbers["latents"], rtol=0, atol=7.2e-5)
    assert torch.equal(parts["quantizer"].encode(latents), numbers["indices"])


@torch.no_grad()
def test_vit_vqgan_decodes_the_published_codes_to_the_published_pixels(parts, numbers):
    vectors = parts["quantizer"].decode(numbers["indices"])
    torch.testing.assert_close(vectors.flatten(1, 2), numbers["quantized"], rtol=0, atol=4.9e-6)
    pixels = parts["decoder"](vectors.permute(0, 3, 1, 2))
    torch.testing.assert_close(pixels, numbers["decoded"], rtol=0, atol=5.2e-6)
