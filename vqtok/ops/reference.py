"""What each op means. Slow, short, and what every other backend is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from vqtok.ops.arithmetic import fused_multiply_add, normalize_codebook
from vqtok.ops.checks import finite_blocks
from vqtok.ops.layout import is_channels_last
from vqtok.ops.levels import level_bound, level_thresholds

_BLOCK_SCORES = 1 << 18
"""Scores held at a time, in float64 with a handful of temporaries: some tens of megabytes."""
_SCALAR_ROWS = 1 << 16

SHORTEST = 1e-6
"""A latent shorter than this part of its vector, or a sum of unit vectors below it, gives no rotation."""

LEAST_LENGTH = 1e-12
"""What latents are divided by at least to be of unit length."""


def score(latents: Tensor, vectors: Tensor, half_norms: Tensor) -> Tensor:
    """Return the score of code vectors for latents: one fused multiply-add over d = 0..D-1, from ``-half_norms`` on.

    Args:
        latents: float32 [..., D].
        vectors: float32 [..., D], broadcastable with ``latents``.
        half_norms: float32 [...], broadcastable with the leading dimensions.

    Returns:
        float32 [...]. The larger, the nearer: it is half of ``|z|^2 - |z - e|^2``.
    """
    scores = -half_norms
    for d in range(latents.shape[-1]):
        scores = fused_multiply_add(latents[..., d], vectors[..., d], scores)
    return scores


def nearest_code(latents: Tensor, codebook: Tensor, half_norms: Tensor) -> Tensor:
    """Return the lowest code with the largest score for each latent.

    Args:
        latents: [..., D], finite, any floating dtype; rounded once to float32.
        codebook: float32 [K, D].
        half_norms: float32 [K].

    Returns:
        int64 [...].
    """
    codes_a_block = min(codebook.shape[0], _BLOCK_SCORES)
    rows_a_block = max(1, _BLOCK_SCORES // codes_a_block)
    codes = torch.empty(latents.shape[:-1].numel(), dtype=torch.int64, device=latents.device)
    for n, rows in finite_blocks(latents, rows_a_block):
        block = rows[:, None]
        best = block.new_full(block.shape[:1], -torch.inf)
        best_code = torch.zeros(block.shape[:1], dtype=torch.int64, device=block.device)
        for k in range(0, codebook.shape[0], codes_a_block):
            scores = score(block, codebook[k : k + codes_a_block], half_norms[k : k + codes_a_block])
            top, at = _first_largest(scores)
            best_code = torch.where(top > best, at + k, best_code)
            best = torch.maximum(top, best)
        codes[n : n + len(rows)] = best_code
    return codes.reshape(latents.shape[:-1])


def code_statistics(latents: Tensor, codes: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return how many latents have each code, and their sum: added in float64 in row order, rounded once.

    Args:
        latents: [..., D], any floating dtype.
        codes: int64 [...], each in 0..vocab_size-1.
        vocab_size: K.

    Returns:
        counts int64 [K] and sums float32 [K, D].
    """
    rows, codes = latents.reshape(-1, latents.shape[-1]).double(), codes.reshape(-1)
    order = codes.sort(stable=True).indices
    # bincount is not deterministic on CUDA; where the sorted codes change is.
    ends = torch.searchsorted(codes[order], torch.arange(vocab_size, device=codes.device), right=True)
    counts = ends.diff(prepend=ends.new_zeros(1))
    sums = torch.segment_reduce(rows[order], "sum", lengths=counts, axis=0, initial=0)
    return counts, sums.float()


