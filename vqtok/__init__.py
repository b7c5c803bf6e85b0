"""vqtok: images to discrete tokens and back.

Importing this package loads neither torch nor Pillow; each public name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqtok import ops as ops
    from vqtok.dynamic import DynamicTokenizer as DynamicTokenizer
    from vqtok.errors import VqtokError as VqtokError
    from vqtok.exporting import export as export
    from vqtok.hierarchy import HierarchicalTokenizer as HierarchicalTokenizer
    from vqtok.image_tokenizer import ImageTokenizer as ImageTokenizer
    from vqtok.images import PreprocessSpec as PreprocessSpec
    from vqtok.loading import build as build
    from vqtok.loading import load as load
    from vqtok.onnx import export_onnx as export_onnx
    from vqtok.quantizers import BinarySphericalQuantizer as BinarySphericalQuantizer
    from vqtok.quantizers import EmaQuantizer as EmaQuantizer
    from vqtok.quantizers import FiniteScalarQuantizer as FiniteScalarQuantizer
    from vqtok.quantizers import GumbelQuantizer as GumbelQuantizer
    from vqtok.quantizers import IndexBackpropagationQuantizer as IndexBackpropagationQuantizer
    from vqtok.quantizers import LookupFreeQuantizer as LookupFreeQuantizer
    from vqtok.quantizers import ProductQuantizer as ProductQuantizer
    from vqtok.quantizers import Quantizer as Quantizer
    from vqtok.quantizers import ResidualQuantizer as ResidualQuantizer
    from vqtok.quantizers import SimQuantizer as SimQuantizer
    from vqtok.quantizers import VectorQuantizer as VectorQuantizer
    from vqtok.store import load_tokens as load_tokens
    from vqtok.store import save_tokens as save_tokens
    from vqtok.tokenizer import Tokenizer as Tokenizer
    from vqtok.training import train as train
    from vqtok.types import Quantized as Quantized
    from vqtok.types import Reconstruction as Reconstruction
    from vqtok.types import Selection as Selection
    from vqtok.types import TokenGrid as TokenGrid
    from vqtok.types import TokenRuns as TokenRuns
    from vqtok.types import Tokens as Tokens

_HOME = {
    "BinarySphericalQuantizer": "quantizers",
    "DynamicTokenizer": "dynamic",
    "EmaQuantizer": "quantizers",
    "FiniteScalarQuantizer": "quantizers",
    "GumbelQuantizer": "quantizers",
    "HierarchicalTokenizer": "hierarchy",
    "ImageTokenizer": "image_tokenizer",
    "IndexBackpropagationQuantizer": "quantizers",
    "LookupFreeQuantizer": "quantizers",
    "PreprocessSpec": "images",
    "ProductQuantizer": "quantizers",
    "Quantized": "types",
    "Quantizer": "quantizers",
    "Reconstruction": "types",
    "ResidualQuantizer": "quantizers",
    "Selection": "types",
    "SimQuantizer": "quantizers",
    "TokenGrid": "types",
    "TokenRuns": "types",
    "Tokenizer": "tokenizer",
    "Tokens": "types",
    "VectorQuantizer": "quantizers",
    "VqtokError": "errors",
    "build": "loading",
    "export": "exporting",
    "export_onnx": "onnx",
    "load": "loading",
    "load_tokens": "store",
    "ops": "",
    "save_tokens": "store",
    "train": "training",
}

__all__ = [*_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vqtok' has no attribute {name!r}")
    home = _HOME[name]
    value = getattr(import_module(f"vqtok.{home}"), name) if home else import_module(f"vqtok.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
