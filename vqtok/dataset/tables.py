"""Images in tables: parquet files, and datasets that Hugging Face's ``datasets`` saved to disk. Needs pyarrow."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from vqtok.dataset.items import Item
from vqtok.errors import ImageError, InputError, ResourceError
from vqtok.store.token_keys import path_key

_IMAGE_NAMES = ("image", "img", "jpg", "png", "bytes", "image_bytes", "path", "file_name")
_LABELS = {"label": "label", "class": "label", "caption": "caption", "text": "caption"}


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of lists and tables mean what; "" for the usual names.

    Attributes:
        image: a column of bytes, of ``{bytes, path}``, or of paths.
        key: a column of names; else the path is the name, or the number of the row.
        label: what goes into the rows as ``label``.
        caption: what goes into the rows as ``caption``.
        root: folder of relative paths; "" for the current one.
    """

    image: str = ""
    key: str = ""
    label: str = ""
    caption: str = ""
    root: str = ""


def notes(columns: Columns, row: Mapping[str, object]) -> dict[str, object]:
    """Return what of a row travels with its image.

    >>> notes(Columns(caption="words"), {"words": "a cat", "label": 3, "x": 1})
    {'caption': 'a cat', 'label': 3}
    """
    names = {name: meaning for name, meaning in _LABELS.items() if not getattr(columns, meaning)}
    names |= {getattr(columns, meaning): meaning for meaning in ("label", "caption") if getattr(columns, meaning)}
    return {names[name]: value for name, value in row.items() if name in names and value is not None}


def pyarrow(module: str) -> Any:
    """Return a module of pyarrow, or say how to get it."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        raise ResourceError("expected pyarrow for tables: install it with: pip install 'vqtok[parquet]'") from None


def list_table(path: str, columns: Columns) -> Iterator[Item]:
    """Yield the images of a table, sorted by key; of a damaged one, an item that says so.

    Raises:
        InputError: there is none, or no column holds images.
    """
    try:
        table = _open(path)
        image = _image_column(table.schema_names, path, columns)
        wanted = [
            name for name in table.schema_names if name in {columns.key, columns.label, columns.caption, *_LABELS}
        ]
        rows: list[Item] = []
        for number, row in enumerate(table.rows(wanted, image)):
            name = row.get(columns.key) if columns.key else row.get("__path__")
            key = path_key(f"{path_key(path)}/{name if name is not None else f'{number:08d}'}")
            rows.append(Item(key, path, row=number, about=notes(columns, row)))
    except FileNotFoundError:
        raise InputError(f"{path!r}: expected a table of images, found nothing of that name") from None
    except (OSError, ValueError, KeyError, *_arrow_errors()) as error:
        words = f"{path_key(path)}: expected a table of images, got: {' '.join(str(error).split())[:200]}"
        return iter([Item(path_key(path), path, refused=("corrupt", words))])
    return iter(sorted(rows, key=lambda item: item.key.encode()))


def is_saved_dataset(folder: str) -> bool:
    """Tell whether a folder is what ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in ("state.json", "dataset_dict.json"))


def saved_dataset_files(folder: str) -> list[str]:
    """Return the arrow files of a saved dataset, in its own order.

    Raises:
        InputError: its description is damaged or names files elsewhere.
    """
    try:
        if os.path.isfile(os.path.join(folder, "dataset_dict.json")):
            with open(os.path.join(folder, "dataset_dict.json"), encoding="utf-8") as file:
                splits = [str(split) for split in json.load(file)["splits"]]
            parts = [os.path.join(folder, _plain(split)) for split in splits]
            return [path for part in parts for path in saved_dataset_files(part)]
        with open(os.path.join(folder, "state.json"), encoding="utf-8") as file:
            names = [str(row["filename"]) for row in json.load(file)["_data_files"]]
        return [os.path.join(folder, _plain(name)) for name in names]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{folder!r}: expected a dataset saved by save_to_disk, got: {error}") from None


def _plain(name: str) -> str:
    if os.path.basename(name) != name or name in ("", ".", ".."):
        raise ValueError(f"a name that leaves the folder: {name[:80]!r}")
    return name


