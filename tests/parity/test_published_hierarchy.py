"""VQ-VAE-2 and the dVAE give what the publishers' code gave with the same weights (tests/golden/published)."""

import re
from pathlib import Path

import numpy as np
import torch

from vqtok import VectorQuantizer
from vqtok.hierarchy import HierarchicalTokenizer
from vqtok.images import PreprocessSpec
from vqtok.networks import DvaeDecoder, DvaeEncoder, Vqvae2Network
from vqtok.quantizers import Quantizer
from vqtok.quantizers.levels import LevelsQuantizer, unpack_levels
from vqtok.tokenizer import Tokenizer
from vqtok.types import Quantized, TokenGrid

PUBLISHED = Path(__file__).parents[1] / "golden" / "published"


def numbers(case: str) -> dict[str, torch.Tensor]:
    arrays = {key: torch.from_numpy(x) for key, x in np.load(PUBLISHED / case / "expected.npz").items()}
    return arrays | {"input": torch.from_numpy(np.load(PUBLISHED / case / "input.npy"))}


def weights(file: str) -> dict[str, torch.Tensor]:
    return torch.load(PUBLISHED / file, weights_only=True)


def renamed(state: dict[str, torch.Tensor], rules: dict[str, str]) -> dict[str, torch.Tensor]:
    found = {}
    for key, x in state.items():
        for pattern, replacement in rules.items():
            key = re.sub(pattern, replacement, key)
        found[key] = x
    return found


# The publisher counts layers through a stack; here residual blocks are a stack of their own within it.
VQVAE2 = {
    r"^enc_b\.blocks\.([024])\.": r"encode_bottom.\1.",
    r"^enc_b\.blocks\.([56])\.": lambda m: f"encode_bottom.5.{int(m[1]) - 5}.",
    r"^enc_t\.blocks\.([02])\.": r"encode_top.\1.",
    r"^enc_t\.blocks\.([34])\.": lambda m: f"encode_top.3.{int(m[1]) - 3}.",
    r"^dec_t\.blocks\.0\.": "decode_top.0.",
    r"^dec_t\.blocks\.([12])\.": lambda m: f"decode_top.1.{int(m[1]) - 1}.",
    r"^dec_t\.blocks\.4\.": "decode_top.2.",
    r"^dec\.blocks\.0\.": "decode_both.0.",
    r"^dec\.blocks\.([12])\.": lambda m: f"decode_both.1.{int(m[1]) - 1}.",
    r"^dec\.blocks\.4\.": "decode_both.2.",
    r"^dec\.blocks\.6\.": "decode_both.4.",
    r"\.conv\.1\.": ".conv3.",
    r"\.conv\.3\.": ".conv1.",
    r"^quantize_conv_t\.": "to_top.",
    r"^quantize_conv_b\.": "to_bottom.",
    r"^upsample_t\.": "upsample_top.",
}


def vqvae2() -> HierarchicalTokenizer:
    state = weights("vqvae2/vqvae.pt")
    network = Vqvae2Network(channels=48, residual_blocks=2, residual_channels=16, dim=24)
    own = {key: x for key, x in state.items() if not key.startswith(("quantize_t.", "quantize_b."))}
    network.load_state_dict(renamed(own, VQVAE2))
    levels = []
    for name in ("quantize_t", "quantize_b"):
        levels.append(VectorQuantizer(dim=24, vocab_size=256))
        levels[-1].codebook.data = state[f"{name}.embed"].T.contiguous()
    return HierarchicalTokenizer(network, LevelsQuantizer(*levels), PreprocessSpec(multiple=8)).eval()


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)


