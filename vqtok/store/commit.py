"""The one way a file of vqtok comes to be: whole at its final name, or not at all.

Written beside the target, fsynced, read back, renamed, and the rename fsynced. A process killed at any point leaves
the target as it was or as it shall be, and at most a hidden temporary file that every reader ignores.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vqtok.errors import OutputError, VqtokError
from vqtok.store.temporary import temporary_path

Data = bytes | bytearray | memoryview | Sequence[bytes | memoryview]
Verify = Callable[[Path], None]

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_NO_HARD_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
_REASONS = {
    errno.ENOENT: "its folder does not exist: create the folder first",
    errno.ENOTDIR: "a part of its path is a file, not a folder: choose another path",
    errno.EISDIR: "a folder of this name exists: choose another name",
    errno.EEXIST: "it exists already: choose another name, or ask for it to be overwritten",
    errno.ENOTEMPTY: "it exists already and is not empty: choose another name, or ask for it to be overwritten",
    errno.EACCES: "writing there is not permitted: check the owner and the permissions of its folder",
    errno.EPERM: "writing there is not permitted: check the owner and the permissions of its folder",
    errno.EROFS: "its file system is read-only: choose a folder on a writable one",
    errno.ENOSPC: "the disk is full: free some space and run again",
    errno.EDQUOT: "the disk quota is used up: free some space and run again",
    errno.ENAMETOOLONG: "its name is too long for the file system: choose a shorter one",
}


def commit(path: str | os.PathLike[str], data: Data, *, verify: Verify | None = None, overwrite: bool = False) -> None:
    """Write one file so that it is whole at its final name, durable, and proven readable, or not there at all.

    Args:
        path: the file to write; its folder must exist, and a symbolic link is followed.
        data: the bytes, in one piece or as pieces that are written one after the other.
        verify: the reader of this kind of file, called with the temporary path before it gets its final name; raises
            when it does not find what was to be written. Without one, the bytes are read back and compared.
        overwrite: replace a file that exists; otherwise it stays untouched and the call raises, without a race.

    Raises:
        OutputError: the file exists, cannot be written, or does not read back; the old content, if any, is intact.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> commit(folder / "note.txt", b"hello")
    >>> (folder / "note.txt").read_bytes(), len(list(folder.iterdir()))
    (b'hello', 1)
    """
    target = real_target(path)
    buffers = as_buffers(data)
    with output_errors(target):
        _refuse_occupied(target, overwrite)
        temporary = temporary_path(target)
        try:
            write_new_file(temporary, buffers)
            read_back(target, temporary, verify or (lambda written: compare(written, buffers)))
            _publish(temporary, target, overwrite)
        finally:
            with suppress(OSError):
                os.unlink(temporary)
        sync_folder(target.parent)


def as_buffers(data: Data) -> list[memoryview]:
    """Return the pieces as flat memoryviews of bytes."""
    pieces = [data] if isinstance(data, bytes | bytearray | memoryview) else data
    return [memoryview(piece).cast("B") for piece in pieces if memoryview(piece).nbytes]


def real_target(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path with all links followed: a commit replaces the file, never the link to it."""
    text = os.fspath(path)
    if not text or "\0" in text:
        raise OutputError(f"expected a path to write to, got {text!r}: give a name without NUL characters")
    return Path(os.path.realpath(text))


@contextmanager
def output_errors(target: Path) -> Iterator[None]:
    """Turn an OSError inside the block into an OutputError that says what, why and what to do."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, "the operating system refused: check the disk and try again")
        raise OutputError(f"cannot write {str(target)!r}: {reason} ({error.strerror or error})") from error


def write_new_file(path: Path, buffers: Sequence[memoryview]) -> None:
    """Create ``path``, write all buffers and fsync; the kernel applies the umask to 0666, without a race."""
    descriptor = os.open(path, _CREATE, 0o666)
    try:
        for buffer in buffers:
            written = 0
            while written < len(buffer):  # a write may be cut short by a signal, a quota or a nearly full disk
                written += os.write(descriptor, buffer[written:])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_back(target: Path, temporary: Path, verify: Verify) -> None:
    """Let the reader judge what is on the disk before it gets its final name."""
    try:
        verify(temporary)
    except VqtokError as error:
        raise OutputError(
            f"cannot write {str(target)!r}: it did not read back as it was written: check the disk ({error})"
        ) from error


def compare(written: Path, buffers: Sequence[memoryview]) -> None:
    """Raise unless the file holds exactly these buffers."""
    with open(written, "rb") as file:
        same = all(file.read(len(buffer)) == buffer for buffer in buffers) and not file.read(1)
    if not same:
        raise OutputError(f"expected {sum(map(len, buffers))} bytes as written, but other bytes came back")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the file system knows how to."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def _refuse_occupied(target: Path, overwrite: bool) -> None:
    """Refuse early what publishing would refuse late, and never replace a folder, a pipe or a device."""
    try:
        mode = os.lstat(target).st_mode
    except FileNotFoundError:
        return
    if not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    if not stat.S_ISREG(mode):
        raise OutputError(f"cannot write {str(target)!r}: it exists and is not a regular file: choose another name")


def _publish(temporary: Path, target: Path, overwrite: bool) -> None:
    """Give the temporary file its final name in one step of the file system."""
    if overwrite:
        os.replace(temporary, target)
        return
    try:
        os.link(temporary, target)  # unlike a rename, fails when somebody else was faster
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        _refuse_occupied(target, overwrite)  # no hard links here: the best that is left
        os.rename(temporary, target)