def straight_through(latents: Tensor, codebook: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codebook's rows, bit for bit, and the mean squared difference from the latents.

    Args:
        latents: [..., D], any floating dtype.
        codebook: [K, D], any floating dtype.
        codes: int64 [...].

    Returns:
        vectors [..., D] of the codebook's dtype, and a scalar: float64 where an input is, else float32; 0 for N = 0.
    """
    vectors = codebook[codes.contiguous()]  # else in the memory order of the codes
    return vectors, difference(vectors, latents).square_().sum() / max(latents.numel(), 1)


def straight_through_backward(
    gradient: Tensor, latents: Tensor, codebook: Tensor, codes: Tensor, weight: Tensor
) -> Tensor:
    """Return the gradient of latents whose vectors have this gradient: ``gradient + weight (z - q)``.

    Args:
        gradient: [..., D], of the vectors and of the codebook's dtype.
        latents: z, [..., D], any floating dtype.
        codebook: [K, D], any floating dtype.
        codes: int64 [...].
        weight: scalar; what the commitment term's difference counts.

    Returns:
        [..., D] of the latents' dtype and contiguous.
    """
    return (gradient - weight * difference(codebook[codes.contiguous()], latents)).to(latents.dtype).contiguous()


def rotate_backward(gradient: Tensor, latents: Tensor, codebook: Tensor, codes: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of latents that were rotated and scaled to their vectors, in float64 until the end.

    With s = u + v the bisector of the two unit vectors, w (w.g) is s (s.g) / (s.s).

    Args:
        gradient: g, [..., D], of the vectors and of the codebook's dtype.
        latents: z = |z| u, [..., D], any floating dtype.
        codebook: [K, D], any floating dtype; its rows are q = |q| v.
        codes: int64 [...].
        weight: scalar; what the commitment term's difference counts.

    Returns:
        [..., D] of the latents' dtype and contiguous.
    """
    g, z, q = gradient.double(), latents.double(), codebook[codes.contiguous()].double()
    length, target = z.norm(dim=-1, keepdim=True), q.norm(dim=-1, keepdim=True)
    rotates = (target > 0) & (length > SHORTEST * target)
    u, v = z / torch.where(rotates, length, 1.0), q / torch.where(rotates, target, 1.0)
    s = u + v
    squared = _dot(s, s)
    rotates &= squared > SHORTEST**2
    turned = g - s * (2 * _dot(s, g) / torch.where(rotates, squared, 1.0)) + u * (2 * _dot(v, g))
    turned = turned * (target / torch.where(rotates, length, 1.0))
    return (torch.where(rotates, turned, g) - weight * difference(q, z)).to(latents.dtype).contiguous()


def codebook_backward(latents: Tensor, codebook: Tensor, codes: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of the codebook from its loss: ``weight`` times the sum of ``q - z`` over a code's rows.

    Args:
        latents: z, [..., D], any floating dtype.
        codebook: [K, D], any floating dtype; its rows are q.
        codes: int64 [...].
        weight: scalar; what the codebook term's difference counts.

    Returns:
        [K, D] of the codebook's dtype; the differences are summed as `code_statistics` does.
    """
    error = difference(codebook[codes.contiguous()], latents)
    return (weight * code_statistics(error, codes, codebook.shape[0])[1]).to(codebook.dtype)


def normalize_latents(latents: Tensor) -> Tensor:
    """Return latents over their length, or over `LEAST_LENGTH` where they are shorter.

    Args:
        latents: [..., D], any floating dtype.

    Returns:
        [..., D], float64 for float64 and else float32, contiguous.
    """
    rows = latents.double()
    unit = rows / rows.norm(dim=-1, keepdim=True).clamp(min=LEAST_LENGTH)
    return unit.to(common_dtype(latents, latents)).contiguous()


def normalize_latents_backward(gradient: Tensor, latents: Tensor) -> Tensor:
    """Return the gradient of latents whose unit vectors u have this gradient g: ``(g - u (u.g)) / |z|``.

    Args:
        gradient: [..., D], of the unit vectors.
        latents: z, [..., D], any floating dtype.

    Returns:
        [..., D] of the latents' dtype and contiguous; ``g / LEAST_LENGTH`` where z is not longer.
    """
    g, z = gradient.double(), latents.double()
    length = z.norm(dim=-1, keepdim=True)
    by = 1 / length.clamp(min=LEAST_LENGTH)
    along = torch.where(length > LEAST_LENGTH, _dot(z, g) * by * by, 0.0)
    return ((g - along * z) * by).to(latents.dtype).contiguous()


def update_averages(
    size: Tensor,
    total: Tensor,
    codebook: Tensor,
    counts: Tensor,
    sums: Tensor,
    decay: float,
    epsilon: float,
    unit: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the moving averages of sizes and sums after one more batch, and the codebook that they make.

    Args:
        size: [K], the average so far.
        total: [K, D], the average so far.
        codebook: [K, D]; a code of size 0 has no mean and keeps its row.
        counts: [K], of the batch.
        sums: [K, D], of the batch.
        decay: what the average so far counts.
        epsilon: Laplace smoothing of the sizes that the sums are divided by.
        unit: divide the means by their norms.

    Returns:
        size, total and codebook, new.
    """
    size = decay * size + (1 - decay) * counts
    total = decay * total + (1 - decay) * sums
    everything = size.double().sum().to(size.dtype)
    smoothed = (size + epsilon) / (everything + codebook.shape[0] * epsilon) * everything
    means = total / smoothed[:, None]
    means = normalize_codebook(means) if unit else means
    return size, total, torch.where(size[:, None] > 0, means, codebook)


def finite_scalar(latents: Tensor, levels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the codes of latents by comparison with the thresholds between levels, and the levels as vectors.

    Args:
        latents: [..., D], finite, any floating dtype; rounded once to float32.
        levels: D numbers of levels.

    Returns:
        codes int64 [...] and vectors float32 [..., D] of `finite_scalar_vectors`.

    Raises:
        NonFiniteLatents: a row holds NaN or infinity, on the CPU.
    """
    thresholds = [torch.tensor(level_thresholds(count), dtype=torch.float32).to(latents.device) for count in levels]
    codes = torch.zeros(latents.shape[:-1].numel(), dtype=torch.int64, device=latents.device)
    for n, rows in finite_blocks(latents, _SCALAR_ROWS):
        place = 1
        for column, ends, count in zip(rows.t().contiguous(), thresholds, levels, strict=True):
            # The digit is how many thresholds a latent has reached.
            codes[n : n + len(rows)] += place * torch.searchsorted(ends, column, right=True)
            place *= count
    codes = codes.reshape(latents.shape[:-1])
    return codes, finite_scalar_vectors(codes, levels)


def finite_scalar_vectors(codes: Tensor, levels: Sequence[int]) -> Tensor:
    """Return the vectors of codes: of a dimension with L levels the code's digit i as ``(i - L // 2) / (L // 2)``.

    Args:
        codes: int64 [...]; the first digit is the fastest.
        levels: D numbers of levels L.

    Returns:
        float32 [..., D].
    """
    digits = []
    for count in levels:
        digits.append((codes % count - count // 2).float() / (count // 2))
        codes = codes // count
    return torch.stack(digits, dim=-1)


def finite_scalar_backward(gradient: Tensor, latents: Tensor, levels: Sequence[int]) -> Tensor:
    """Return the gradient of latents whose vectors have this gradient, as if nothing had been rounded.

    Args:
        gradient: [..., D], of the vectors.
        latents: [..., D], any floating dtype.
        levels: D numbers of levels.

    Returns:
        [..., D] of the latents' dtype and contiguous: the gradient times the slope of the bound, over half the levels.
    """
    bounds = torch.tensor([level_bound(count) for count in levels], dtype=torch.float64)
    half, shift = bounds[:, 0], bounds[:, 2]
    slope = (half / torch.tensor([count // 2 for count in levels])).float().to(latents.device)
    tanh = (latents.float() + shift.float().to(latents.device)).tanh()
    return (gradient * slope * (1 - tanh * tanh)).to(latents.dtype).contiguous()


def compact(values: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Return the kept values of all rows, one row after the other, and how many each row has.

    Args:
        values: [B, N, ...], any dtype.
        keep: bool [B, N].

    Returns:
        [T, ...] and int64 [B].
    """
    return values[keep], keep.sum(dim=1)


def pad(values: Tensor, lengths: Tensor, fill: float) -> tuple[Tensor, Tensor]:
    """Return runs of values as rows of equal length, filled up at their ends, and where the values are.

    Args:
        values: [T, ...], any dtype.
        lengths: int64 [B], each at least 0, T in all.
        fill: what stands where there is no value.

    Returns:
        [B, max(lengths), ...] and bool [B, max(lengths)].
    """
    longest = int(lengths.max()) if len(lengths) else 0
    mask = torch.arange(longest, device=lengths.device) < lengths[:, None]
    return spread(values, mask, fill), mask


def spread(values: Tensor, mask: Tensor, fill: float) -> Tensor:
    """Return [B, N, ...] with values [T, ...] in order where the mask [B, N] is true, and ``fill`` elsewhere."""
    rows = values.new_full((*mask.shape, *values.shape[1:]), fill)
    rows[mask] = values
    return rows


def group_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> Tensor:
    """Return (x - mean) / sqrt(variance + eps) * weight + bias by group and image: in float64, rounded once.

    Args:
        x: [B, C, ...], any floating dtype.
        weight: [C] or none.
        bias: [C] or none.
        groups: a divisor of C.
        eps: what is added to the biased variance.

    Returns:
        [B, C, ...] of x's dtype, channels_last where x is and else contiguous.
    """
    return _stored_as(_normal(x, weight, bias, groups, eps), x)


def group_norm_silu(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> Tensor:
    """Return y / (1 + e^-y) of the y that `group_norm` has before it rounds."""
    y = _normal(x, weight, bias, groups, eps)
    return _stored_as(y / (1 + (-y).exp()), x)


def group_affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> Tensor:
    """Return what GroupNorm does to each channel, (x - centre) scale + shift, as centre, scale and shift.

    The centre is the float32 nearest to the group's mean, and what it lacks of the mean is in the shift.

    Returns:
        float32 [B, 3, C].
    """
    count, channels = x.shape[:2]
    grouped = x.double().reshape(count, groups, -1)
    mean = grouped.mean(dim=2)
    spread = ((grouped - mean[..., None]).square().mean(dim=2) + eps).sqrt()
    mean, spread = (t.repeat_interleave(channels // groups, dim=1) for t in (mean, spread))
    scale = (1 if weight is None else weight.double()) / spread
    centre = mean.float()
    shift = (0 if bias is None else bias.double()) - (mean - centre) * scale
    return torch.stack((centre, scale.float(), shift.float()), dim=1)


def conv3x3(
    x: Tensor,
    weight: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    affine: Tensor | None,
    residual: Tensor | None,
    doubled: bool,
) -> Tensor:
    """Return weight * f(x) + bias + residual, with a border of one zero: in float64, rounded once.

    Args:
        x: [B, C, h, w], any floating dtype.
        weight: [N, C, 3, 3].
        packed: not read.
        bias: [N] or none.
        affine: float32 [B, 3, C]: f is then y / (1 + e^-y) of y = (x - centre) scale + shift.
        residual: of the result's shape, or none.
        doubled: f repeats each value twice each way.

    Returns:
        [B, N, h, w], or twice as high and wide, of x's dtype, in channels_last.
    """
    values = x.double()
    if affine is not None:
        centre, scale, shift = affine.double()[..., None, None].unbind(1)
        normal = (values - centre) * scale + shift
        values = normal / (1 + (-normal).exp())
    if doubled:
        values = values.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    y = conv2d(values, weight.double(), None if bias is None else bias.double(), padding=1)
    y = y if residual is None else y + residual.double()
    return y.to(x.dtype).contiguous(memory_format=torch.channels_last)


def difference(vectors: Tensor, latents: Tensor) -> Tensor:
    """Return ``vectors - latents`` in at least float32."""
    dtype = common_dtype(vectors, latents)
    return vectors.to(dtype) - latents.to(dtype)


def common_dtype(a: Tensor, b: Tensor) -> torch.dtype:
    """Return the dtype that holds both, float32 at least."""
    return torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)


def _normal(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> Tensor:
    grouped = x.double().reshape(x.shape[0], groups, -1)
    off = grouped - grouped.mean(dim=2, keepdim=True)
    normal = (off / (off.square().mean(dim=2, keepdim=True) + eps).sqrt()).reshape(x.shape)
    each = (-1, *(1,) * (x.dim() - 2))
    normal = normal if weight is None else normal * weight.double().reshape(each)
    return normal if bias is None else normal + bias.double().reshape(each)


def _stored_as(y: Tensor, x: Tensor) -> Tensor:
    return y.to(x.dtype, memory_format=torch.channels_last if is_channels_last(x) else torch.contiguous_format)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1, keepdim=True)


def _first_largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest of each row and the first place where it stands; argmax leaves the place open on CUDA."""
    top = scores.amax(dim=1)
    places = torch.arange(scores.shape[1], device=scores.device)
    return top, torch.where(scores == top[:, None], places, scores.shape[1]).amin(dim=1)
