"""Quantizers: vectors only, the last axis is the space, one paper a file."""

from vqtok.quantizers.base import Quantizer as Quantizer
from vqtok.quantizers.binary_spherical import BinarySphericalQuantizer as BinarySphericalQuantizer
from vqtok.quantizers.ema import EmaQuantizer as EmaQuantizer
from vqtok.quantizers.finite_scalar import FiniteScalarQuantizer as FiniteScalarQuantizer
from vqtok.quantizers.gumbel import GumbelQuantizer as GumbelQuantizer
from vqtok.quantizers.index_backpropagation import IndexBackpropagationQuantizer as IndexBackpropagationQuantizer
from vqtok.quantizers.levels import LevelsQuantizer as LevelsQuantizer
from vqtok.quantizers.lookup_free import LookupFreeQuantizer as LookupFreeQuantizer
from vqtok.quantizers.product import ProductQuantizer as ProductQuantizer
from vqtok.quantizers.residual import ResidualQuantizer as ResidualQuantizer
from vqtok.quantizers.simvq import SimQuantizer as SimQuantizer
from vqtok.quantizers.vector import VectorQuantizer as VectorQuantizer
