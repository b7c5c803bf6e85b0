"""Grid tokenizers as ONNX graphs of standard operators, for programs without torch."""

from __future__ import annotations

import importlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqtok.errors import ConfigError, MismatchError, ResourceError, escape
from vqtok.exporting import has_decoder, noise
from vqtok.grid import GridTokenizer
from vqtok.image_tokenizer import ImageTokenizer
from vqtok.standard_ops import standardize
from vqtok.store.commit_folder import check_folder, commit_folder

OPSET = 18
TOLERANCE = 1e-4  # of pixels, where the model's range has length 2
_CODES_APART = 0.05  # share of an image of noise; sums are rounded in another order, and fresh codebooks lie close
_SAME_ROWS = 1e-6
_MAX_BYTES = 2**31 - 1  # what a protobuf can hold


@dataclass(frozen=True, slots=True)
class _Graph:
    """One direction: the method, the names of what goes in and out, and an example with its dynamic dimensions."""

    method: str
    names: tuple[str, str]
    example: Tensor
    dynamic: dict[int, Any]


def export_onnx(tokenizer: ImageTokenizer, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a folder of two graphs: ``encode.onnx`` and ``decode.onnx``.

    ``encode`` takes ``pixels`` float32 [batch, 3, H, W] in the model's own range and gives ``ids`` int64 [batch, h, w]
    (or [batch, h, w, Q]); ``decode`` takes those and gives pixels. Batch, height and width are free; those of a model
    that resizes its images to one size are that size. How images become pixels is in each file's metadata
    (``vqtok.preprocess``), with fingerprint and vocabulary. Of a model without a decoder there is only ``encode.onnx``.

    The nearest code is the greatest of ``latents @ codebook.T - half_norms``, of equal scores the lowest code, which is
    vqtok's meaning but for the order in which float32 sums are rounded. So codes are equal wherever the best score
    leads the second by more than this rounding (some 1e-5 of the scores), and may be either of the two elsewhere.
    ``encode`` holds all scores at once: positions x codes x 4 bytes. Both graphs are run with onnxruntime on an image
    of noise before the folder gets its name.

    Args:
        tokenizer: a grid tokenizer in float32.
        folder: must not exist yet, unless overwrite.
        overwrite: replace a folder that holds these files and nothing else.

    Raises:
        ConfigError: no grid tokenizer, another precision, or more than 2 GiB of weights.
        ResourceError: the extra ``vqtok[onnx]`` is not installed.
        MismatchError: onnxruntime gave other codes or pixels.
        OutputError: the folder exists or cannot be written.

    >>> import importlib.util, tempfile, vqtok
    >>> there = all(map(importlib.util.find_spec, ("onnx", "onnxruntime", "onnxscript")))
    >>> if there:
    ...     vqtok.export_onnx(vqtok.build("vqvae-tiny"), tempfile.mkdtemp() + "/graphs")
    """
    if not isinstance(tokenizer, GridTokenizer):
        raise ConfigError(f"expected a tokenizer of grids, got {type(tokenizer).__name__}: its runs are no ONNX tensor")
    if tokenizer.precision != "float32":
        raise ConfigError(f"expected a tokenizer in float32, got precision {tokenizer.precision!r}: load it anew")
    _check_extra()
    check_folder(folder, ("encode.onnx", "decode.onnx"), overwrite=overwrite)  # before the work of minutes
    with _evaluating(tokenizer):
        files = {f"{graph.method}.onnx": _exported(tokenizer, graph) for graph in _graphs(tokenizer)}
        with tempfile.TemporaryDirectory() as place:  # what is wrong with the numbers is no error of the disk
            for name, content in files.items():
                Path(place, name).write_bytes(content)
            check_graphs(tokenizer, Path(place))
    commit_folder(folder, files, overwrite=overwrite)


def check_graphs(tokenizer: GridTokenizer, folder: Path) -> None:
    """Raise MismatchError unless onnxruntime computes what the tokenizer does, but for rounding."""
    import onnxruntime

    for graph in _graphs(tokenizer):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        path = folder / f"{graph.method}.onnx"
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (came,) = session.run(None, {graph.names[0]: graph.example.cpu().numpy()})
        with torch.no_grad():
            wanted = _Method(tokenizer, graph.method)(graph.example).cpu()
        _compare(tokenizer, graph.method, torch.from_numpy(came), wanted)


def _compare(tokenizer: GridTokenizer, method: str, came: Tensor, wanted: Tensor) -> None:
    """Compare pixels, or the vectors of codes: of rows that are the same, whichever code came is right."""
    if method == "encode":
        with torch.no_grad():
            vectors, others = (tokenizer.quantizer.decode(x.to(tokenizer.device)) for x in (wanted, came))
        limit, what = _CODES_APART, "share of other codes"
        found = ((vectors - others).abs().amax(dim=-1) > _SAME_ROWS).float().mean().item()
    else:
        limit, what = TOLERANCE * (tokenizer.spec.high - tokenizer.spec.low) / 2, "largest difference of pixels"
        found = (came - wanted).abs().max().item()
    if not found <= limit:
        raise MismatchError(f"expected a {what} of at most {limit:.2g} in onnxruntime, got {found:.2g}")


def _graphs(tokenizer: GridTokenizer) -> Iterator[_Graph]:
    """Yield the directions that a model has, with noise to try them on."""
    dim, factor, size = torch.export.Dim, tokenizer.factor, tokenizer.spec.size
    height, width = (size, size) if size else (8 * factor, 12 * factor)
    pixels = noise(tokenizer.spec, 2, height, width).to(tokenizer.device)
    free = {} if size else {2: factor * dim("height", min=1), 3: factor * dim("width", min=1)}
    yield _Graph("encode", ("pixels", "ids"), pixels, {0: dim("batch"), **free})
    if has_decoder(tokenizer):
        with torch.no_grad():
            ids = tokenizer.encode_pixels(pixels)
        free = {} if size else {1: dim("height", min=1), 2: dim("width", min=1)}
        yield _Graph("decode", ("ids", "pixels"), ids, {0: dim("batch"), **free})


class _Method(nn.Module):
    """One direction of a tokenizer as a module of its own."""

    def __init__(self, tokenizer: GridTokenizer, method: str) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.call = tokenizer.encode_pixels if method == "encode" else tokenizer.decode_ids

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def _exported(tokenizer: GridTokenizer, graph: _Graph) -> bytes:
    """Return a graph's file: traced, ops of vqtok replaced by standard ones, translated."""
    with torch.no_grad(), _quiet(), _translation_errors():
        traced = torch.export.export(
            _Method(tokenizer, graph.method), (graph.example,), dynamic_shapes=({**graph.dynamic},)
        )
        program = torch.onnx.export(
            standardize(traced.module()),
            (graph.example,),
            input_names=[graph.names[0]],
            output_names=[graph.names[1]],
            dynamic_shapes=({**graph.dynamic},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None or sum(x.nbytes for x in tokenizer.inference_tensors().values()) > _MAX_BYTES:
        raise ConfigError("expected a model of at most 2 GiB, which is all that one ONNX file holds")
    proto = program.model_proto
    for key, value in _metadata(tokenizer).items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString(deterministic=True)


def _metadata(tokenizer: GridTokenizer) -> Mapping[str, str]:
    return {
        "vqtok.fingerprint": tokenizer.fingerprint,
        "vqtok.preprocess": json.dumps(tokenizer.spec.model_dump(mode="json"), sort_keys=True),
        "vqtok.vocab_size": str(tokenizer.vocab_size),
        "vqtok.version": version("vqtok"),
    }


@contextmanager
def _evaluating(tokenizer: GridTokenizer) -> Iterator[None]:
    training = tokenizer.training
    tokenizer.eval()
    try:
        yield
    finally:
        tokenizer.train(training)


@contextmanager
def _translation_errors() -> Iterator[None]:
    """Turn what torch's tracer and exporter refuse into one error."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except (TorchDynamoException, torch.onnx.OnnxExporterError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        told = next((line for line in lines if line.startswith("<class")), lines[0] if lines else type(error).__name__)
        raise ConfigError(f"expected a model that torch can translate to ONNX, but {escape(told)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings and log lines, which are about itself, from the caller."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _check_extra() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ResourceError(f"expected the package {name} ({error}): pip install 'vqtok[onnx]'") from None
