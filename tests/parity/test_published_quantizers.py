"""Our quantizers give what the publishers' code gave on the same inputs (tests/golden/published/quantizers).

Tolerances are ten times the noise that the publisher's own code has under reordered sums. Where a publisher's loss is
ours with weights, the weights are written here.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vqtok import EmaQuantizer, VectorQuantizer
from vqtok.quantizers import (
    BinarySphericalQuantizer,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    IndexBackpropagationQuantizer,
    LookupFreeQuantizer,
    ResidualQuantizer,
    SimQuantizer,
)

PUBLISHED = Path(__file__).parents[1] / "golden" / "published" / "quantizers"


def numbers(name: str) -> dict[str, Tensor]:
    return {key: torch.from_numpy(x) for key, x in np.load(PUBLISHED / f"{name}.npz").items()}


def near(found: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def test_every_published_case_has_a_test():
    source = Path(__file__).read_text()
    assert [path.stem for path in PUBLISHED.glob("*.npz") if f'"{path.stem}"' not in source] == []


@pytest.mark.parametrize(
    ("case", "atols"),
    [
        ("rosinality_ema", {"embed": 2.9e-5, "embed_avg": 7.6e-5, "cluster_size": 2.4e-5}),
        # From sizes of 0 a first step multiplies codes by about 99 over their count: few codes are left then.
        ("rosinality_ema_cold", {"embed": 1.5e-3, "embed_avg": 1.7e-5, "cluster_size": 1.5e-5, "train_diff": 7.6e-5}),
    ],
)
def test_ema_is_rosinalitys(case, atols):
    """decay 0.99, epsilon 1e-5; the publisher keeps the codebook transposed, [D, K]."""
    data = numbers(case)
    quantizer = EmaQuantizer(dim=16, vocab_size=64, decay=0.99, epsilon=1e-5).train()
    quantizer.codebook = data["in_embed_init"].T.contiguous()
    quantizer.cluster_sum = data.get("in_embed_avg_init", data["in_embed_init"]).T.contiguous()
    quantizer.cluster_size = data.get("in_cluster_size_init", torch.zeros(64))
    for i, batch in enumerate(data["in_batches"]):
        out = quantizer(batch)
        assert torch.equal(out.codes, data[f"out_train_indices_{i}"]), i
        near(out.losses["commitment"], data[f"out_train_diff_{i}"], atols.get("train_diff", 2e-6))
    near(quantizer.codebook, data["out_embed"].T, atols["embed"])
    near(quantizer.cluster_sum, data["out_embed_avg"].T, atols["embed_avg"])
    near(quantizer.cluster_size, data["out_cluster_size"], atols["cluster_size"])


def ema(data: dict[str, Tensor], level: int, **options) -> EmaQuantizer:
    """vector-quantize-pytorch's initial state: sizes of 1 and sums that are the codebook."""
    codebook = data["in_embed_init"][level]
    quantizer = EmaQuantizer(codebook.shape[1], codebook.shape[0], **options)
    quantizer.codebook = codebook.clone()
    quantizer.adopt_codebook()
    return quantizer


