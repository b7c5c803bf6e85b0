"""From what a user names to one sorted stream of images: folders, patterns, lists, tars, tables.

Sorted by the bytes of the keys, so that the plan does not depend on a file system's order. A folder is walked with its
sub-folders ordered as ``name/``, which gives the order of whole paths while only one folder's names are in memory.
"""

from __future__ import annotations

import csv
import glob
import heapq
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence

from vqtok.dataset import remote
from vqtok.dataset.items import Item
from vqtok.dataset.tables import Columns, is_saved_dataset, list_table, notes, saved_dataset_files
from vqtok.dataset.tars import IMAGE_SUFFIXES, list_tar
from vqtok.errors import ConfigError, InputError
from vqtok.store.token_keys import path_key

_LISTS = {".txt", ".csv", ".jsonl"}
CONTAINERS = _LISTS | {".tar", ".parquet", ".arrow"}
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_PATH_COLUMNS = ("path", "image", "file", "file_name", "filename")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def list_items(arguments: Sequence[str], columns: Columns | None = None) -> Iterator[Item]:
    """Yield the images that arguments name, sorted by key, each key once.

    Of a name that comes again from the same place, one is kept; from another place, the later one is refused.

    Args:
        arguments: folders, patterns, image files, ``.txt``/``.csv``/``.jsonl`` lists, tars (``x-{00..17}.tar``),
            parquet files, datasets saved to disk; all but the last two also in object stores (``s3://...``).
        columns: how to read lists and tables.

    Raises:
        ConfigError: nothing was given.
        InputError: a pattern or folder holds no image, or a list or archive cannot be read.
    """
    if not arguments:
        raise ConfigError("expected at least one image, folder, list or archive, got none")
    streams = [_stream(argument, columns or Columns(), alone=len(arguments) == 1) for argument in arguments]
    merged = streams[0] if len(streams) == 1 else heapq.merge(*streams, key=lambda item: item.key.encode())
    yield from unique(merged)


def unique(items: Iterable[Item]) -> Iterator[Item]:
    """Yield sorted items so that no key comes twice; see `list_items`.

    >>> [item.key for item in unique([Item("a", "x"), Item("a", "x"), Item("a", "y")])]
    ['a', 'a#2']
    """
    before: Item | None = None
    number = 1
    for item in items:
        if before is None or item.key != before.key:
            before, number = item, 1
            yield item
        elif item.place() != before.place():
            number += 1
            words = f"{item.key}: expected names that come once, but this one comes again: rename one of the images"
            yield Item(f"{item.key}#{number}", item.path, item.offset, item.size, refused=("duplicate", words))


def _stream(argument: str, columns: Columns, *, alone: bool) -> Iterator[Item]:
    """Return the sorted items of one argument; what it names must be there when this is called."""
    if remote.is_remote(argument):
        return _addresses(argument, columns, alone)
    if os.path.isdir(argument):
        if is_saved_dataset(argument):
            tables = [list_table(path, columns) for path in saved_dataset_files(argument)]
            return heapq.merge(*tables, key=lambda item: item.key.encode())
        return _folder_items(argument, alone)
    if os.path.lexists(argument):
        return _file(argument, columns)
    if _BRACES.search(argument):
        return heapq.merge(*(_file(path, columns) for path in expand_braces(argument)), key=lambda x: x.key.encode())
    if glob.has_magic(argument):
        parts = [_file(path, columns) for path in match_pattern(argument)]
        return heapq.merge(*parts, key=lambda item: item.key.encode())
    return _file(argument, columns)


def _addresses(url: str, columns: Columns, alone: bool) -> Iterator[Item]:
    """Return the items of addresses; images of a folder are named relative to it when it is the only argument."""
    if _BRACES.search(url):
        return heapq.merge(*(_file(path, columns) for path in expand_braces(url)), key=lambda x: x.key.encode())
    found = remote.list_addresses(url, frozenset(IMAGE_SUFFIXES))
    if found is None:
        return _file(url, columns)
    if glob.has_magic(url):
        return heapq.merge(*(_file(path, columns) for path in found), key=lambda item: item.key.encode())
    names = remote.relative(found, url) if alone else ((path, path) for path in found)
    return iter(sorted((Item(path_key(name), path) for name, path in names), key=lambda item: item.key.encode()))


def _file(path: str, columns: Columns) -> Iterator[Item]:
    suffix = os.path.splitext(path)[1].lower()
    if path.lower().endswith(_COMPRESSED):
        raise InputError(f"{path!r}: expected an uncompressed tar: images do not compress, unpack it with gunzip")
    if suffix == ".tar":
        return iter(list_tar(path))
    if suffix in (".parquet", ".arrow"):
        if remote.is_remote(path):
            raise ConfigError(f"{path!r}: expected a local table: tables in object stores are not read, fetch it")
        return list_table(path, columns)
    if suffix in _LISTS:
        data = remote.read_list(path) if remote.is_remote(path) else _list_bytes(path)
        return iter(sorted(parse_list(data, suffix, columns, path), key=lambda item: item.key.encode()))
    return iter([Item(path_key(path), path)])


