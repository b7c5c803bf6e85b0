"""The networks of LaVIT's dynamic tokenizer, with the publisher's weights, give what the publisher's code gave.

Tolerances are ten times what that code itself moves between ways to compute it. Codes must all be equal.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from vqtok import VectorQuantizer, ops
from vqtok.dynamic import DynamicTokenizer
from vqtok.images import PreprocessSpec
from vqtok.networks import EvaVit, FeatureDecoder, Merger, Selector
from vqtok.networks.transformer import Mlp

FOLDER = Path(__file__).parents[1] / "golden" / "published" / "lavit_dynamic"
SIZES = {"width": 64, "depth": 2, "heads": 4, "mlp_width": 279}
ATTENTION = [
    (r"\.(token_causal_attn|self_attn|attn)\.qkv\.", ".attention.to_qkv."),
    (r"\.(token_causal_attn|self_attn|attn)\.proj\.", ".attention.to_out."),
    (r"\.attn\.([qv]_bias)$", r".attention.\1"),
    (r"\.(?:token_)?cross_attn\.([qkv])(?:uery|ey|alue)\.", r".cross_attention.to_\1."),
    (r"\.(?:token_)?cross_attn\.proj\.", ".cross_attention.to_out."),
    (r"\.mlp\.fc1\.", ".mlp.to_hidden."),
    (r"\.mlp\.fc2\.", ".mlp.to_out."),
]
FEATURES = [(r"^cls_token$", "class_token"), (r"^pos_embed$", "positions"), (r"^patch_embed\.proj\.", "from_pixels.")]
TOKENIZER = [
    (r"^token_predictor\.in_conv\.0\.", "selector.norm."),
    (r"^token_predictor\.in_conv\.1\.", "selector.from_features."),
    (r"^token_predictor\.out_conv\.0\.", "selector.to_half."),
    (r"^token_predictor\.out_conv\.2\.", "selector.to_quarter."),
    (r"^token_predictor\.out_conv\.4\.", "selector.to_scores."),
    (r"^causal_encoder\.ln_vision\.", "merger.context_norm."),
    (r"^causal_encoder\.", "merger."),
    (r"^encode_task_layer\.0\.", "projection.to_hidden."),
    (r"^encode_task_layer\.2\.", "projection.to_out."),
    (r"^quantize\.embedding\.weight$", "quantizer.codebook"),
]
DECODER = [
    (r"^in_proj\.", "from_vectors."),
    (r"^pos_embed$", "positions"),
    (r"^query_embed$", "queries"),
    (r"^decode_task_layer\.0\.", "to_features.to_hidden."),
    (r"^decode_task_layer\.2\.", "to_features.to_out."),
]
# What follows the tokenizer in the publisher's files: heads of EVA's classifier, of the language model and the U-Net.
BEYOND = ("head.", "vit_proj.", "unet_proj.")


def weights(name, renames, beyond=BEYOND):
    """The publisher's tensors under our names; a tensor without a rename keeps its own."""
    found = {}
    for key, x in torch.load(FOLDER / f"{name}.bin", weights_only=True).items():
        if not key.startswith(beyond):
            for pattern, ours in [*renames, *ATTENTION]:
                key = re.sub(pattern, ours, key)
            found[key] = x
    return found


@pytest.fixture(scope="module")
def parts():
    """All networks, strictly loaded: every tensor has a place, and every place one."""
    vit = EvaVit(image_size=112, patch=14, **SIZES)
    vit.load_state_dict(weights("eva_vitg_psz14", FEATURES, (*BEYOND, "norm.")), strict=True)
    parts = torch.nn.ModuleDict(
        {
            "selector": Selector(64),
            "merger": Merger(**SIZES),
            "projection": Mlp(64, 64, "tanh", 16),
            "quantizer": VectorQuantizer(dim=16, vocab_size=256),
        }
    )
    parts.load_state_dict(weights("tokenizer_encoder", TOKENIZER), strict=True)
    decoder = FeatureDecoder(dim=16, positions=64, **SIZES)
    tables = weights("tokenizer_decoder", DECODER)
    decoder.load_state_dict({k: x[0] if k in ("positions", "queries") else x for k, x in tables.items()}, strict=True)
    return parts.update({"features": vit, "decoder": decoder}) or parts.eval()


@pytest.fixture(scope="module")
def numbers():
    return {name: torch.from_numpy(x) for name, x in np.load(FOLDER / "expected.npz").items()}


def close(a, b, atol):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def codes(parts, merged):
    return parts["quantizer"].encode(ops.normalize_latents(parts["projection"](merged)))


# The publisher's attention adds 1e-6 to weights that were scaled by the greatest score of all positions, kept or not: a
# little of what a query may not see leaks in, more where its own scores are low. A sequence without the dropped tokens
# has nothing to leak. Merged vectors (deviation 1) then differ by at most this; no code does.
LEAK = 2e-4


@torch.no_grad()
def test_lavit_features_and_selection_are_the_published_ones(parts, numbers):
    features = parts["features"](torch.from_numpy(np.load(FOLDER / "input.npy")))
    close(features, numbers["features"], 7.6e-5)
    scores = parts["selector"](features)
    close(scores, numbers["selector_log_probs"], 8e-5)
    assert torch.equal(scores[..., 0] >= scores[..., 1], numbers["keep_mask"].flatten(1))


