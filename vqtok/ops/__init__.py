"""Ops on latents and codebooks: one meaning each (reference.py), many backends (table.py), the same answer from all."""

from vqtok.ops.averages import Averages as Averages
from vqtok.ops.averages import update_averages as update_averages
from vqtok.ops.convolution import PreparedConv3x3 as PreparedConv3x3
from vqtok.ops.convolution import Products as Products
from vqtok.ops.convolution import conv3x3 as conv3x3
from vqtok.ops.convolution import convolves_natively as convolves_natively
from vqtok.ops.lookup import nearest_code as nearest_code
from vqtok.ops.normalization import group_affine as group_affine
from vqtok.ops.normalization import group_norm as group_norm
from vqtok.ops.normalization import group_norm_silu as group_norm_silu
from vqtok.ops.norms import half_squared_norms as half_squared_norms
from vqtok.ops.norms import normalize_codebook as normalize_codebook
from vqtok.ops.norms import normalize_latents as normalize_latents
from vqtok.ops.passage import pass_through as pass_through
from vqtok.ops.passage import rotate as rotate
from vqtok.ops.passage import straight_through as straight_through
from vqtok.ops.prepared import PreparedCodebook as PreparedCodebook
from vqtok.ops.ragged import compact as compact
from vqtok.ops.ragged import pad as pad
from vqtok.ops.registry import explain as explain
from vqtok.ops.registry import use_backend as use_backend
from vqtok.ops.scalars import finite_scalar as finite_scalar
from vqtok.ops.scalars import finite_scalar_vectors as finite_scalar_vectors
from vqtok.ops.statistics import code_statistics as code_statistics

__all__ = [
    "Averages",
    "PreparedCodebook",
    "PreparedConv3x3",
    "Products",
    "code_statistics",
    "compact",
    "conv3x3",
    "convolves_natively",
    "explain",
    "finite_scalar",
    "finite_scalar_vectors",
    "group_affine",
    "group_norm",
    "group_norm_silu",
    "half_squared_norms",
    "nearest_code",
    "normalize_codebook",
    "normalize_latents",
    "pad",
    "pass_through",
    "rotate",
    "straight_through",
    "update_averages",
    "use_backend",
]
