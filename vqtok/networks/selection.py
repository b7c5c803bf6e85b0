"""From keep probabilities to which patches are kept: by threshold, to a budget, or sampled (Jin et al. 2023, 3.1)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from vqtok import ops
from vqtok.errors import ConfigError

SelectionKind: TypeAlias = Literal["threshold", "topk", "gumbel"]


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Which patches of each image become tokens.

    Attributes:
        keep: bool [B, N], patches row by row.
        lengths: int64 [B], how many are kept, at least 1.

    >>> Selection(torch.tensor([[True, False]]), torch.tensor([1])).keep.sum(1).tolist()
    [1]
    """

    keep: Tensor
    lengths: Tensor


@dataclass(frozen=True, slots=True)
class SelectionRule:
    """How to select. An image keeps at least one patch: the one nearest to being kept, where none is.

    Args:
        kind: ``"threshold"`` keeps what is at least as probably kept as dropped. ``"topk"`` keeps the ``tokens`` most
            probable patches, the first of equals. ``"gumbel"`` samples, as LaVIT's published code does; the noise is a
            function of ``seed`` and an image's pixels, so neighbours do not matter and the same call gives the same.
        tokens: the budget, for ``"topk"`` only.
        seed: in 0..2^64-1, for ``"gumbel"`` only.

    Raises:
        ConfigError: another kind, or a missing or needless budget or seed.

    >>> log_probabilities = torch.tensor([[[-0.1, -2.3], [-3.0, -0.05], [-0.2, -1.7]]])
    >>> SelectionRule().keep(log_probabilities, torch.zeros(1, 3, 8, 8)).tolist()
    [[True, False, True]]
    """

    kind: SelectionKind = "threshold"
    tokens: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse fields that contradict each other."""
        if self.kind not in get_args(SelectionKind):
            raise ConfigError(
                f"expected selection to be one of {', '.join(get_args(SelectionKind))}, got {self.kind!r}"
            )
        if (self.kind == "topk") != (self.tokens is not None) or (self.tokens is not None and self.tokens < 1):
            raise ConfigError(
                f"expected tokens of at least 1 with selection 'topk' and none otherwise, got {self.tokens} with "
                f"{self.kind!r}"
            )
        if (self.kind == "gumbel") != (self.seed is not None) or not 0 <= (self.seed or 0) < 1 << 64:
            raise ConfigError(
                "expected a generator (a seed in 0..2^64-1) with selection 'gumbel' and none otherwise, got "
                f"{self.seed} with {self.kind!r}"
            )

    def keep(self, log_probabilities: Tensor, pixels: Tensor) -> Tensor:
        """Return bool [B, N].

        Args:
            log_probabilities: [B, N, 2], of keeping and of dropping.
            pixels: [B, C, H, W], the images; only noise depends on them.
        """
        # The margin, not the probability: that is 1 for many patches at once when rounded.
        margin = (log_probabilities[..., 0] - log_probabilities[..., 1]).double()
        if self.tokens is not None:
            return _most_probable(margin, self.tokens)
        if self.seed is not None:
            margin = margin + selection_noise(pixels, margin.shape[1], self.seed).to(margin.device)
        return _at_least_one(margin >= 0, margin)


def selection_noise(pixels: Tensor, patches: int, seed: int) -> Tensor:
    """Return the difference of two Gumbel variables for each patch of each image: float64 [B, patches].

    The variables come from numpy's Philox, keyed by sha256 over the seed and the image's shape and float32 pixels.

    >>> images = torch.arange(2.0).expand(3, 4, 4, 2).permute(3, 0, 1, 2)
    >>> bool((selection_noise(images, 9, 1)[1:] == selection_noise(images[1:], 9, 1)).all())
    True
    """
    rows = []
    for image in pixels.detach().float().cpu():
        told = seed.to_bytes(8, "little") + repr(tuple(image.shape)).encode()
        digest = hashlib.sha256(told + image.contiguous().numpy().astype("<f4").tobytes()).digest()
        raw = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw((patches, 2))
        uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        gumbel = -np.log(-np.log(uniform))
        rows.append(gumbel[:, 0] - gumbel[:, 1])
    return torch.from_numpy(np.array(rows).reshape(len(rows), patches))


def sample_keep(log_probabilities: Tensor, temperature: float = 1.0) -> Tensor:
    """Return a sampled selection with a gradient, for training: float [B, N] of zeros and ones.

    Gumbel-softmax, straight through (Jang et al. 2017, section 2.2): the value is the sample, the gradient that of the
    softmax at the temperature. The noise is of torch's global generator. An image keeps at least one patch.

    Args:
        log_probabilities: [B, N, 2], of keeping and of dropping.
        temperature: above 0; low ones give gradients that are large and rare.

    Raises:
        ConfigError: a temperature of 0 or less.

    >>> sample_keep(torch.tensor([[[0.0, -100.0], [-100.0, 0.0]]])).tolist()
    [[1.0, 0.0]]
    """
    if not temperature > 0:
        raise ConfigError(f"expected a temperature above 0, got {temperature}")
    gumbel = -torch.empty_like(log_probabilities).exponential_().log()
    noisy = log_probabilities + gumbel
    margin = (noisy[..., 0] - noisy[..., 1]).detach()
    soft = (noisy / temperature).softmax(dim=-1)[..., 0]
    return ops.pass_through(_at_least_one(margin >= 0, margin).to(soft.dtype), soft)


def _most_probable(margin: Tensor, tokens: int) -> Tensor:
    if tokens > margin.shape[1]:
        raise ConfigError(f"expected a budget of at most the {margin.shape[1]} patches there are, got {tokens}")
    chosen = margin.argsort(dim=1, descending=True, stable=True)[:, :tokens]
    return torch.zeros_like(margin, dtype=torch.bool).scatter(1, chosen, True)


def _at_least_one(keep: Tensor, margin: Tensor) -> Tensor:
    nearest = torch.zeros_like(keep).scatter(1, margin.argmax(dim=1, keepdim=True), True)
    return keep | (nearest & ~keep.any(dim=1, keepdim=True))
