"""LaVIT: our parts, with a publisher's weights under our names, give what the publisher's code gave.

Tolerances are ten times what the publisher's own code moves between ways to compute the same. That code computes
dropped patches too, which nobody reads: only kept ones are compared.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from vqtok import VectorQuantizer, images, ops
from vqtok.dynamic import DynamicTokenizer
from vqtok.images import PreprocessSpec
from vqtok.networks import EvaVit, FeatureDecoder, TokenMerger, TokenSelector
from vqtok.networks.transformer import Mlp

FOLDER = Path(__file__).parents[1] / "golden" / "published" / "lavit_dynamic"
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
SPEC = PreprocessSpec(resize="stretch", size=112, multiple=14, low=0.0, high=1.0, **CLIP)
SIZES = {"width": 64, "depth": 2, "heads": 4, "mlp_width": 279}

# Not computed by any tokenizer: the teacher's classifier, and projections into a language model and a diffusion model.
OUTSIDE = r"^(eva\.norm|eva\.head|tok\.vit_proj|dec\.unet_proj)\."
RENAMES = [
    (r"^eva\.cls_token$", "features.class_token"),
    (r"^eva\.pos_embed$", "features.positions"),
    (r"^eva\.patch_embed\.proj\.", "features.from_pixels."),
    (r"^eva\.", "features."),
    (r"^tok\.token_predictor\.in_conv\.0\.", "selector.norm."),
    (r"^tok\.token_predictor\.in_conv\.1\.", "selector.to_hidden."),
    (r"^tok\.token_predictor\.out_conv\.", "selector.head."),
    (r"^tok\.causal_encoder\.ln_vision\.", "merger.context_norm."),
    (r"^tok\.causal_encoder\.", "merger."),
    (r"^tok\.encode_task_layer\.0\.", "projection.to_hidden."),
    (r"^tok\.encode_task_layer\.2\.", "projection.to_out."),
    (r"^tok\.quantize\.embedding\.weight$", "quantizer.codebook"),
    (r"^dec\.pos_embed$", "decoder.positions"),
    (r"^dec\.query_embed$", "decoder.queries"),
    (r"^dec\.in_proj\.", "decoder.from_vectors."),
    (r"^dec\.decode_task_layer\.0\.", "decoder.to_features.to_hidden."),
    (r"^dec\.decode_task_layer\.2\.", "decoder.to_features.to_out."),
    (r"^dec\.", "decoder."),
    (r"\.norm2\.", ".norm3."),
    (r"\.norm1\.", ".norm2."),
    (r"\.norm0\.", ".norm1."),
    (r"^features\.blocks\.(\d+)\.norm2\.", r"features.blocks.\1.norm1."),  # the teacher has two norms and counts from 1
    (r"^features\.blocks\.(\d+)\.norm3\.", r"features.blocks.\1.norm2."),
    (r"\.attn\.", ".attention."),
    (r"\.(token_causal_attn|self_attn)\.", ".self_attention."),
    (r"\.(token_cross_attn|cross_attn)\.", ".cross_attention."),
    (r"\.qkv\.", ".to_qkv."),
    (r"\.query\.", ".to_q."),
    (r"\.key\.", ".to_k."),
    (r"\.value\.", ".to_v."),
    (r"\.proj\.", ".to_out."),
    (r"\.mlp\.fc1\.", ".mlp.to_hidden."),
    (r"\.mlp\.fc2\.", ".mlp.to_out."),
]
FILES = {"eva": "eva_vitg_psz14.bin", "tok": "tokenizer_encoder.bin", "dec": "tokenizer_decoder.bin"}


def published_weights():
    weights = {}
    for prefix, file in FILES.items():
        for name, x in torch.load(FOLDER / file, weights_only=True).items():
            name = f"{prefix}.{name}"
            if re.search(OUTSIDE, name):
                continue
            for pattern, ours in RENAMES:
                name = re.sub(pattern, ours, name)
            tables = ("features.class_token", "features.positions", "decoder.positions", "decoder.queries")
            weights[name] = x.flatten(0, -2).squeeze(0) if name in tables else x
    return weights


@pytest.fixture(scope="module")
def parts():
    """All parts with the publisher's weights: every tensor has a place, and every place one."""
    parts = torch.nn.ModuleDict(
        {
            "features": EvaVit(**SIZES, patch=14, grid=(8, 8)),
            "selector": TokenSelector(64),
            "merger": TokenMerger(**SIZES, epsilon=1e-6),
            "projection": Mlp(64, 64, "tanh", out_dim=16),
            "quantizer": VectorQuantizer(16, 256, unit_latents=True),
            "decoder": FeatureDecoder(dim=16, **SIZES, grid=(8, 8)),
        }
    )
    parts.load_state_dict(published_weights(), strict=True)
    return parts.eval()


@pytest.fixture(scope="module")
def numbers():
    return {name: torch.from_numpy(x) for name, x in np.load(FOLDER / "expected.npz").items()}


