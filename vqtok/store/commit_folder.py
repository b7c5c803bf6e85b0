"""The same promise for a folder of files: all of them in place, or the folder as it was."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from vqtok.errors import ConfigError, OutputError
from vqtok.store.commit import (
    Data,
    Verify,
    as_buffers,
    compare,
    output_errors,
    read_back,
    real_target,
    sync_folder,
    write_new_file,
)
from vqtok.store.temporary import temporary_path

_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV}


def commit_folder(
    folder: str | os.PathLike[str], files: Mapping[str, Data], *, verify: Verify | None = None, overwrite: bool = False
) -> None:
    """Write a flat folder of files so that all are whole and durable, or the folder is as it was.

    Args:
        folder: the folder to write; the folder above must exist. An empty folder may be there already.
        files: content by file name.
        verify: called with the temporary folder before it gets its final name; without one, bytes are compared.
        overwrite: replace a folder that holds nothing but files of these names; a folder with anything else in it is
            never deleted.

    Raises:
        ConfigError: a file name is not a plain name.
        OutputError: the folder exists, cannot be written, or does not read back; its old content is intact.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp(), "model")
    >>> commit_folder(folder, {"a.txt": b"one", "b.txt": b"two"})
    >>> sorted(path.name for path in folder.iterdir())
    ['a.txt', 'b.txt']
    """
    target = real_target(folder)
    _check_names(files)
    buffers = {name: as_buffers(data) for name, data in files.items()}

    def same(written: Path) -> None:
        for name, pieces in buffers.items():
            compare(written / name, pieces)

    with output_errors(target):
        _refuse_occupied(target, files, overwrite)
        temporary = temporary_path(target)
        os.mkdir(temporary)
        try:
            for name, pieces in buffers.items():
                write_new_file(temporary / name, pieces)
            sync_folder(temporary)
            read_back(target, temporary, verify or same)
            _publish(temporary, target, overwrite)
            sync_folder(target.parent)  # before the old files go: a power cut must not find neither
        finally:
            _remove(temporary, files)


def check_folder(folder: str | os.PathLike[str], names: Iterable[str], *, overwrite: bool = False) -> None:
    """Refuse what `commit_folder` would refuse of files of these names, before they are made.

    Raises:
        OutputError: the folder holds something that may not be replaced.
    """
    target = real_target(folder)
    with output_errors(target):
        _refuse_occupied(target, names, overwrite)


def _check_names(names: Iterable[str]) -> None:
    """Refuse names that would leave the folder."""
    for name in names:
        if name in {"", ".", ".."} or os.path.basename(name) != name or "\0" in name:
            raise ConfigError(f"expected a plain file name, got {name!r}")


def _refuse_occupied(target: Path, names: Iterable[str], overwrite: bool) -> None:
    """Refuse a folder that holds something, unless it is of this very kind and may be overwritten."""
    try:
        present = set(os.listdir(target))
    except FileNotFoundError:
        return
    if present and not overwrite:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
    if foreign := sorted(present - set(names)):
        raise OutputError(
            f"cannot overwrite {str(target)!r}: expected nothing but {', '.join(sorted(names))} in it, but it also "
            f"holds {foreign[0]!r}, which would be lost: move that away or choose another folder"
        )


def _publish(temporary: Path, target: Path, overwrite: bool) -> None:
    """Give the temporary folder its final name; old content, if any, ends at the temporary name."""
    if not (overwrite and os.path.isdir(target) and os.listdir(target)):
        os.rename(temporary, target)  # replaces an empty folder, and fails on one that somebody filled meanwhile
        return
    try:
        _exchange(temporary, target)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        _rename_twice(temporary, target)


def _exchange(first: Path, second: Path) -> None:
    """Swap two names in one atomic step (Linux; ENOSYS elsewhere)."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if library.renameat2(here, os.fsencode(first), here, os.fsencode(second), swap):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _rename_twice(temporary: Path, target: Path) -> None:
    """Swap by way of a third name, where no exchange exists; a failure in between is undone.

    A kill exactly in between leaves the old content under the name that ends in ``.old``, which nobody sweeps.
    """
    aside = temporary.with_suffix(".old")
    os.rename(target, aside)
    try:
        os.rename(temporary, target)
    except BaseException:
        os.rename(aside, target)
        raise
    os.rename(aside, temporary)


def _remove(folder: Path, names: Iterable[str]) -> None:
    """Remove the temporary folder with the new files (after a failure) or the old ones (after an exchange)."""
    for name in names:
        with suppress(OSError):
            os.unlink(folder / name)
    with suppress(OSError):
        os.rmdir(folder)
