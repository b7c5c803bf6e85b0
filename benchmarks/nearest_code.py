"""For each latent the nearest code: vqtok's backends beside the libraries that people use for it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vqtok import ops

from .backends import ours
from .inputs import Lookup, gaussian_lookup
from .protocol import Call, Case, Contender, Shape, Verdict
from .rivals import rivals
from .verdicts import judge_codes

_PREPARED = "PreparedCodebook"


def unprepared(inputs: Lookup) -> Call:
    """Prepare nothing: the codebook is packed in every call, as in training, where it changes in every step."""
    return lambda: ops.nearest_code(inputs.latents, inputs.codebook)


def prepared(inputs: Lookup) -> Call:
    """Prepare the codebook once, as for many batches of a model that is trained."""
    kept = getattr(ops, _PREPARED)(inputs.codebook, metric="l2")
    run: Any = ops.nearest_code
    return lambda: run(inputs.latents, kept)


def contenders(device: str) -> list[Contender]:
    """Return the rivals, the baseline first, and vqtok."""
    own = ours("nearest_code", device, unprepared)
    if hasattr(ops, _PREPARED):
        own.insert(1, Contender("vqtok prepared", prepared, ours=True, note="codebook prepared outside the timing"))
    return [*rivals(device), *own]


def judge(inputs: Lookup, expected: Tensor, answer: Tensor) -> Verdict:
    """Compare codes int64 [N]."""
    return judge_codes(inputs.latents, inputs.codebook, expected, answer)


def flop(shape: Shape) -> float:
    """Return 2 N K D: a multiply-add for each latent, code and dimension."""
    rows, vocab_size, dim = shape
    return 2.0 * rows * vocab_size * dim


CASE = Case(
    name="nearest_code",
    summary="the nearest code of each latent (squared distance)",
    axes=("latents", "codes", "dimensions"),
    shapes=((16384, 8192, 32), (4096, 16384, 8), (4096, 16384, 256), (16384, 1024, 256), (2048, 262144, 16)),
    quick_shapes=((1024, 1024, 8), (1024, 1024, 32)),
    inputs=gaussian_lookup,
    contenders=contenders,
    judge=judge,
    flop=flop,
    memory_shape=(8192, 16384, 32),
)
