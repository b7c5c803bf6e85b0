"""Fingerprints that are computed anew when a tensor changed, and only then."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from torch import Tensor

# Tensors with their addresses and versions. Holding the tensors keeps their addresses from being given to others.
_Versions: TypeAlias = list[tuple[Tensor, int, int]]


class Identity:
    """Remembers the fingerprints of some tensors for as long as the tensors stay as they are.

    A change that goes around torch's own count of changes, through ``.data``, is not seen.

    >>> import torch
    >>> identity, weight = Identity(), torch.zeros(2)
    >>> compute = lambda: {"model": str(weight.tolist())}
    >>> identity.of([weight], compute), identity.of([weight.add_(1)], compute)
    ({'model': '[0.0, 0.0]'}, {'model': '[1.0, 1.0]'})
    """

    def __init__(self) -> None:
        self._seen: _Versions = []
        self._fingerprints: dict[str, str] = {}

    def of(self, tensors: Iterable[Tensor], compute: Callable[[], dict[str, str]]) -> dict[str, str]:
        """Return what ``compute`` returned for these tensors, or compute it."""
        now = [(x, x.data_ptr(), -1 if x.is_inference() else x._version) for x in tensors]
        if not _unchanged(self._seen, now):
            self._fingerprints, self._seen = compute(), now
        return dict(self._fingerprints)


def _unchanged(before: _Versions, now: _Versions) -> bool:
    """Tell whether these are the same tensors at the same versions; tensors of inference mode count none."""
    return len(before) == len(now) > 0 and all(
        a is b and where == there and old == new >= 0
        for (a, where, old), (b, there, new) in zip(before, now, strict=True)
    )
