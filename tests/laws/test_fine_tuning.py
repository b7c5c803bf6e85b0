"""A published checkpoint trains on like a native model, and goes back to its publisher's layout with what it learnt."""

from pathlib import Path

import numpy as np
import pytest
import torch

import vqtok
from vqtok.adapters import FAMILIES
from vqtok.adapters.containers import read_entries, read_tensor
from vqtok.losses import Objective, l2

GOLDEN = Path(__file__).parents[1] / "golden"
# Folder, file, steps, the share of the reconstruction loss that is left at most, and codes used at least.
MODELS = {
    "hf_janus_vq": ("checkpoints/hf_janus_vq", "model.safetensors", 15, 0.4, 100),
    "vit_vqgan": ("published/vit_vqgan", "model.ckpt", 20, 0.55, 8),
}
OBJECTIVE = Objective({"l2": 1.0, "codebook": 1.0, "commitment": 0.25})


def train(tokenizer, pixels, steps):
    """Return the reconstruction losses, and the names of parameters that the first step gave no gradient."""
    optimizer = torch.optim.Adam(tokenizer.train().parameters(), lr=3e-4)
    losses, silent = [], []
    for step in range(steps):
        out = tokenizer(pixels)
        reconstruction = l2(out.pixels, pixels)
        optimizer.zero_grad()
        OBJECTIVE({"l2": reconstruction, **out.quantized.losses}).total.backward()
        if step == 0:
            silent = [n for n, x in tokenizer.named_parameters() if x.grad is None or not x.grad.abs().sum() > 0]
        optimizer.step()
        losses.append(reconstruction.item())
    return losses, silent


@pytest.mark.parametrize("family", MODELS)
def test_it_learns_and_goes_back(family, tmp_path):
    folder, name, steps, left, used = MODELS[family]
    path = GOLDEN / folder / name
    tokenizer, before = vqtok.load(path), vqtok.load(path)
    pixels = torch.from_numpy(np.load(path.with_name("input.npy")))
    losses, silent = train(tokenizer, pixels, steps)
    assert losses[-1] < left * losses[0], losses
    # A key's bias moves all scores of a query alike.
    assert [n for n in silent if not n.endswith("key.bias")] == []

    tokenizer.eval()
    ids = tokenizer.encode(pixels).ids
    assert 0 <= ids.min()
    assert ids.max() < tokenizer.vocab_size
    assert ids.unique().numel() >= used
    out = tokenizer(pixels)
    assert torch.equal(out.quantized.codes, ids)
    assert torch.equal(out.quantized.vectors, tokenizer.quantizer.decode(ids))
    assert tokenizer.fingerprint != before.fingerprint

    vqtok.export(tokenizer, written := tmp_path / f"trained{path.suffix}", family)
    again = vqtok.load(written, family=family)
    assert again.fingerprint == tokenizer.fingerprint
    assert torch.equal(again.encode(pixels).ids, ids)
    changed_tensors(path, written, family)


def changed_tensors(path, written, family):
    """The written file has the publisher's names, and other numbers in every tensor that learns."""
    old, new = read_entries(path), read_entries(written)
    prefix = next(x for x in ("", "model.vqmodel.") if f"{x}{FAMILIES[family].anchor}" in old)
    assert {f"{prefix}{name}" for name in new} <= set(old)
    same = [n for n, x in new.items() if torch.equal(read_tensor(n, x), read_tensor(n, old[f"{prefix}{n}"]))]
    assert [n for n in same if not n.endswith((".k.bias", "_pos_embedding"))] == []