@pytest.mark.parametrize(
    ("case", "options", "atols"),
    [
        (
            "vq_l2_ema",
            {"decay": 0.8},
            {"vectors": 1.9e-5, "embed": 1.4e-5, "embed_avg": 2.9e-5, "cluster_size": 1.1e-5},
        ),
        (
            "vq_cosine_ema",
            {"decay": 0.8, "metric": "cosine"},
            {"vectors": 4.2e-6, "embed": 2.4e-6, "embed_avg": 5.1e-6, "cluster_size": 1.1e-5},
        ),
        (
            "vq_projected_ema",
            {"decay": 0.7},
            {"vectors": 1.8e-5, "embed": 7.2e-6, "embed_avg": 4.8e-5, "cluster_size": 2.6e-5},
        ),
    ],
)
def test_ema_is_vector_quantize_pytorchs(case, options, atols):
    """Loss: commitment, weight 1. With projections, plain linear layers stand around the quantizer."""
    data = numbers(case)
    quantizer = ema(data, 0, **options).train()
    sizes = data.get("in_cluster_size_init", torch.ones(1, quantizer.vocab_size))[0]
    quantizer.cluster_size, quantizer.cluster_sum = sizes, sizes[:, None] * quantizer.codebook
    for i, batch in enumerate(data["in_batches"]):
        out = quantizer(projected(data, "in", batch))
        assert torch.equal(out.codes, data[f"out_train_indices_{i}"]), i
        near(out.losses["commitment"], data[f"out_train_loss_{i}"], 2e-6)
        near(projected(data, "out", out.vectors), data[f"out_train_quantized_{i}"], atols["vectors"])
    near(quantizer.codebook, data["out_embed"][0], atols["embed"])
    near(quantizer.cluster_sum, data["out_embed_avg"][0], atols["embed_avg"])
    near(quantizer.cluster_size, data["out_cluster_size"][0], atols["cluster_size"])
    codes = quantizer.eval().encode(projected(data, "in", data["in_eval_batch"]))
    assert torch.equal(codes, data["out_eval_indices"])
    near(projected(data, "out", quantizer.decode(codes)), data["out_eval_output_from_indices"], atols["vectors"])


def projected(data: dict[str, Tensor], which: str, x: Tensor) -> Tensor:
    """The published projection of a case, if it has one."""
    weight = data.get(f"in_project_{which}_weight")
    return x if weight is None else F.linear(x, weight, data[f"in_project_{which}_bias"])


def test_residual_levels_are_vector_quantize_pytorchs():
    """Losses: commitment of each level, weight 1 each; ours is their mean."""
    data = numbers("residual_vq")
    levels = [ema(data, level, decay=0.85) for level in range(3)]
    quantizer = ResidualQuantizer(levels)
    codes = quantizer.eval().encode(data["in_eval_batch"])
    assert torch.equal(codes, data["out_eval_indices"])
    near(quantizer.decode(codes), data["out_eval_output_from_indices"], 2.1e-5)
    for depth in range(1, 4):
        near(quantizer.decode(codes[..., :depth]), data["out_eval_all_codes"][:depth].sum(0), 2.1e-5)
    quantizer.train()
    for i, batch in enumerate(data["in_batches"]):
        out = quantizer(batch)
        assert torch.equal(out.codes, data[f"out_train_indices_{i}"]), i
        near(out.losses["commitment"], data[f"out_train_loss_{i}"].mean(), 2e-6)
        near(out.vectors, data[f"out_train_quantized_{i}"], 2.1e-5)
    near(torch.stack([level.codebook for level in levels]), data["out_embed"], 1.9e-5)
    near(torch.stack([level.cluster_sum for level in levels]), data["out_embed_avg"], 2.6e-5)
    near(torch.stack([level.cluster_size for level in levels]), data["out_cluster_size"], 3e-5)


@pytest.mark.parametrize(
    ("case", "codebook", "commitment"),
    # The publisher's "legacy" puts beta = 0.25 on the codebook term. With unweighted losses that is a pair of weights.
    [("legacy", 0.25, 1.0), ("fixed", 1.0, 0.25)],
)
def test_gradients_are_tamings(case, codebook, commitment):
    data = numbers("taming_vq2_loss")
    quantizer = VectorQuantizer(dim=16, vocab_size=64)
    quantizer.codebook.data = data["in_embed"]
    z = data["in_z"].requires_grad_()
    out = quantizer(z.permute(0, 2, 3, 1))
    loss = codebook * out.losses["codebook"] + commitment * out.losses["commitment"]
    quantized = out.vectors.permute(0, 3, 1, 2)
    (loss + (quantized * data["in_upstream"]).sum()).backward()
    assert torch.equal(out.codes.flatten(), data["out_indices"])
    near(loss, data[f"out_{case}_loss"], 2e-6)
    near(quantized, data[f"out_{case}_zq"], 1.9e-5)
    near(z.grad, data[f"out_{case}_grad_z"], 2.1e-5)
    near(quantizer.codebook.grad, data[f"out_{case}_grad_embed"], 2e-6)


