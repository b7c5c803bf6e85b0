"""The nouns: what quantizers, tokenizers and token files hand to each other.

Tensor level (torch): `Quantized`, `Reconstruction`, `TokenGrid`, `TokenRuns`, `Selection`.
File level (numpy, so that reading a token file needs no torch): `Tokens`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np
import numpy.typing as npt

from vqtok.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """What a quantizer makes of latents.

    Attributes:
        vectors: float [..., D], rows of the codebook, bit for bit; gradients pass straight through to the latents.
        codes: int64 [...] or [..., Q], each in 0..vocab_size-1.
        losses: unweighted scalars by name (``codebook``, ``commitment``, ...); weights belong to the training config.

    >>> import torch, vqtok
    >>> out = vqtok.VectorQuantizer(dim=2, vocab_size=4)(torch.zeros(3, 2))
    >>> out.vectors.shape, out.codes.shape, sorted(out.losses)
    (torch.Size([3, 2]), torch.Size([3]), ['codebook', 'commitment'])
    """

    vectors: Tensor
    codes: Tensor
    losses: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Reconstruction:
    """A batch after the way through encoder, quantizer and decoder.

    Attributes:
        pixels: float [B, 3, H, W] in the model's own range.
        quantized: the `Quantized` latents, vectors [B, h, w, D].
        statistics: what else the decoder says of the pixels, for losses: ``mean`` and ``log_scale`` [B, 3, H, W] of a
            logit-Laplace distribution; empty for most models.

    >>> import torch, vqtok
    >>> out = vqtok.build("vqvae-cifar")(torch.zeros(1, 3, 16, 24))
    >>> out.pixels.shape, out.quantized.codes.shape
    (torch.Size([1, 3, 16, 24]), torch.Size([1, 4, 6]))
    """

    pixels: Tensor
    quantized: Quantized
    statistics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class TokenGrid:
    """Tokens of a batch of equally sized images.

    Attributes:
        ids: int64 [B, h, w], or [B, h, w, Q] with Q codes a position; raw codes, never offset.
        vocab_size: number of codes; every id is below it.

    >>> import torch
    >>> TokenGrid(torch.zeros(2, 4, 4, dtype=torch.int64), vocab_size=512).ids.flatten(1).shape
    torch.Size([2, 16])
    """

    ids: Tensor
    vocab_size: int


@dataclass(frozen=True, slots=True, eq=False)
class TokenRuns:
    """Tokens of a batch from a dynamic tokenizer: as many for an image as it needs.

    Attributes:
        ids: int64 [T], the images' runs one after the other.
        lengths: int64 [B], tokens of each image; they sum to T.
        vocab_size: number of codes.

    >>> import torch
    >>> runs = TokenRuns(torch.arange(5), lengths=torch.tensor([2, 3]), vocab_size=512)
    >>> [run.tolist() for run in runs.ids.split(runs.lengths.tolist())]
    [[0, 1], [2, 3, 4]]
    """

    ids: Tensor
    lengths: Tensor
    vocab_size: int


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Which patches of a batch a dynamic tokenizer keeps.

    Attributes:
        keep: bool [B, N], patches row by row from the top; at least one of each image.
        lengths: int64 [B], how many are kept: tokens of each image.

    >>> import torch
    >>> keep = torch.tensor([[True, False, True]])
    >>> Selection(keep, lengths=keep.sum(dim=1)).lengths.tolist()
    [2]
    """

    keep: Tensor
    lengths: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Tokens of n images of any sizes: what people hold, save and load; the mirror of a ``.vqt`` file.

    Attributes:
        ids: int64 [T], raw codes of all images, one image after the other, rows from the top, Q innermost.
        offsets: int64 [n + 1]; image i owns ``ids[offsets[i]:offsets[i + 1]]``.
        grids: int64 [n, 3], (Q, h, w) of each image.
        sizes: int64 [n, 2], true (height, width) of each image in pixels, before any padding.
        vocab_size: number of codes.
        keys: n names, one an image.
        fingerprint: sha256 of the model that made the tokens, or "" when it is unknown.
        record: how they were made, for the token file: ``fingerprints``, ``execution``, ``created_by``; may be empty.
        keep: bool [sum of h * w], the positions of each image's grid that a dynamic tokenizer kept, rows from the top;
            [0] where none were left out, or where it is unknown.

    >>> import numpy as np
    >>> tokens = Tokens(np.arange(6), np.array([0, 4, 6]), np.array([[1, 2, 2], [1, 1, 2]]),
    ...                 np.array([[16, 16], [8, 16]]), vocab_size=8, keys=("a", "b"), fingerprint="")
    >>> len(tokens), tokens.sequences(offset=100)[1].tolist()
    (2, [104, 105])
    """

    ids: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    grids: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    vocab_size: int
    keys: tuple[str, ...]
    fingerprint: str
    record: Mapping[str, object] = field(default_factory=dict)
    keep: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    def __post_init__(self) -> None:
        """Refuse arrays that contradict each other."""
        n = len(self.keys)
        shapes = {
            "offsets": (self.offsets.shape, (n + 1,)),
            "grids": (self.grids.shape, (n, 3)),
            "sizes": (self.sizes.shape, (n, 2)),
            "ids": (self.ids.shape, (int(self.offsets[-1]) if self.offsets.size else 0,)),
        }
        for name, (came, expected) in shapes.items():
            if came != expected:
                raise ConfigError(f"expected Tokens.{name} of shape {expected} for {n} keys, got {came}")
        kinds = {name: getattr(self, name).dtype for name in shapes}
        if wrong := ", ".join(f"{name} {dtype}" for name, dtype in kinds.items() if dtype.kind not in "iu"):
            raise ConfigError(f"expected Tokens of integer arrays, got {wrong}")
        if self.offsets[0] != 0 or (np.diff(self.offsets) < 0).any():
            raise ConfigError("expected Tokens.offsets to start at 0 and never fall")
        self._check_keep()

    def _check_keep(self) -> None:
        if not self.keep.size:
            return
        positions = self._positions()
        if self.keep.dtype != np.bool_ or self.keep.shape != (positions[-1],):
            raise ConfigError(
                f"expected Tokens.keep as bool [{positions[-1]}], one a position of the grids, "
                f"got {self.keep.dtype} {list(self.keep.shape)}"
            )
        kept = np.diff(np.concatenate([[0], np.cumsum(self.keep)])[positions])
        if (kept * self.grids[:, 0] != np.diff(self.offsets)).any():
            raise ConfigError("expected Tokens.keep to keep as many positions of each image as it has tokens")

    def _positions(self) -> npt.NDArray[np.int64]:
        """Return int64 [n + 1]; image i owns ``keep[positions[i]:positions[i + 1]]``."""
        return np.concatenate([[0], np.cumsum(self.grids[:, 1] * self.grids[:, 2])]).astype(np.int64)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.keys)

    def __getitem__(self, index: SupportsIndex | slice) -> Tokens:
        """Return the tokens of one image or of a slice of images, as `Tokens` again."""
        if not isinstance(index, slice):
            i = range(len(self))[index]
            index = slice(i, i + 1)
        return self._rows(index, self._positions() if self.keep.size else self.offsets)

    def __iter__(self) -> Iterator[Tokens]:
        """Yield the images' tokens one by one."""
        positions = self._positions() if self.keep.size else self.offsets
        return (self._rows(slice(i, i + 1), positions) for i in range(len(self)))

    def _rows(self, index: slice, positions: npt.NDArray[np.int64]) -> Tokens:
        """Return a slice of images; positions are those of ``keep``, which is [0] or has them all."""
        rows = range(len(self))[index]
        spans = [self.ids[self.offsets[i] : self.offsets[i + 1]] for i in rows]
        return replace(
            self,
            ids=np.concatenate([self.ids[:0], *spans]),
            offsets=np.cumsum([0, *map(len, spans)], dtype=np.int64),
            grids=self.grids[index].copy(),
            sizes=self.sizes[index].copy(),
            keys=self.keys[index],
            keep=np.concatenate([self.keep[:0], *(self.keep[positions[i] : positions[i + 1]] for i in rows)]),
        )

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[np.int64]:
        """Return ids as [n, h, w], or [n, h, w, Q]; all grids must be equal."""
        if len(self) == 0:
            return np.zeros((0, 0, 0), dtype or np.int64)
        if (self.grids != self.grids[0]).any() or self.grids[0].prod() * len(self) != self.ids.size:
            raise ConfigError(
                "expected images of one grid size to make one array, got several: use .sequences() for ragged ids"
            )
        codebooks, height, width = (int(x) for x in self.grids[0])
        shape = (len(self), height, width) + ((codebooks,) if codebooks > 1 else ())
        array = self.ids.reshape(shape).astype(dtype or np.int64, copy=False)
        return array.copy() if copy else array

    def sequences(self, offset: int = 0) -> list[npt.NDArray[np.int64]]:
        """Return each image's ids as one int64 [T_i] sequence, ``offset`` added, as a language model takes them."""
        return [self.ids[a:b] + offset for a, b in zip(self.offsets[:-1], self.offsets[1:], strict=True)]


def concatenate(parts: Sequence[Tokens]) -> Tokens:
    """Return the images of several `Tokens` of one model, one after the other; the record is the first one's.

    Raises:
        ConfigError: there are no parts, or they are of different models.

    >>> part = Tokens(np.arange(2), np.array([0, 2]), np.array([[1, 1, 2]]), np.array([[8, 16]]), 8, ("a",), "")
    >>> concatenate([part, part]).offsets.tolist()
    [0, 2, 4]
    """
    models = {(part.vocab_size, part.fingerprint) for part in parts}
    if len(models) != 1:
        raise ConfigError(f"expected tokens of one model, got {len(models)}")
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    # A selection is known of all images or of none.
    kept = [part.keep for part in parts if len(part)]
    return replace(
        parts[0],
        ids=np.concatenate([part.ids for part in parts]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        grids=np.concatenate([part.grids for part in parts]),
        sizes=np.concatenate([part.sizes for part in parts]),
        keys=tuple(key for part in parts for key in part.keys),
        keep=np.concatenate(kept) if kept and all(keep.size for keep in kept) else np.zeros(0, np.bool_),
    )
