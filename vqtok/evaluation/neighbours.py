"""How the codes of a codebook lie: how far each is from its nearest other, duplicates, norms, two main directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vqtok.errors import ConfigError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Pairs that are compared at once, 32 MB of distances, and in all: some seconds at the usual dimensions.
_BLOCK, _PAIRS = 1 << 22, 1 << 30
_QUANTILES = (0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """Each compared code with its nearest other code.

    Attributes:
        codes: int64 [n], the codes that were compared with all others; all K, or of a large codebook every K / n-th.
        nearest: int64 [n], the nearest other code of each, the lowest of equally near ones.
        distances: float64 [n], Euclidean distance to it.
        norms: float64 [K], length of each row.
        duplicates: number of codes of all K whose row another code of a lower number has already.
    """

    codes: Ints
    nearest: Ints
    distances: Floats
    norms: Floats
    duplicates: int

    def report(self) -> dict[str, object]:
        """Return the numbers for people and programs."""
        return {
            "codes": len(self.norms),
            "codes_compared": len(self.codes),
            "nearest_distance": _quantiles(self.distances),
            "norm": _quantiles(self.norms),
            "duplicates": self.duplicates,
        }


def neighbours(codebook: npt.NDArray[np.floating]) -> Neighbours:
    """Return the nearest other code of each code of a codebook [K, D], in memory of O(K + K D).

    Raises:
        ConfigError: fewer than two codes, or rows that are not finite.

    >>> found = neighbours(np.array([[0.0, 0], [3, 4], [0, 1], [3, 4]]))
    >>> found.nearest.tolist(), found.distances.tolist(), found.duplicates
    ([2, 3, 0, 1], [1.0, 0.0, 1.0, 0.0], 1)
    """
    rows = np.ascontiguousarray(codebook, np.float64)
    if rows.ndim != 2 or len(rows) < 2 or not np.isfinite(rows).all():
        raise ConfigError(f"expected a finite codebook [K, D] of at least two codes, got shape {list(rows.shape)}")
    compared = min(len(rows), max(1, _PAIRS // len(rows)))
    codes = np.arange(compared) * len(rows) // compared
    # Distances do not change with the origin; sums of products lose least with it in the middle.
    centred = rows - rows.mean(axis=0)
    half_norms = (centred**2).sum(axis=1) / 2
    step = max(1, _BLOCK // len(rows))
    parts = [_nearest_other(centred, half_norms, codes[i : i + step]) for i in range(0, compared, step)]
    nearest = np.concatenate(parts)
    distances = np.sqrt(((rows[codes] - rows[nearest]) ** 2).sum(axis=1))
    duplicates = len(rows) - len(np.unique(rows, axis=0))
    return Neighbours(codes, nearest, distances, np.sqrt((rows**2).sum(axis=1)), duplicates)


def _nearest_other(rows: Floats, half_norms: Floats, codes: Ints) -> Ints:
    scores = rows[codes] @ rows.T
    scores -= half_norms
    scores[np.arange(len(codes)), codes] = -np.inf
    return scores.argmax(axis=1)


def main_plane(codebook: npt.NDArray[np.floating]) -> tuple[Floats, float]:
    """Return codes [K, D] as points [K, 2] in the plane of greatest variance, and its share of all variance (PCA).

    The largest part of each direction is positive, so that the same codebook always gives the same map.

    >>> points, share = main_plane(np.array([[0.0, 0, 0], [4, 0, 0], [0, 2, 0], [4, 2, 0]]))
    >>> points.tolist(), share
    ([[-2.0, -1.0], [2.0, -1.0], [-2.0, 1.0], [2.0, 1.0]], 1.0)
    """
    centred = np.asarray(codebook, np.float64) - np.mean(codebook, axis=0, dtype=np.float64)
    variances, directions = np.linalg.eigh(centred.T @ centred)
    plane = directions[:, ::-1][:, :2]
    plane = plane * np.sign(plane[np.abs(plane).argmax(axis=0), range(plane.shape[1])])
    points = centred @ plane
    share = float(variances[::-1][:2].sum() / max(variances.sum(), 1e-300))
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1]))), min(1.0, share)


def _quantiles(values: Floats) -> dict[str, float]:
    found = np.quantile(values, _QUANTILES)
    return {f"{q:g}": float(f"{x:.6g}") for q, x in zip(_QUANTILES, found, strict=True)}
