"""A training step of an EMA quantizer with the cosine metric: forward, backward, and the codebook's own step."""

# Other libraries are extras, or not there at all.
# pyright: reportMissingImports=false
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vqtok import EmaQuantizer

from .backends import ours
from .inputs import Lookup, gaussian_lookup
from .protocol import Call, Case, Contender, Shape, Verdict
from .verdicts import judge_codes, judge_values

_DECAY, _EPSILON = 0.99, 1e-5


@dataclass(frozen=True, slots=True)
class Step:
    """What a step leaves: codes int64 [N], the gradient [N, D] of the latents, the codebook [K, D] after it."""

    codes: Tensor
    gradient: Tensor
    codebook: Tensor


def inputs(shape: Shape, device: str) -> Lookup:
    """Return Gaussian latents and unit codes; each contender copies the codebook, which it changes."""
    made = gaussian_lookup(shape, device)
    return Lookup(made.latents, F.normalize(made.codebook, dim=1))


def _back(latents: Tensor, vectors: Tensor, loss: Tensor) -> Tensor:
    """Run backward from what a decoder might ask for (the sum of the vectors) and the commitment loss."""
    (gradient,) = torch.autograd.grad(vectors.sum() + loss, latents)
    return gradient


def vqtok_step(given: Lookup) -> Call:
    """Prepare vqtok's quantizer."""
    vocab_size, dim = given.codebook.shape
    quantizer = EmaQuantizer(dim, vocab_size, metric="cosine", decay=_DECAY, epsilon=_EPSILON)
    quantizer.to(given.codebook.device).train()
    quantizer.codebook = given.codebook.clone()
    quantizer.adopt_codebook()
    latents = given.latents.clone().requires_grad_()

    def run() -> Step:
        out = quantizer(latents)
        return Step(out.codes, _back(latents, out.vectors, out.losses["commitment"]), quantizer.codebook)

    return run


def torch_step(given: Lookup) -> Call:
    """Prepare the same step in plain torch: one-hot statistics, as tutorials have it."""
    codebook, latents = given.codebook.clone(), given.latents.clone().requires_grad_()
    sizes, sums = torch.ones(len(codebook), device=codebook.device), codebook.clone()

    def run() -> Step:
        nonlocal codebook, sizes, sums
        unit = F.normalize(latents, dim=1)
        codes = (unit @ codebook.t()).argmax(dim=1)
        rows = codebook[codes]
        gradient = _back(latents, unit + (rows - unit).detach(), F.mse_loss(unit, rows))
        with torch.no_grad():
            chosen = F.one_hot(codes, len(codebook)).float()
            sizes = _DECAY * sizes + (1 - _DECAY) * chosen.sum(dim=0)
            sums = _DECAY * sums + (1 - _DECAY) * chosen.t() @ unit
            smoothed = (sizes + _EPSILON) / (sizes.sum() + len(codebook) * _EPSILON) * sizes.sum()
            codebook = F.normalize(sums / smoothed[:, None], dim=1)
        return Step(codes, gradient, codebook)

    return run


def lucidrains_step(given: Lookup) -> Call:
    """Prepare vector-quantize-pytorch without what the others do not do: dead codes, the rotation trick."""
    from vector_quantize_pytorch import VectorQuantize

    vocab_size, dim = given.codebook.shape
    quantizer = VectorQuantize(
        dim,
        vocab_size,
        use_cosine_sim=True,
        decay=_DECAY,
        eps=_EPSILON,
        commitment_weight=1.0,
        threshold_ema_dead_code=0,
        rotation_trick=False,
    )
    quantizer.to(given.codebook.device).train()
    for name in ("embed", "embed_avg"):
        getattr(quantizer._codebook, name).copy_(given.codebook)
    latents = given.latents.clone().requires_grad_()

    def run() -> Step:
        vectors, codes, loss = quantizer(latents)
        return Step(codes, _back(latents, vectors, loss.sum()), quantizer._codebook.embed[0])

    return run


def contenders(device: str) -> list[Contender]:
    """Return the rivals, the baseline first, and vqtok."""
    package = "vector-quantize-pytorch"
    rivals = [
        Contender(package, lucidrains_step, modules=("vector_quantize_pytorch",), install=package),
        Contender("torch by hand", torch_step),
    ]
    return [*rivals, *ours("nearest_code", device, vqtok_step)]


def judge(given: Lookup, expected: Step, answer: Step) -> Verdict:
    """Compare codes; where all agree, gradient and codebook must agree too, to a few roundings."""
    codes = judge_codes(F.normalize(given.latents, dim=1), given.codebook, expected.codes, answer.codes)
    if codes.differing:  # two codes that tie have other gradients and other sums
        return codes
    pairs = ((expected.gradient, answer.gradient), (expected.codebook, answer.codebook))
    values = [judge_values(a, b, 1e-5 * a.double().abs().max()) for a, b in pairs]
    return Verdict(codes.of, wrong=sum(value.wrong for value in values))


CASE = Case(
    name="quantizer_step",
    summary="forward and backward of an EMA quantizer (cosine) in training, with the step of its codebook",
    axes=("latents", "codes", "dimensions"),
    shapes=((8192, 8192, 32),),
    quick_shapes=((512, 256, 8),),
    inputs=inputs,
    contenders=contenders,
    judge=judge,
    flop=lambda shape: 0.0,  # the lookup alone has a limit that can be told
)
