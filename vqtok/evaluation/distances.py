"""How far apart two sets of images are, by their features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vqtok.errors import ConfigError

Floats = npt.NDArray[np.floating]
_BLOCK = 1024  # rows of the kernel's matrix in memory at once


def kernel_distance(originals: Floats, others: Floats) -> float:
    """Return the squared maximum mean discrepancy of features, as KID has it (Binkowski et al. 2018, section 4).

    The kernel is (x . y / D + 1)^3. Sets belong together in pairs here, each original and its reconstruction, so pairs
    are left out of the mean between the sets as equal indices are within them: the U-statistic of Gretton et al. 2012
    (equation 4), without bias also where the two of a pair depend on each other. All images count, none is drawn.

    Args:
        originals: [N, D], N at least 2.
        others: [N, D].

    Returns:
        0 for equal sets; it may be a little below 0 where nothing differs but chance.

    Raises:
        ConfigError: shapes differ, or there are fewer than 2.

    >>> x = np.array([[1.0], [3.0]])
    >>> kernel_distance(x, x), kernel_distance(x, x + 1)  # 4^3 + 9^3 - 5^3 - 7^3
    (0.0, 325.0)
    """
    if originals.shape != others.shape or originals.ndim != 2 or len(originals) < 2:
        raise ConfigError(f"expected two sets [N, D] of N >= 2, got {list(originals.shape)} and {list(others.shape)}")
    x, y = originals.astype(np.float64), others.astype(np.float64)
    total = 0.0
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, start + _BLOCK)
        terms = _kernel(x[rows], x) + _kernel(y[rows], y) - _kernel(x[rows], y) - _kernel(y[rows], x)
        total += float(terms.sum() - np.einsum("ii->", terms[:, rows]))
    return total / (len(x) * (len(x) - 1))


def _kernel(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return (x @ y.T / x.shape[1] + 1) ** 3