def test_vqvae2_has_the_published_codes_latents_and_pixels():
    """Tolerances are ten times what the publisher's own code moves between execution paths."""
    tokenizer, data = vqvae2(), numbers("vqvae2")
    ids = tokenizer.encode(data["input"]).ids
    levels = unpack_levels(ids, 2)
    assert torch.equal(levels.top, data["indices"])
    assert torch.equal(levels.bottom, data["indices_b"])
    with torch.no_grad():
        latents = unpack_levels(tokenizer.latents(data["input"]).unflatten(3, (5, 24)), 2)
        vectors = unpack_levels(tokenizer.quantizer.decode(ids).unflatten(3, (5, 24)), 2)
    torch.testing.assert_close(latents.top, channels_last(data["latents_t"]), rtol=0, atol=1.2e-4)
    torch.testing.assert_close(latents.bottom, channels_last(data["latents_b"]), rtol=0, atol=6e-5)
    torch.testing.assert_close(vectors.top, channels_last(data["quantized_t"]), rtol=0, atol=0)
    torch.testing.assert_close(vectors.bottom, channels_last(data["quantized_b"]), rtol=0, atol=0)
    decoded = tokenizer.decode(TokenGrid(ids, 256))
    torch.testing.assert_close(decoded, data["decoded"], rtol=0, atol=1.2e-5)


DVAE = {
    r"\.w$": ".weight",
    r"\.b$": ".bias",
    r"^blocks\.input\.": "conv_in.",
    r"^blocks\.output\.conv\.": "conv_out.",
    r"^blocks\.group_(\d)\.block_(\d)\.": lambda m: f"groups.{int(m[1]) - 1}.{int(m[2]) - 1}.",
    r"\.id_path\.": ".shortcut.",
    r"\.res_path\.conv_(\d)\.": lambda m: f".convs.{int(m[1]) - 1}.",
}


class Argmax(Quantizer):
    """Codes are the largest logits; vectors are rows of a codebook."""

    def __init__(self, codebook: torch.Tensor) -> None:
        super().__init__()
        self.codebook = torch.nn.Parameter(codebook)
        self.vocab_size, self.dim = codebook.shape
        self.latent_dim = self.vocab_size

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.argmax(dim=-1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.codebook[codes]

    def forward(self, latents: torch.Tensor) -> Quantized:
        codes = self.encode(latents)
        return Quantized(self.decode(codes), codes, {})


def dvae() -> Tokenizer:
    options = {"channels": 12, "multipliers": (1, 2, 4, 8), "residual_blocks": 2}
    encoder = DvaeEncoder(**options, dim=256)
    encoder.load_state_dict(renamed(weights("openai_dvae/encoder_state_dict.pt"), DVAE))
    state = renamed(weights("openai_dvae/decoder_state_dict.pt"), DVAE)
    codebook = state.pop("conv_in.weight")[:, :, 0, 0].T  # the publisher's first convolution, of a one-hot map
    state["bias"] = state.pop("conv_in.bias")
    decoder = DvaeDecoder(**options, dim=24)
    decoder.load_state_dict(state)
    spec = PreprocessSpec(multiple=8, low=0.1, high=0.9)
    return Tokenizer(encoder, Argmax(codebook.contiguous()), decoder, spec, output="logit-laplace").eval()


def test_the_dvae_has_the_published_logits_codes_and_pixels():
    tokenizer, data = dvae(), numbers("openai_dvae")
    with torch.no_grad():
        logits = tokenizer.latents(data["input"])
        out = tokenizer(data["input"])
    grid = tokenizer.encode(data["input"])
    assert torch.equal(grid.ids, data["indices"])
    torch.testing.assert_close(logits, channels_last(data["logits"]), rtol=0, atol=8.8e-4)
    decoded = torch.cat([out.statistics["mean"], out.statistics["log_scale"]], dim=1)
    torch.testing.assert_close(decoded, data["decoded"], rtol=0, atol=7.4e-5)
    pixels = (tokenizer.decode(grid) - 0.1) / 0.8  # from the model's own range 0.1..0.9
    torch.testing.assert_close(pixels.clamp(0, 1), data["decoded_pixels"], rtol=0, atol=1.3e-5)
