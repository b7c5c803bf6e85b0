"""How large the tiles of `nearest_code.screen` are: fixed tables, so a first call costs a compilation and no search.

Static counts decided (tests/contracts/test_triton_budgets.py holds them): a block of 128 rows by 4 warps leaves two
blocks of a multiprocessor their registers, so one multiplies while the other compares. A space of up to 256 dimensions
stays in shared memory; wider ones are read again for each tile of codes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tiles:
    """The sizes of one kernel.

    Attributes:
        max_dim: the largest D they are for.
        block_n: rows a program.
        block_k: codes a tile; a group is a quarter of it.
        block_d: dimensions a product, at most.
        warps: warps a program.
        stages: tiles on their way from memory.
        measure_n: rows of `measure` a program.
        decide_n: rows of `decide` a program.
        search_n: rows of `search` at a time.
        search_k: its codes at a time; many for few rows, because an element of a row is loaded for all of them.
    """

    max_dim: int
    block_n: int
    block_k: int
    block_d: int
    warps: int
    stages: int
    measure_n: int = 32
    decide_n: int = 16
    search_n: int = 8
    search_k: int = 512

    def width_of(self, dim: int) -> int:
        """Return how many dimensions a product has for latents of ``dim``: a power of two, at least 16."""
        return min(self.block_d, max(16, 1 << (dim - 1).bit_length()))

    def padded(self, dim: int) -> int:
        """Return the dimensions of all products of a score: ``dim`` or more."""
        return -(-dim // self.width_of(dim)) * self.width_of(dim)


_ANY = 1 << 31

TILES = {
    "sm_80": (
        Tiles(64, 128, 64, 64, 4, 3),
        Tiles(128, 128, 64, 128, 4, 3),
        Tiles(256, 64, 64, 256, 4, 3),
        Tiles(_ANY, 128, 64, 64, 4, 3),
    ),
    # 99 KiB of shared memory: 8.6, 8.9 and 12.x
    "sm_86": (
        Tiles(64, 128, 64, 64, 4, 3),
        Tiles(128, 128, 64, 128, 4, 2),
        Tiles(_ANY, 128, 64, 64, 4, 3),
    ),
    "sm_90": (
        Tiles(64, 128, 128, 64, 4, 3),
        Tiles(128, 128, 128, 128, 4, 3),
        Tiles(256, 128, 64, 256, 4, 3),
        Tiles(_ANY, 128, 128, 64, 4, 3),
    ),
    "sm_100": (
        Tiles(64, 128, 128, 64, 4, 3),
        Tiles(128, 128, 128, 128, 4, 3),
        Tiles(256, 128, 64, 256, 4, 3),
        Tiles(_ANY, 128, 128, 64, 4, 3),
    ),
    # 64 KiB of shared memory; matrices of 16 x 16 x 16
    "gfx9": (
        Tiles(64, 128, 64, 64, 4, 2),
        Tiles(_ANY, 64, 64, 64, 4, 2),
    ),
    # Small, so that small inputs have several of everything.
    "interpreter": (
        Tiles(20, 32, 64, 32, 1, 1, search_k=64),
        Tiles(_ANY, 32, 64, 16, 1, 1, search_k=64),
    ),
}
"""By family of devices; in a family the first row that takes D is used."""


def tiles_for(family: str, dim: int) -> Tiles:
    """Return the sizes for latents of ``dim`` dimensions on a family of devices."""
    return next(tiles for tiles in TILES[family] if dim <= tiles.max_dim)


def family_of(capability: tuple[int, int], is_amd: bool) -> str:
    """Return the family of a device with a compute capability."""
    if is_amd:
        return "gfx9"
    return {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}.get(capability, "sm_86")
