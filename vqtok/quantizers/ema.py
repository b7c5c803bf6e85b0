"""Vector quantization with a codebook of moving averages (van den Oord et al. 2017, appendix A.1).

K-means initialisation and revival of dead codes follow Dhariwal et al. 2020 (Jukebox), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist

from vqtok import ops
from vqtok.errors import ConfigError
from vqtok.quantizers.base import (
    Gradient,
    Metric,
    Quantizer,
    check_gradient,
    check_latents,
    check_metric,
    check_space,
    effective_codebook,
    effective_latents,
    nearest_row,
    passage,
)
from vqtok.types import Quantized


class EmaQuantizer(Quantizer):
    """Nearest codebook row; in training mode each row follows the mean of the latents that chose it.

    Under torch.distributed statistics are summed over all ranks, and k-means and revival take the latents of all: every
    rank holds the codebook that one process with rank 0's random numbers would have on the joined batch.

    Args:
        dim: length D of a vector.
        vocab_size: number of codes K.
        metric: ``"l2"`` or ``"cosine"`` (rows are kept at unit norm, latents are normalised).
        decay: gamma of equations 6 and 7, in [0, 1).
        epsilon: Laplace smoothing of the cluster sizes; 0 switches it off.
        revive_below: a code whose share of the latents falls below this part of the mean share 1 / K is moved onto
            a latent of the batch; 0 switches revival off.
        kmeans_iterations: Lloyd iterations on the first training batch; 0 keeps the random codebook.
        gradient: what latents learn from the gradient of their vectors: ``"straight-through"``, that gradient, or
            ``"rotation"``, that gradient turned as the latent is onto its vector (Fifty et al. 2024).

    >>> import torch
    >>> vq = EmaQuantizer(dim=2, vocab_size=2, decay=0.0, epsilon=0.0)
    >>> latents = torch.tensor([[-1.0, 0.0], [-3.0, 0.0], [5.0, 1.0]])
    >>> vq.codebook = torch.tensor([[-1.0, 0.0], [4.0, 0.0]])
    >>> _ = vq.train()(latents)
    >>> vq.codebook.tolist()
    [[-2.0, 0.0], [5.0, 1.0]]
    """

    training_state = ("cluster_size", "cluster_sum", "started")
    codebook: Tensor
    cluster_size: Tensor
    cluster_sum: Tensor
    started: Tensor

    def __init__(
        self,
        dim: int,
        vocab_size: int,
        metric: Metric = "l2",
        *,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        revive_below: float = 0.0,
        kmeans_iterations: int = 0,
        gradient: Gradient = "straight-through",
    ) -> None:
        super().__init__()
        check_space(dim, vocab_size)
        if not 0 <= decay < 1:
            raise ConfigError(f"expected decay in [0, 1), got {decay}")
        if min(epsilon, revive_below, kmeans_iterations) < 0:
            raise ConfigError(
                "expected epsilon, revive_below and kmeans_iterations of at least 0, "
                f"got {epsilon}, {revive_below} and {kmeans_iterations}"
            )
        self.dim = self.latent_dim = dim
        self.vocab_size = vocab_size
        self.metric: Metric = check_metric(metric)
        self.decay, self.epsilon = decay, epsilon
        self.revive_below, self.kmeans_iterations = revive_below, kmeans_iterations
        self.gradient: Gradient = check_gradient(gradient)
        # Float32 whatever torch's default is: averages of small steps need the bits.
        codebook = torch.empty(vocab_size, dim, dtype=torch.float32).uniform_(-1, 1)
        self.register_buffer("codebook", codebook)
        self.register_buffer("cluster_size", torch.ones(vocab_size, dtype=torch.float32))
        self.register_buffer("cluster_sum", codebook.clone())
        self.register_buffer("started", torch.tensor(False))

    def encode(self, latents: Tensor) -> Tensor:
        """Return codes int64 [...] of latents [..., D]."""
        return ops.nearest_code(latents, self.codebook, metric=self.metric)

    def decode(self, codes: Tensor) -> Tensor:
        """Return codebook rows [..., D]."""
        return effective_codebook(self.codebook, self.metric)[codes]

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents [..., D]; loss ``commitment``. In training mode the codebook learns afterwards."""
        if self.training and self.kmeans_iterations and not self.started:
            self.initialize(latents)
        codebook = effective_codebook(self.codebook, self.metric)
        codes = nearest_row(latents, codebook, self.metric)
        latents = effective_latents(latents, self.metric)
        quantized = passage(self.gradient)(latents, codebook, codes)
        if self.training:
            self._learn(latents.detach(), codes)
        return Quantized(quantized.vectors, codes, {"commitment": quantized.losses["commitment"]})

    @torch.no_grad()
    def initialize(self, latents: Tensor) -> None:
        """Set the codebook by k-means on latents [..., D]; under torch.distributed on those of all ranks."""
        check_latents(latents, self.dim)
        points = _joined(effective_latents(latents.detach().float().reshape(-1, self.dim), self.metric))
        if not len(points):
            raise ConfigError("expected latents to start the codebook from, got none")
        rounds = -(-self.vocab_size // len(points))
        picks = torch.cat([torch.randperm(len(points), device=points.device) for _ in range(rounds)])[: self.vocab_size]
        codebook = points[_from_rank_0(picks)]
        counts, sums = points.new_zeros(self.vocab_size), torch.zeros_like(codebook)
        for _ in range(self.kmeans_iterations):
            codes = ops.nearest_code(points, codebook, metric=self.metric)
            counts, sums = ops.code_statistics(points, codes, self.vocab_size)
            means = effective_codebook(sums / counts.clamp(min=1)[:, None], self.metric)
            codebook = torch.where(counts[:, None] > 0, means, codebook)
        self.codebook = _from_rank_0(codebook)
        self.cluster_size, self.cluster_sum = _from_rank_0(counts.float()), _from_rank_0(sums)
        self.started = torch.ones_like(self.started)

    @torch.no_grad()
    def adopt_codebook(self) -> None:
        """Go on from the present codebook, as after loading one: as if each code had been chosen once, by itself."""
        self.cluster_size = torch.ones_like(self.cluster_size)
        self.cluster_sum = self.codebook.clone()
        self.started = torch.ones_like(self.started)

    @torch.no_grad()
    def _learn(self, latents: Tensor, codes: Tensor) -> None:
        counts, sums = ops.code_statistics(latents, codes, self.vocab_size)
        averages = ops.update_averages(
            ops.Averages(self.cluster_size, self.cluster_sum, self.codebook),
            _summed_over_ranks(counts.float()),
            _summed_over_ranks(sums),
            decay=self.decay,
            epsilon=self.epsilon,
            unit=self.metric == "cosine",
        )
        self.cluster_size, self.cluster_sum, self.codebook = averages.sizes, averages.sums, averages.codebook
        if self.revive_below:
            self._revive(latents.reshape(-1, self.dim), self.cluster_size.sum() / self.vocab_size)

    def _revive(self, latents: Tensor, mean_size: Tensor) -> None:
        before, total = _place_among_ranks(len(latents), latents.device)
        picks = _from_rank_0(torch.randint(max(1, total), (self.vocab_size,), device=latents.device)) - before
        here = (picks >= 0) & (picks < len(latents))
        found = latents[picks.clamp(0, len(latents) - 1)].float() if len(latents) else torch.zeros_like(self.codebook)
        fresh = _summed_over_ranks(torch.where(here[:, None], found, 0.0)) if total else self.codebook
        dead = self.cluster_size < self.revive_below * mean_size
        self.codebook = torch.where(dead[:, None], fresh, self.codebook)
        self.cluster_sum = torch.where(dead[:, None], fresh * mean_size, self.cluster_sum)
        # A revived code starts as an average one: it gets time to win latents before it can die again.
        self.cluster_size = torch.where(dead, mean_size, self.cluster_size)


def _place_among_ranks(count: int, device: torch.device) -> tuple[int, int]:
    """Return how many latents lie before this rank's in the joined batch, and how many there are in all."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, count
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=device)
    counts[dist.get_rank()] = count
    dist.all_reduce(counts)
    return int(counts[: dist.get_rank()].sum()), int(counts.sum())


def _joined(points: Tensor) -> Tensor:
    """Return the points [n, D] of all ranks, rank after rank."""
    before, total = _place_among_ranks(len(points), points.device)
    if total == len(points):
        return points
    whole = points.new_zeros(total, points.shape[1])
    whole[before : before + len(points)] = points
    return _summed_over_ranks(whole)


def _summed_over_ranks(x: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x


def _from_rank_0(x: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        x = x.contiguous()
        dist.broadcast(x, 0)
    return x