def _list_bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise InputError(f"{path!r}: expected a list of images, got: {error.strerror}: check the path") from None


def parse_list(data: bytes, suffix: str, columns: Columns, name: str) -> list[Item]:
    r"""Read a list of paths: one a line (or NUL), or a ``.csv``/``.jsonl`` with a column ``path``.

    >>> parse_list(b"a.jpg\nb.jpg\n", ".txt", Columns(), "list.txt")[1].key
    'b.jpg'
    """
    if suffix == ".txt":
        lines = data.split(b"\0" if b"\0" in data else b"\n")
        rows: Iterable[dict[str, object]] = ({"path": os.fsdecode(x.rstrip(b"\r"))} for x in lines if x.strip())
    else:
        rows = _rows(data, suffix, name)
    items = []
    for row in rows:
        wanted = [columns.image] if columns.image else [x for x in _PATH_COLUMNS if x in row]
        path = row.get(wanted[0]) if wanted else None
        if not isinstance(path, str) or not path:
            raise InputError(f"{name!r}: expected a column of paths, got {', '.join(map(str, row))[:200]}: --image-col")
        key = str(row[columns.key]) if columns.key and columns.key in row else path
        place = path if remote.is_remote(path) else os.path.join(columns.root, path)
        if remote.is_remote(place):
            remote.file_system(place)  # what is not installed is said before a run begins
        items.append(Item(path_key(key), place, about=notes(columns, row)))
    if not items:
        raise InputError(f"{name!r}: expected paths of images, found none in this list")
    return items


def _rows(data: bytes, suffix: str, name: str) -> Iterator[dict[str, object]]:
    try:
        text = data.decode("utf-8-sig")
        if suffix == ".csv":
            yield from (dict[str, object](row) for row in csv.DictReader(io.StringIO(text, newline="")))
            return
        for line in text.splitlines():
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("expected an object a line")  # noqa: TRY301
                yield row
    except (ValueError, csv.Error, RecursionError) as error:
        raise InputError(f"{name!r}: expected a {suffix} list in UTF-8, got: {error}") from None


def expand_braces(pattern: str) -> list[str]:
    """Return the names that ``{000..127}`` stands for.

    >>> expand_braces("x-{08..10}.tar")
    ['x-08.tar', 'x-09.tar', 'x-10.tar']
    """
    found = _BRACES.search(pattern)
    if not found:
        return [pattern]
    first, last = found[1], found[2]
    if not int(first) <= int(last) or int(last) - int(first) >= 1_000_000:
        raise ConfigError(f"expected a rising range of at most a million, got {found[0]!r}")
    head, tail = pattern[: found.start()], pattern[found.end() :]
    numbers = [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
    return [f"{head}{number}{rest}" for number in numbers for rest in expand_braces(tail)]


def match_pattern(pattern: str) -> list[str]:
    """Return the files that match a pattern, sorted by bytes.

    Raises:
        InputError: none does.
    """
    paths = sorted((p for p in glob.glob(pattern, recursive=True) if not os.path.isdir(p)), key=os.fsencode)
    if not paths:
        raise InputError(f"{pattern}: expected files that match this pattern, found none")
    return paths


def walk_folder(folder: str) -> Iterator[str]:
    """Yield the paths of a folder's images, sorted by bytes, and of sub-folders that cannot be read.

    Those fail as inputs of their own, so nothing is left out unseen. A link out of the folder is not followed.
    """
    yield from _walk(folder, os.path.realpath(folder))


def _walk(folder: str, real: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            names = [
                f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name
                for entry in entries
                if _wanted(entry, real)
            ]
    except OSError:
        yield folder
        return
    # Texts sort like their UTF-8, but for escaped bytes that are none.
    names.sort(key=None if all(map(str.isascii, names)) else os.fsencode)
    for name in names:
        if name.endswith("/"):
            yield from _walk(os.path.join(folder, name[:-1]), real)
        else:
            yield os.path.join(folder, name)


def _wanted(entry: os.DirEntry[str], real: str) -> bool:
    if entry.is_dir(follow_symlinks=False):
        return True
    if os.path.splitext(entry.name)[1].lower() not in IMAGE_SUFFIXES:
        return False
    if not entry.is_symlink():
        return True
    return os.path.realpath(entry.path).startswith(real + os.sep) and not os.path.isdir(entry.path)


def _folder_items(folder: str, alone: bool) -> Iterator[Item]:
    """Yield a folder's images, named relative to it when it is the only argument."""
    cut = len(os.path.join(folder, "")) if alone else 0
    empty = True
    for path in walk_folder(folder):
        empty = False
        yield Item(path_key(path[cut:] or path), path)
    if empty:
        raise InputError(
            f"{folder}: expected images ({' '.join(sorted(IMAGE_SUFFIXES))}), found none in this folder: "
            "archives and tables are named by a pattern, as in 'folder/*.tar'"
        )
