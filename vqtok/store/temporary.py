"""Names of temporary files beside their target, and the broom for those that a killed process left."""

from __future__ import annotations

import os
import re
import zlib
from contextlib import suppress
from pathlib import Path

# .NAME.<pid>.<host><random>.tmp: who wrote it can be told from the name alone, even by a reader of a shared disk.
_PATTERN = re.compile(r"\..*\.(?P<pid>[0-9]+)\.(?P<host>[0-9a-f]{8})[0-9a-f]{8}\.tmp", re.DOTALL)
_NAME_CHARACTERS = 40  # of the target's name; keeps the temporary name below the 255 bytes of most file systems


def temporary_path(target: Path) -> Path:
    """Return an unused hidden path beside ``target``, on the same file system, so that a rename is atomic."""
    return target.with_name(f".{target.name[:_NAME_CHARACTERS]}.{os.getpid()}.{_host()}{os.urandom(4).hex()}.tmp")


def remove_stale_temporaries(folder: str | os.PathLike[str]) -> int:
    """Remove the temporary files and folders that dead processes of this host left in ``folder``.

    Temporaries of other hosts and of living processes are kept: their commit may still be under way.

    Args:
        folder: where commits happened; not searched recursively.

    Returns:
        The number of files and folders removed; 0 when the folder does not exist.
    """
    if os.name != "posix":
        return 0  # only POSIX can ask whether a process lives without touching it
    removed = 0
    with suppress(OSError):
        for name in os.listdir(folder):
            match = _PATTERN.fullmatch(name)
            if match and match["host"] == _host() and not _alive(int(match["pid"])):
                removed += _remove(Path(folder, name))
    return removed


def _host() -> str:
    """Return eight hexadecimal digits that stand for this machine's name."""
    name = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return f"{zlib.crc32(name.encode('utf-8', 'surrogateescape')):08x}"


def _alive(process: int) -> bool:
    """Tell whether a process of this number runs; when in doubt, it does."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _remove(path: Path) -> int:
    """Remove a file or folder and return 1, or 0 when it would not go."""
    try:
        if path.is_dir() and not path.is_symlink():
            import shutil  # costs more than the rest of this package, and is needed after a crash only

            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError:
        return 0
    return 1
