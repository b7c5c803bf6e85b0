"""One writer a folder: a lock that goes with its process, so none is ever stale."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vqtok.errors import OutputError
from vqtok.store.commit import output_errors


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, made when it is not there, while a folder is written to.

    Args:
        path: the file; its folder must exist. Who holds it may remove it.

    Raises:
        OutputError: another process holds it, or it cannot be made.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "LOCK")
    >>> with locked(path):
    ...     path.read_text().split()[0]
    'process'
    """
    with output_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return  # a file system that knows no locks
        raise _taken(descriptor, path) from None
    if not _is_still(descriptor, path):  # its holder removed it after we opened it
        raise _taken(descriptor, path)
    with suppress(OSError, AttributeError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)


def _is_still(descriptor: int, path: Path) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def _taken(descriptor: int, path: Path) -> OutputError:
    holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "another process"
    return OutputError(
        f"{str(path.parent)!r}: expected a run folder that nobody writes to, but {holder} does: wait for it"
    )