@torch.no_grad()
def test_a_policy_of_ones_is_the_selectors_mean(parts, numbers):
    scores = parts["selector"](numbers["features"], torch.ones(4, 64))
    close(scores, numbers["selector_log_probs"], 8e-5)


@torch.no_grad()
def test_lavit_merges_and_quantizes_ragged_runs_as_published(parts, numbers):
    keep = numbers["keep_mask"].flatten(1)
    merged, lengths = parts["merger"](numbers["features"], keep)
    assert torch.equal(lengths, numbers["token_counts"])
    close(merged, numbers["merged_features"][keep], LEAK)
    close(parts["projection"](numbers["merged_features"][keep]), numbers["latents"], 1.8e-4)
    assert torch.equal(codes(parts, merged), numbers["indices"].flatten(1)[keep])
    close(parts["quantizer"].decode(codes(parts, merged)), numbers["quantized"], 4.8e-6)


@torch.no_grad()
@pytest.mark.parametrize(
    ("keep", "merged", "codes_of", "atol"),
    [
        ("keep_mask", "merged_features", "indices", 5.5e-5),
        ("keepall", "keepall_merged", "indices_keepall", 4.1e-5),
        ("mask3_keep", "mask3_merged", "indices_mask3", 4.8e-5),
    ],
)
def test_lavit_with_the_publishers_leak_merges_exactly_as_published(parts, numbers, keep, merged, codes_of, atol):
    leaky = Merger(**SIZES, leak=1e-6).eval()
    leaky.load_state_dict(parts["merger"].state_dict())
    keep = numbers[keep].flatten(1) if keep in numbers else torch.ones(1, 64, dtype=torch.bool)
    features = numbers["features"][: len(keep)]
    found, lengths = leaky(features, keep)
    assert torch.equal(lengths, keep.sum(dim=1))
    close(found, numbers[merged][keep], atol)
    close(leaky.forward_dense(features, keep.float()), numbers[merged], atol)
    close(parts["projection"](found), parts["projection"](numbers[merged][keep]), 1.8e-4)
    expected = numbers[codes_of].flatten(1)[keep] if codes_of == "indices" else numbers[codes_of]
    assert torch.equal(codes(parts, found), expected)


@torch.no_grad()
@pytest.mark.parametrize("case", ["keepall", "mask3"])
def test_lavit_merges_other_selections_as_published(parts, numbers, case):
    keep = torch.ones(1, 64, dtype=torch.bool) if case == "keepall" else numbers["mask3_keep"]
    merged, _ = parts["merger"](numbers["features"][:1], keep)
    expected = numbers[f"{case}_merged"][keep]
    close(merged, expected, LEAK)
    close(parts["merger"].forward_dense(numbers["features"][:1], keep.float())[keep], merged, 2e-5)
    assert torch.equal(codes(parts, merged), numbers[f"indices_{case}"])


@torch.no_grad()
def test_lavit_decodes_ragged_runs_to_the_published_features(parts, numbers):
    close(parts["decoder"](numbers["quantized"], numbers["token_counts"]), numbers["decoded"], 1.3e-5)
    ids = numbers["indices_keepall"]
    vectors = parts["quantizer"].decode(torch.cat([ids, ids[:32]]))
    lengths, expected = torch.tensor([64, 32]), numbers["decode_keepall_and_half"]
    close(parts["decoder"](vectors, lengths), expected, 1.3e-5)
    close(parts["decoder"](vectors, lengths, torch.ones(96)), expected, 1.3e-5)


def test_the_whole_tokenizer_gives_the_published_tokens_and_features(parts, numbers):
    spec = PreprocessSpec(resize="center", size=112, multiple=14)
    networks = [parts[name] for name in ("features", "selector", "merger", "projection", "quantizer", "decoder")]
    tokenizer = DynamicTokenizer(*networks, None, spec).eval()
    pixels = torch.from_numpy(np.load(FOLDER / "input.npy"))
    keep = numbers["keep_mask"].flatten(1)
    assert torch.equal(tokenizer.select(pixels).keep, keep)
    tokens = tokenizer.encode(pixels)
    assert torch.equal(tokens.lengths, numbers["token_counts"])
    assert torch.equal(tokens.ids, numbers["indices"].flatten(1)[keep])
    close(tokenizer.decode_features(tokens), numbers["decoded"], 1.3e-5)


def test_lavit_at_its_full_size_has_the_published_tensors_and_parameters():
    sizes = {"width": 1408, "depth": 12, "heads": 16, "mlp_width": 6144}
    with torch.device("meta"):
        parts = [Selector(1408), Merger(**sizes), Mlp(1408, 1408, "tanh", 32), torch.nn.Linear(1408, 4096)]
        codebook = torch.empty(16384, 32)
    tensors = [codebook, *(x for part in parts for x in part.parameters())]
    # Selector, merger, projection and codebook, and the linear layer into the language model, which is not ours.
    assert len(tensors) == 285
    assert round(sum(x.numel() for x in tensors) / 1e6, 1) == 409.8