def read_cell(path: str, row: int, columns: Columns) -> bytes | str:
    """Return the bytes of an image of a table, or the path that the table names.

    Raises:
        ImageError: ``missing`` for an empty cell, ``unreadable`` for a table that cannot be read or is damaged.
    """
    try:
        table = _open(path)
        value = table.cell(_image_column(table.schema_names, path, columns), row)
    except (OSError, ValueError, KeyError, IndexError, InputError, *_arrow_errors()) as error:
        raise ImageError("unreadable", f"expected a readable table, got: {str(error)[:200]}.") from None
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, (bytes, str)) or not value:
        raise ImageError("missing", "expected bytes or a path in its cell, found none.")
    return value if isinstance(value, bytes) else os.path.join(columns.root, value)


def _image_column(names: list[str], path: str, columns: Columns) -> str:
    wanted = [columns.image] if columns.image else [name for name in _IMAGE_NAMES if name in names]
    if not wanted or wanted[0] not in names:
        raise InputError(f"{path!r}: expected a column of images, got {', '.join(names)}: name it with --image-col")
    return wanted[0]


def _arrow_errors() -> tuple[type[Exception], ...]:
    return (pyarrow("pyarrow").ArrowException,)


@dataclass(frozen=True, slots=True, eq=False)
class _Parquet:
    """A parquet file, of which one group of rows at a time is in memory."""

    file: Any
    starts: tuple[int, ...]

    @property
    def schema_names(self) -> list[str]:
        return [str(name) for name in self.file.schema_arrow.names]

    def rows(self, wanted: list[str], image: str) -> Iterator[dict[str, Any]]:
        paths = self._path_leaf(image)
        for group in range(self.file.num_row_groups):
            table = self.file.read_row_group(group, columns=[*wanted, *([paths] if paths else [])])
            if not table.num_columns:
                yield from ({} for _ in range(self.file.metadata.row_group(group).num_rows))
                continue
            for row in table.to_pylist():
                yield _named(row, image)

    def _path_leaf(self, image: str) -> str:
        kind = str(self.file.schema_arrow.field(image).type)
        return image if kind in ("string", "large_string") else f"{image}.path" if "path" in kind else ""

    def cell(self, column: str, row: int) -> Any:
        group = next(i for i in reversed(range(len(self.starts))) if self.starts[i] <= row)
        return _group(self, group, column)[row - self.starts[group]].as_py()


@lru_cache(maxsize=8)
def _group(table: _Parquet, group: int, column: str) -> Any:
    return table.file.read_row_group(group, columns=[column]).column(0)


@dataclass(frozen=True, slots=True, eq=False)
class _Arrow:
    """A memory-mapped arrow file."""

    batches: Any
    starts: tuple[int, ...]

    @property
    def schema_names(self) -> list[str]:
        return [str(name) for name in self.batches[0].schema.names] if self.batches else []

    def rows(self, wanted: list[str], image: str) -> Iterator[dict[str, Any]]:
        for batch in self.batches:
            for i in range(batch.num_rows):
                row = {name: batch.column(name)[i].as_py() for name in wanted}
                cell = batch.column(image)[i]
                if hasattr(cell, "keys") and "path" in cell:
                    row["__path__"] = cell["path"].as_py()
                yield row

    def cell(self, column: str, row: int) -> Any:
        batch = next(i for i in reversed(range(len(self.starts))) if self.starts[i] <= row)
        return self.batches[batch].column(column)[row - self.starts[batch]].as_py()


def _named(row: dict[str, Any], image: str) -> dict[str, Any]:
    cell = row.pop(image, None) if image not in _LABELS else row.get(image)
    name = cell.get("path") if isinstance(cell, Mapping) else cell
    return {**row, "__path__": name} if isinstance(name, str) else row


@lru_cache(maxsize=4)
def _open(path: str) -> _Parquet | _Arrow:
    if path.lower().endswith(".parquet"):
        file = pyarrow("pyarrow.parquet").ParquetFile(path, memory_map=True)
        return _Parquet(file, _starts([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]))
    arrow = pyarrow("pyarrow")
    with arrow.memory_map(path) as source:
        try:
            batches = list(arrow.ipc.open_stream(source))
        except arrow.ArrowInvalid:
            reader = arrow.ipc.open_file(source)
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    return _Arrow(batches, _starts([batch.num_rows for batch in batches]))


def _starts(lengths: list[int]) -> tuple[int, ...]:
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    return tuple(starts[:-1])