@pytest.mark.parametrize("kind", ["vector", "ema"])
@pytest.mark.parametrize(("gradient", "prefix"), [("rotation", "rotation"), ("straight-through", "ste")])
@pytest.mark.parametrize(
    ("case", "metric", "atol"), [("rotation_trick_l2", "l2", 3.1e-5), ("rotation_trick_cosine", "cosine", 8.3e-6)]
)
def test_gradients_of_latents_are_vector_quantize_pytorchs(case, metric, atol, gradient, prefix, kind):
    """Loss: commitment, weight 0.25."""
    data = numbers(case)
    classes = {"vector": VectorQuantizer, "ema": EmaQuantizer}
    quantizer = classes[kind](16, 64, metric, gradient=gradient).eval()
    quantizer.codebook.data = data["in_embed_init"][0]
    x = data["in_x"].requires_grad_()
    out = quantizer(x)
    assert torch.equal(out.codes, data["out_indices"])
    near(out.vectors, data[f"out_{prefix}_quantized"], atol)
    (of_vectors,) = torch.autograd.grad((out.vectors * data["in_upstream"]).sum(), x, retain_graph=True)
    near(of_vectors, data[f"out_{prefix}_grad_x"], atol)
    loss = 0.25 * out.losses["commitment"]
    near(loss, data["out_commit_loss"], 2e-6)
    near(torch.autograd.grad(loss, x)[0], data[f"out_{prefix}_commit_grad_x"], 2e-6)


def test_simvq_is_vector_quantize_pytorchs():
    """Loss: codebook, weight 1, and commitment, weight 0.25."""
    data = numbers("simvq")
    quantizer = SimQuantizer(dim=16, vocab_size=64)
    quantizer.codebook = data["in_frozen_codebook"]
    quantizer.proj.weight.data = data["in_code_transform_weight"]
    x = data["in_x"].requires_grad_()
    out = quantizer(x)
    loss = out.losses["codebook"] + 0.25 * out.losses["commitment"]
    ((out.vectors * data["in_upstream"]).sum() + loss).backward()
    assert torch.equal(out.codes, data["out_indices"])
    near(quantizer.rows(), data["out_effective_codebook"], 8.4e-5)
    near(out.vectors, data["out_quantized"], 8.4e-5)
    near(quantizer.decode(out.codes), data["out_codes"], 8.4e-5)
    near(loss, data["out_loss"], 2e-6)
    near(x.grad, data["out_grad_x"], 2.1e-5)
    near(quantizer.proj.weight.grad, data["out_grad_code_transform"], 1.7e-5)


@pytest.mark.parametrize(("case", "symmetric", "atol"), [("fsq", False, 1.1e-5), ("fsq_symmetric", True, 1.4e-5)])
def test_finite_scalars_are_vector_quantize_pytorchs(case, symmetric, atol):
    data = numbers(case)
    quantizer = FiniteScalarQuantizer((8, 5, 5, 5), symmetric=symmetric)
    x = data["in_x"].requires_grad_()
    out = quantizer(x)
    (out.vectors * data["in_upstream"]).sum().backward()
    assert torch.equal(out.codes, data["out_indices"])
    near(out.vectors, data["out_quantized"], 2e-6)
    near(quantizer.decode(out.codes), data["out_from_indices"], 2e-6)
    near(x.grad, data["out_grad_x"], atol)


def test_finite_scalars_between_projections_are_vector_quantize_pytorchs():
    data = numbers("fsq_projected_fmap")
    quantizer = FiniteScalarQuantizer((8, 5, 5, 5))
    x = data["in_x"].requires_grad_()
    out = quantizer(projected(data, "in", x.permute(0, 2, 3, 1)))
    vectors = projected(data, "out", out.vectors).permute(0, 3, 1, 2)
    (vectors * data["in_upstream"]).sum().backward()
    assert torch.equal(out.codes, data["out_indices"])
    near(vectors, data["out_quantized"], 9.5e-6)
    near(projected(data, "out", quantizer.decode(out.codes)).permute(0, 3, 1, 2), data["out_from_indices"], 9.5e-6)
    near(x.grad, data["out_grad_x"], 2.5e-5)


