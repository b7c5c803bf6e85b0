"""Our networks, with a publisher's weights under our names, give what the publisher's code gave."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from vqtok import VectorQuantizer
from vqtok.networks import VitDecoder, VitEncoder

FOLDER = Path(__file__).parents[1] / "golden" / "published" / "vit_vqgan"
SIZES = {"dim": 16, "width": 96, "depth": 2, "heads": 2, "mlp_width": 160, "patch": 8}
RENAMES = [
    (r"^encoder\.en_pos_embedding$", "encoder.positions.table"),
    (r"^decoder\.de_pos_embedding$", "decoder.positions.table"),
    (r"^encoder\.to_patch_embedding\.0\.", "encoder.from_pixels."),
    (r"^decoder\.to_pixel\.1\.", "decoder.to_pixels."),
    (r"^pre_quant\.", "encoder.to_latents."),
    (r"^post_quant\.", "decoder.from_latents."),
    (r"\.transformer\.layers\.(\d+)\.0\.norm\.", r".blocks.\1.norm1."),
    (r"\.transformer\.layers\.(\d+)\.0\.fn\.", r".blocks.\1.attention."),
    (r"\.transformer\.layers\.(\d+)\.1\.norm\.", r".blocks.\1.norm2."),
    (r"\.transformer\.layers\.(\d+)\.1\.fn\.net\.0\.", r".blocks.\1.mlp.to_hidden."),
    (r"\.transformer\.layers\.(\d+)\.1\.fn\.net\.2\.", r".blocks.\1.mlp.to_out."),
    (r"\.transformer\.norm\.", ".norm."),
    (r"^quantizer\.embedding\.weight$", "quantizer.codebook"),
]


def renamed(name: str) -> str:
    for pattern, ours in RENAMES:
        name = re.sub(pattern, ours, name)
    return name


@pytest.fixture(scope="module")
def parts():
    """Encoder, quantizer and decoder with the publisher's weights: every tensor has a place, and every place one."""
    stored = torch.load(FOLDER / "model.ckpt", weights_only=True)["state_dict"]
    weights = {renamed(name): x for name, x in stored.items() if not name.startswith("loss.")}
    for side in ("encoder", "decoder"):
        weights[f"{side}.positions.table"] = weights[f"{side}.positions.table"][0]
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
