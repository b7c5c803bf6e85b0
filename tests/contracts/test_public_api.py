"""The public names, frozen: a change here is a change for users and wants a line in CHANGELOG.md."""

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import vqtok
import vqtok.benchmarks

PUBLIC = {
    "BinarySphericalQuantizer": None,
    "DynamicTokenizer": None,
    "EmaQuantizer": "(dim: 'int', vocab_size: 'int', metric: 'Metric' = 'l2', *, decay: 'float' = 0.99, "
    "epsilon: 'float' = 1e-05, revive_below: 'float' = 0.0, kmeans_iterations: 'int' = 0, "
    "gradient: 'Gradient' = 'straight-through') -> 'None'",
    "FiniteScalarQuantizer": None,
    "GumbelQuantizer": None,
    "HierarchicalTokenizer": None,
    "ImageTokenizer": None,
    "IndexBackpropagationQuantizer": None,
    "LookupFreeQuantizer": None,
    "PreprocessSpec": None,
    "ProductQuantizer": None,
    "Quantized": "(vectors: 'Tensor', codes: 'Tensor', losses: 'Mapping[str, Tensor]') -> None",
    "Quantizer": None,
    "Reconstruction": "(pixels: 'Tensor', quantized: 'Quantized', "
    "statistics: 'Mapping[str, Tensor]' = <factory>) -> None",
    "ResidualQuantizer": None,
    "Selection": None,
    "SimQuantizer": None,
    "TokenGrid": "(ids: 'Tensor', vocab_size: 'int') -> None",
    "TokenRuns": "(ids: 'Tensor', lengths: 'Tensor', vocab_size: 'int') -> None",
    "Tokenizer": "(encoder: 'nn.Module', quantizer: 'Quantizer', decoder: 'nn.Module', "
    "preprocess: 'PreprocessSpec', output: 'Output' = 'pixels') -> 'None'",
    "Tokens": None,
    "VectorQuantizer": "(dim: 'int', vocab_size: 'int', metric: 'Metric' = 'l2', *, unit_latents: 'bool' = False, "
    "unit_vectors: 'bool' = False, gradient: 'Gradient' = 'straight-through', penalties: 'Sequence[Penalty]' = (), "
    "entropy_temperature: 'float' = 0.01) -> 'None'",
    "VqtokError": None,
    "build": "(preset: 'str', **options: 'Any') -> 'ImageTokenizer'",
    "export": "(tokenizer: 'ImageTokenizer', path: 'str | os.PathLike[str]', family: 'str', *, "
    "config: 'str | os.PathLike[str] | Mapping[str, Any] | None' = None, overwrite: 'bool' = False) -> 'None'",
    "export_onnx": "(tokenizer: 'ImageTokenizer', folder: 'str | os.PathLike[str]', *, "
    "overwrite: 'bool' = False) -> 'None'",
    "load": "(model: 'str | os.PathLike[str] | None' = None, *, device: 'str | torch.device' = 'cpu', "
    "precision: 'Precision' = 'float32', family: 'str | None' = None, "
    "config: 'str | os.PathLike[str] | Mapping[str, Any] | None' = None) -> 'ImageTokenizer'",
    "load_tokens": "(path: '_PathLike') -> 'Tokens'",
    "ops": None,
    "save_tokens": None,
    "train": None,
}
TOKENIZER = ["decode", "detokenize", "encode", "fingerprint", "latents", "preprocess", "save", "to", "tokenize"]
FOLDERS = [*vqtok.__path__], [*vqtok.benchmarks.__path__]
MODULES = sorted(
    {
        info.name
        for folder, prefix in zip(FOLDERS, ("vqtok.", "vqtok.benchmarks."), strict=True)
        for info in pkgutil.walk_packages(folder, prefix)
        if not re.search("__main__|kernels", info.name)
    }
)


def test_the_public_names_are_these():
    assert sorted(vqtok.__all__) == sorted(PUBLIC)
    assert dir(vqtok) == sorted(PUBLIC)
    assert all(hasattr(vqtok.Tokenizer, name) for name in TOKENIZER)
    with pytest.raises(AttributeError, match="tokenise"):
        vqtok.tokenise  # noqa: B018


@pytest.mark.parametrize("name", [name for name, signature in PUBLIC.items() if signature])
def test_signatures_do_not_move(name):
    assert str(inspect.signature(getattr(vqtok, name))) == PUBLIC[name]


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "ops"])
def test_public_names_are_documented(name):
    assert len(inspect.getdoc(getattr(vqtok, name)) or "") > 40


def test_the_type_checkers_view_is_the_lazy_one():
    source = inspect.getsource(vqtok)
    declared = set(re.findall(r"import (\w+) as \1", source))
    assert declared == set(PUBLIC)


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_are_true(module):
    failures, _ = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failures == 0


@pytest.mark.parametrize("module", MODULES)
def test_every_signature_is_annotated(module):
    loaded = importlib.import_module(module)
    classes = [loaded, *(x for _, x in inspect.getmembers(loaded, inspect.isclass) if x.__module__ == module)]
    bare = [
        f"{function.__qualname__}: {parameter}"
        for holder in classes
        for name, function in inspect.getmembers(holder, inspect.isfunction)
        if function.__module__ == module and function.__code__.co_filename == loaded.__file__
        for parameter in (*inspect.signature(function).parameters, "return")
        if parameter not in (*function.__annotations__, "self")
    ]
    assert bare == []
