"""Which files a checkpoint is: one, the shards of an index, or the parts that a family publishes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from vqtok.adapters.containers import Entries, join, read_entries
from vqtok.adapters.family import Family
from vqtok.errors import ConfigError, InputError, escape

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".pkl")
# Of a folder with several weights, these are meant.
_NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin")
_INDEXES = tuple(f"{name}.index.json" for name in _NAMES)


def find_parts(path: Path, families: Iterable[Family]) -> Entries:
    """Return the tensors of a checkpoint, wherever it keeps them.

    Args:
        path: a file, an index of shards, or a folder.
        families: whose parts are known.

    Raises:
        InputError: there is nothing, or nothing of weights.
        ConfigError: several weights lie in the folder, none of which is known to be meant.
    """
    if (parts := _parts(path, families)) is not None:
        return parts
    if not path.is_dir():
        return _one(path)
    for name in (*_INDEXES, *_NAMES):
        if (path / name).is_file():
            return _one(path / name)
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if len(files) > 1:
        raise ConfigError(f"expected one checkpoint in {str(path)!r}, got {_words(files)}: give the path of one")
    if not files:
        raise InputError(f"{str(path)!r}: expected a model folder or a checkpoint in it, found neither")
    return read_entries(files[0])


def _parts(path: Path, families: Iterable[Family]) -> Entries | None:
    """Return the tensors of a family's several files, when the path is one of them or the folder where all lie."""
    folder = path if path.is_dir() else path.parent
    for parts in (parts for family in families for parts in family.parts):
        if all((folder / name).is_file() for name in parts) and path in (folder, *(folder / name for name in parts)):
            return join({prefix: read_entries(folder / name) for name, prefix in parts.items()})
    return None


def _one(path: Path) -> Entries:
    return _sharded(path) if path.name.endswith(".index.json") else read_entries(path)


def _sharded(index: Path) -> Entries:
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{str(index)!r}: expected an index of shards, but {escape(str(error))}") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(f"{str(index)!r}: expected shards beside the index, got {escape(str(name))!r}")
    parts: Entries = {}
    for name in sorted(names):
        parts |= read_entries(index.parent / name)
    return parts


def _words(files: list[Path]) -> str:
    return ", ".join(escape(file.name) for file in files[:9])