@pytest.fixture(scope="module")
def pixels():
    arrays = [images.to_rgb(FOLDER / f"image_{i}.png", SPEC) for i in range(4)]
    return torch.from_numpy(np.stack([images.to_pixels(array, SPEC) for array in arrays]))


def close(ours, published, atol):
    torch.testing.assert_close(ours, published, rtol=0, atol=atol)


def keep_of(numbers):
    return numbers["keep_mask"].flatten(1)


@torch.no_grad()
def test_the_teacher_gives_the_published_features(parts, numbers, pixels):
    close(parts["features"](pixels), numbers["features"], 7.6e-5)


@torch.no_grad()
def test_the_selector_gives_the_published_probabilities_and_choice(parts, numbers):
    found = parts["selector"](numbers["features"])
    close(found, numbers["selector_log_probs"], 8e-5)
    assert torch.equal(found[..., 0] >= found[..., 1], keep_of(numbers))


@torch.no_grad()
def test_the_merger_gives_the_published_vectors_of_kept_patches(parts, numbers):
    keep = keep_of(numbers)
    assert sorted(keep.sum(1).tolist()) == [30, 31, 41, 42]
    close(parts["merger"](numbers["features"], keep), numbers["merged_features"][keep], 5.5e-5)


@torch.no_grad()
def test_without_what_the_publishers_softmax_adds_vectors_move_little_and_codes_not_at_all(parts, numbers):
    """Kept patches then need no dropped ones computed: this is how models of our own merge."""
    ragged, keep = TokenMerger(**SIZES).eval(), keep_of(numbers)
    ragged.load_state_dict(parts["merger"].state_dict())
    merged = ragged(numbers["features"], keep)
    close(merged, numbers["merged_features"][keep], 2e-4)
    assert torch.equal(parts["quantizer"].encode(parts["projection"](merged)), numbers["indices"].flatten(1)[keep])
    with pytest.raises(AssertionError):
        close(merged, numbers["merged_features"][keep], 5.5e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["keepall", "mask3"])
def test_merging_all_and_two_thirds_gives_the_published_vectors_and_codes(name, parts, numbers):
    keep = numbers["mask3_keep"] if name == "mask3" else torch.ones(1, 64, dtype=torch.bool)
    merged = parts["merger"](numbers["features"][:1], keep)
    close(merged, numbers[f"{name}_merged"][keep], {"keepall": 4.1e-5, "mask3": 4.8e-5}[name])
    codes = parts["quantizer"].encode(parts["projection"](merged))
    assert torch.equal(codes, numbers[f"indices_{name}"])


@torch.no_grad()
def test_training_merges_to_the_published_vectors_too(parts, numbers):
    keep = keep_of(numbers)
    dense = parts["merger"].dense(numbers["features"], keep.float())
    close(dense[keep], numbers["merged_features"][keep], 5.5e-5)
    every = parts["merger"].dense(numbers["features"][:1], torch.ones(1, 64))
    close(every, numbers["keepall_merged"], 4.1e-5)


@torch.no_grad()
def test_codes_and_vectors_are_the_published_ones(parts, numbers):
    latents = parts["projection"](numbers["merged_features"][keep_of(numbers)])
    close(latents, numbers["latents"], 1.8e-4)
    codes = parts["quantizer"].encode(latents)
    assert torch.equal(codes, numbers["indices"].flatten(1)[keep_of(numbers)])
    close(parts["quantizer"].decode(codes), numbers["quantized"], 4.8e-6)


@torch.no_grad()
def test_the_decoder_gives_the_published_features(parts, numbers):
    close(parts["decoder"](numbers["quantized"], numbers["token_counts"]), numbers["decoded"], 1.3e-5)


@torch.no_grad()
def test_the_decoder_gives_the_published_features_of_runs_of_different_lengths(parts, numbers):
    codes = numbers["indices_keepall"]
    vectors = parts["quantizer"].decode(torch.cat([codes, codes[:32]]))
    decoded = parts["decoder"](vectors, torch.tensor([64, 32]))
    close(decoded, numbers["decode_keepall_and_half"], 1.3e-5)


def test_the_whole_way_from_pictures_and_back_gives_the_published_numbers(parts, numbers, pixels):
    tokenizer = DynamicTokenizer(**{str(name): part for name, part in parts.items()}, preprocess=SPEC)
    tokens = tokenizer.encode(pixels)
    assert torch.equal(tokens.lengths, numbers["token_counts"])
    assert torch.equal(tokens.ids, ops.compact(numbers["indices"].flatten(1), keep_of(numbers))[0])
    close(tokenizer.latents(pixels), numbers["latents"], 1.8e-4)
    close(tokenizer.decode_features(tokens), numbers["decoded"], 1.3e-5)
    rows = tokenizer.tokenize([FOLDER / f"image_{i}.png" for i in range(4)])
    assert np.array_equal(rows.ids, tokens.ids.numpy())
    assert np.array_equal(rows.keep.reshape(4, 8, 8), numbers["keep_mask"].numpy())
