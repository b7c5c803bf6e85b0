"""Our quantizers give what the publishers' code gave on the same inputs (tests/golden/published)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vqtok import EmaQuantizer, VectorQuantizer

PUBLISHED = Path(__file__).parents[1] / "golden" / "published"


def numbers(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(x) for key, x in np.load(PUBLISHED / f"{name}.npz").items()}


def test_ema_is_rosinalitys_from_a_warm_state():
    """decay 0.99, epsilon 1e-5; the publisher keeps the codebook transposed, [D, K]."""
    data = numbers("rosinality_ema")
    quantizer = EmaQuantizer(dim=16, vocab_size=64, decay=0.99, epsilon=1e-5).train()
    quantizer.codebook = data["in_embed_init"].T.contiguous()
    quantizer.cluster_sum = data["in_embed_avg_init"].T.contiguous()
    quantizer.cluster_size = data["in_cluster_size_init"]
    for i, batch in enumerate(data["in_batches"]):
        out = quantizer(batch)
        assert torch.equal(out.codes, data[f"out_train_indices_{i}"]), i
        torch.testing.assert_close(out.losses["commitment"], data[f"out_train_diff_{i}"], rtol=0, atol=2e-6)
    # Tolerances are those that the publisher's own code keeps under reordered sums.
    torch.testing.assert_close(quantizer.codebook, data["out_embed"].T, rtol=0, atol=2.9e-5)
    torch.testing.assert_close(quantizer.cluster_sum, data["out_embed_avg"].T, rtol=0, atol=7.6e-5)
    torch.testing.assert_close(quantizer.cluster_size, data["out_cluster_size"], rtol=0, atol=2.4e-5)


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
    torch.testing.assert_close(loss, data[f"out_{case}_loss"], rtol=0, atol=2e-6)
    torch.testing.assert_close(quantized, data[f"out_{case}_zq"], rtol=0, atol=1.9e-5)
    torch.testing.assert_close(z.grad, data[f"out_{case}_grad_z"], rtol=0, atol=2.1e-5)
    torch.testing.assert_close(quantizer.codebook.grad, data[f"out_{case}_grad_embed"], rtol=0, atol=2e-6)
