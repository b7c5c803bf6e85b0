"""Which patches are kept, of the selector's log-probabilities [B, N, 2]: all deterministic but for the noise given."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from vqtok.errors import ConfigError

SelectionKind: TypeAlias = Literal["threshold", "topk", "gumbel"]


@dataclass(frozen=True, slots=True)
class Rule:
    """How patches are selected; `rule` makes one of what a caller asked for.

    Attributes:
        kind: ``"threshold"``, ``"topk"`` or ``"gumbel"``.
        tokens: how many, for ``"topk"``.
        seed: of the noise, for ``"gumbel"``.
    """

    kind: SelectionKind
    tokens: int = 0
    seed: int = 0

    def keep(self, scores: Tensor, pixels: Tensor) -> Tensor:
        """Return bool [B, N] of log-probabilities [B, N, 2] of images that are pixels [B, 3, H, W]."""
        if self.kind == "topk":
            return keep_most_likely(scores, self.tokens)
        noise = image_noise(pixels, tuple(scores.shape[1:]), self.seed) if self.kind == "gumbel" else None
        return keep_likely(scores, noise)


def rule(kind: SelectionKind, tokens: int | None, generator: torch.Generator | None, patches: int) -> Rule:
    """Return the rule of arguments, or refuse them: tokens go with ``"topk"`` only, a generator with ``"gumbel"``.

    >>> rule("topk", 3, None, patches=4).tokens
    3
    """
    if kind not in get_args(SelectionKind):
        raise ConfigError(f"expected selection to be one of {', '.join(get_args(SelectionKind))}, got {kind!r}")
    if (tokens is not None and kind != "topk") or (generator is not None) != (kind == "gumbel"):
        raise ConfigError(
            f"expected tokens with 'topk' only, and a generator with 'gumbel' and only there, got {kind!r} with "
            f"tokens {tokens} and {'no' if generator is None else 'a'} generator"
        )
    if kind == "topk" and (not isinstance(tokens, int) or not 1 <= tokens <= patches):
        raise ConfigError(f"expected 1 to {patches} tokens, the patches of an image, got {tokens}")
    return Rule(kind, tokens or 0, 0 if generator is None else generator.initial_seed())


def keep_likely(scores: Tensor, noise: Tensor | None = None) -> Tensor:
    """Return bool [B, N]: where keeping is at least as likely as dropping; the most likely patch where none is.

    Args:
        scores: log-probabilities [B, N, 2] of keeping and dropping.
        noise: [B, N, 2], added first. With Gumbel noise this is a sample (Jang et al. 2017, equation 1).

    >>> keep_likely(torch.tensor([[[0.5, 0.5], [0.3, 0.7]], [[0.1, 0.9], [0.2, 0.8]]]).log()).tolist()
    [[True, False], [False, True]]
    """
    likely = _lead(scores if noise is None else scores + noise) >= 0
    return likely | (keep_most_likely(scores, 1) & ~likely.any(dim=1, keepdim=True))


def keep_most_likely(scores: Tensor, tokens: int) -> Tensor:
    """Return bool [B, N]: the ``tokens`` patches most likely to be kept, the first ones of equals.

    >>> keep_most_likely(torch.tensor([[[0.2, 0.8], [0.3, 0.7], [0.3, 0.7]]]).log(), 1).tolist()
    [[False, True, False]]
    """
    first = _lead(scores).sort(dim=1, descending=True, stable=True).indices[:, :tokens]
    return torch.zeros(scores.shape[:2], dtype=torch.bool, device=scores.device).scatter(1, first, True)


def sample_policy(scores: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return a sample bool [B, N] and the same as 1 and 0, float [B, N], with the gradient of the relaxed sample.

    Source:
        Jang et al., "Categorical Reparameterization with Gumbel-Softmax", 2017, section 2.2 (straight-through).
    """
    noise = gumbel(torch.rand_like(scores))
    keep = keep_likely(scores, noise)
    return keep, carry(keep, ((scores + noise) / temperature).softmax(dim=-1)[..., 0])


def carry(keep: Tensor, soft: Tensor) -> Tensor:
    """Return keep as exactly 1 and 0, with the gradient of soft.

    >>> carry(torch.tensor([True, False]), torch.tensor([0.25, 0.5])).tolist()
    [1.0, 0.0]
    """
    return keep.to(soft.dtype) + (soft - soft.detach())


def image_noise(pixels: Tensor, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return Gumbel noise [B, *shape] that depends on the seed and each image's own pixels [B, 3, H, W], no batch."""
    rows = []
    for image in pixels.detach().float().cpu():
        content = seed.to_bytes(16, "little", signed=True) + image.contiguous().numpy().tobytes()
        key = int.from_bytes(hashlib.sha256(content).digest()[:8], "little") >> 1
        rows.append(torch.rand(shape, generator=torch.Generator().manual_seed(key), dtype=torch.float32))
    return gumbel(torch.stack(rows)).to(pixels.device)


def gumbel(uniform: Tensor) -> Tensor:
    """Return the Gumbel noise of uniform numbers in [0, 1)."""
    # Exponential numbers first: -log(1 - u) is never infinite, and kept away from zero.
    return -(-torch.log1p(-uniform)).clamp_min(torch.finfo(uniform.dtype).tiny).log()


def _lead(scores: Tensor) -> Tensor:
    """Return by how much keeping leads, [B, N]; it still tells patches apart whose probability rounds to one."""
    return scores[..., 0] - scores[..., 1]