@pytest.mark.parametrize(
    ("case", "quantizer", "atol_mean"),
    [
        ("lfq", LookupFreeQuantizer(8, temperature=0.1), 9.9e-6),
        ("lfq_spherical", BinarySphericalQuantizer(8, temperature=0.1, group_bits=8), 1.1e-5),
    ],
)
def test_signs_are_vector_quantize_pytorchs(case, quantizer, atol_mean):
    """Loss: entropy and diversity, weight 0.1 each, and commitment, weight 0.25; inverse temperature 10."""
    data = numbers(case)
    out = quantizer(data["in_x"])
    assert torch.equal(out.codes, data["out_indices"])
    assert torch.equal(out.codes, data["out_train_indices"])
    near(out.vectors, data["out_quantized"], 2e-6)
    near(quantizer.decode(out.codes), data["out_from_indices"], 2e-6)
    entropy, diversity, commitment = (out.losses[name] for name in ("entropy", "diversity", "commitment"))
    # The publisher's logarithm ends at 1e-5: what its entropies lack for that, in float64.
    latents = data["in_x"].double().flatten(0, 1)
    latents = F.normalize(latents, dim=-1) if case == "lfq_spherical" else latents
    chances = (2 * latents @ quantizer.decode(torch.arange(256)).double().T / quantizer.temperature).softmax(dim=-1)
    entropy, diversity = entropy - lacking(chances), diversity + lacking(chances.mean(dim=0))
    near(entropy.float(), data["out_per_sample_entropy"], 3.6e-6)
    near(-diversity.float(), data["out_codebook_entropy"], atol_mean)
    near(commitment, data["out_commitment"], 2e-6)
    near((0.1 * (entropy + diversity) + 0.25 * commitment).float(), data["out_train_aux_loss"], 2e-6)


def lacking(chances: Tensor) -> Tensor:
    return (chances * (chances.clamp(min=1e-5).log() - chances.log())).sum(dim=-1).mean()


def test_open_magvit2s_bits_are_little_endian():
    data = numbers("open_magvit2_lfq")
    quantizer = LookupFreeQuantizer(10, endian="little")
    codes = quantizer.encode(data["in_latents"].permute(0, 2, 3, 1))
    assert torch.equal(codes, data["out_indices"])
    assert torch.equal(quantizer.decode(codes).permute(0, 3, 1, 2), data["out_quantized"])


def test_cosmos_levels_are_finite_scalars():
    data = numbers("cosmos_fsq")
    quantizer = FiniteScalarQuantizer((8, 8, 8, 5, 5, 5))
    codes = quantizer.encode(data["in_latents"].permute(0, 2, 3, 1))
    assert torch.equal(codes, data["out_indices"])
    near(quantizer.decode(codes).permute(0, 3, 1, 2), data["out_quantized"], 1.4e-5)


def test_seed_vokens_codes_are_the_greatest_products():
    data = numbers("seed_voken_ibq")
    quantizer = IndexBackpropagationQuantizer(dim=32, vocab_size=384)
    quantizer.codebook.data = data["in_embed"]
    codes = quantizer.encode(data["in_latents"].permute(0, 2, 3, 1))
    assert torch.equal(codes, data["out_indices"])
    near(quantizer.decode(codes).permute(0, 3, 1, 2), data["out_quantized"], 8.3e-6)


def test_tamings_gumbel_codes_are_the_greatest_logits():
    data = numbers("taming_gumbel")
    quantizer = GumbelQuantizer(latent_dim=32, vocab_size=320, dim=32).eval()
    quantizer.codebook.data, quantizer.proj.weight.data = data["in_embed"], data["in_proj_weight"]
    quantizer.proj.bias.data = data["in_proj_bias"]
    out = quantizer(data["in_latents"].permute(0, 2, 3, 1))
    assert torch.equal(out.codes, data["out_indices"])
    near(out.vectors.permute(0, 3, 1, 2), data["out_quantized"], 2.2e-5)
