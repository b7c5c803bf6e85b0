"""Data on which nearest-code kernels go wrong: ties, cancellation, overflow, and codes that differ by a rounding."""

import torch

from vqtok.ops import normalize_codebook

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SHAPES = ((0, 5, 3), (1, 1, 1), (7, 1, 5), (6, 17, 1), (13, 33, 3), (97, 61, 8), (50, 129, 31), (25, 70, 100))
"""N, K, D: none is a multiple of a tile."""


def generator(seed):
    return torch.Generator().manual_seed(seed)


def gauss(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def lattice(*shape, seed=0):
    return torch.randint(-2, 3, shape, generator=generator(seed)).float()


def unit(*shape, seed=0):
    return normalize_codebook(gauss(*shape, seed=seed))


def near_midpoints(rows, vocab_size, dim):
    """Latents half-way between two codes, but for a distance that float16 does not see."""
    codebook, n = gauss(vocab_size, dim, seed=1), torch.arange(rows)
    return (codebook[n % vocab_size] + codebook[(7 * n + 3) % vocab_size]) / 2 + 1e-5 * gauss(rows, dim), codebook


def near_copies(rows, vocab_size, dim):
    """Every code has copies far away in the codebook that differ from it by a few float32 roundings."""
    few = gauss(-(-vocab_size // 3), dim, seed=1).repeat(3, 1)[:vocab_size]
    return gauss(rows, dim), few * (1 + 1e-7 * lattice(vocab_size, dim, seed=2))


KINDS = {
    "gauss": lambda n, k, d: (gauss(n, d), gauss(k, d, seed=1)),
    "lattice": lambda n, k, d: (lattice(n, d), lattice(k, d, seed=1)),
    "near midpoints": near_midpoints,
    "midpoints": lambda n, k, d: (gauss(k, d, seed=1)[torch.arange(2 * n).view(n, 2) % k].mean(1), gauss(k, d, seed=1)),
    "near copies": near_copies,
    "on codes": lambda n, k, d: (gauss(k, d, seed=1)[torch.arange(n) % k], gauss(k, d, seed=1)),
    "repeated": lambda n, k, d: (gauss(n, d), gauss(-(-k // 9), d, seed=1).repeat(9, 1)[:k]),
    "offset": lambda n, k, d: (gauss(n, d) + 1e3, gauss(k, d, seed=1) + 1e3),
    # Products far beyond 24 bits: the order of the codes comes from how the deciding score rounds.
    "drowned": lambda n, k, d: (63 * lattice(n, d), 2.0**23 + lattice(k, d, seed=1)),
    "offset 5": lambda n, k, d: (gauss(n, d) + 5, gauss(k, d, seed=1) + 5),
    "little offset": lambda n, k, d: (gauss(n, d) + 20, gauss(k, d, seed=1) + 20),
    "collapsed": lambda n, k, d: (gauss(n, d), lattice(k, 1) + 1e-6 * gauss(k, d, seed=1)),
    "small codes": lambda n, k, d: (gauss(n, d), (torch.rand(k, d, generator=generator(1)) * 2 - 1) / k),
    "small latents": lambda n, k, d: (gauss(n, d) * 1e-6, gauss(k, d, seed=1)),
    "tiny latents": lambda n, k, d: (gauss(n, d) * 1e-9, unit(k, d, seed=1)),
    "zero latents": lambda n, k, d: (torch.zeros(n, d), gauss(k, d, seed=1)),
    "denormal": lambda n, k, d: (gauss(n, d) * 1e-22, gauss(k, d, seed=1) * 1e-22),
    "denormal codes": lambda n, k, d: (gauss(n, d), gauss(k, d, seed=1) * 1e-40),
    "denormal latents": lambda n, k, d: (gauss(n, d) * 1e-39, gauss(k, d, seed=1)),
    "large": lambda n, k, d: (gauss(n, d) * 1e15, gauss(k, d, seed=1) * 1e15),
    "huge latents": lambda n, k, d: (gauss(n, d) * 1e25, gauss(k, d, seed=1) * 1e12),
    "overflowing": lambda n, k, d: (gauss(n, d) * 1e19, gauss(k, d, seed=1) * 2e19),
    "zeros": lambda n, k, d: (torch.zeros(n, d), torch.zeros(k, d)),
    "scales": lambda n, k, d: (gauss(n, d) * 10 ** gauss(n, 1), gauss(k, d, seed=1) * 10 ** (5 * gauss(k, 1))),
    "scales of latents": lambda n, k, d: (gauss(n, d) * 10 ** (6 * gauss(n, 1)), gauss(k, d, seed=1)),
    "unit vectors": lambda n, k, d: (unit(n, d), unit(k, d, seed=1)),
    "one long code": lambda n, k, d: (gauss(n, d), torch.cat([gauss(k - 1, d, seed=1), 1e4 * gauss(1, d)])),
    "one great code": lambda n, k, d: (gauss(n, d), torch.cat([gauss(k - 1, d, seed=1), 1e6 * gauss(1, d)])),
}
"""N, K, D -> latents [N, D] and codebook [K, D]."""

ORDINARY = ("gauss", "near midpoints", "small codes", "small latents", "large", "unit vectors", "little offset")
"""Kinds on which a float16 screening decides nearly every latent."""
