"""Quantizers: vectors only, the last axis is the space, one paper a file."""

from vqtok.quantizers.base import Quantizer as Quantizer
from vqtok.quantizers.ema import EmaQuantizer as EmaQuantizer
from vqtok.quantizers.vector import VectorQuantizer as VectorQuantizer
