"""Where decoded photographs are kept: nowhere, in memory for the time of a run, or in a folder for good."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import final

from vqtok.errors import OutputError
from vqtok.store.temporary import remove_stale_temporaries, temporary_path

_SHARED_MEMORY = Path("/dev/shm")


@final
class CacheFolder:
    """A folder of a cache.

    Args:
        path: "" for none.
        temporary: whether it goes when this object goes, or the process ends.
    """

    def __init__(self, path: str, *, temporary: bool = False) -> None:
        self.path = path
        if temporary:
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)


def cache_folder(name: str, base: Path) -> CacheFolder:
    """Return the folder that ``data.cache`` means, made if need be.

    Memory is a folder in shared memory, or of temporary files where there is none: worker processes map the same
    pages. What a killed run left there is removed by the next one.

    Args:
        name: ``none``, ``memory`` or a folder.
        base: where relative paths start.

    Raises:
        OutputError: the folder cannot be written.
    """
    if name == "none":
        return CacheFolder("")
    if name == "memory":
        root = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
        remove_stale_temporaries(root)
        folder = temporary_path(root / "vqtok-photographs")
    else:
        folder = base / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{str(folder)!r}: expected a folder for the cache, got: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{str(folder)!r}: expected a folder that can be written: choose another data.cache")
    return CacheFolder(str(folder), temporary=name == "memory")
