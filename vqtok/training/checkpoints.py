"""Checkpoints: everything that a stopped training needs to go on as if it had not been stopped."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from vqtok.errors import IntegrityError
from vqtok.store.commit import output_errors
from vqtok.store.commit_folder import commit_folder
from vqtok.store.temporary import remove_stale_temporaries

STATE, SHA256 = "state.pt", "state.sha256"


class Checkpoints:
    """A folder of checkpoints, one folder a step: the last two are kept, and the best.

    Args:
        folder: where they lie; made when the first one is written.

    >>> import tempfile
    >>> checkpoints = Checkpoints(Path(tempfile.mkdtemp(), "checkpoints"))
    >>> for step in (10, 20, 30, 40):
    ...     checkpoints.write(step, {"step": step}, best=20)
    >>> checkpoints.steps(), checkpoints.read_last()
    ([20, 30, 40], {'step': 40})
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """Return the steps of which there is a checkpoint, in order; one without its file does not exist."""
        return sorted(int(path.parent.name) for path in self.folder.glob(f"*/{STATE}") if path.parent.name.isdigit())

    def write(self, step: int, state: dict[str, Any], best: int | None) -> None:
        """Write the checkpoint of a step, then remove all but the last two and the best.

        Raises:
            OutputError: the disk refused; older checkpoints are intact.
        """
        with output_errors(self.folder):
            os.makedirs(self.folder, exist_ok=True)
        remove_stale_temporaries(self.folder)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getbuffer()
        digest = hashlib.sha256(data).hexdigest()
        commit_folder(self.folder / f"{step:08d}", {STATE: data, SHA256: digest.encode()}, overwrite=True)
        for old in self.steps()[:-2]:
            if old != best:
                with output_errors(self.folder):
                    shutil.rmtree(self.folder / f"{old:08d}")

    def read_last(self) -> dict[str, Any] | None:
        """Return the newest state, or None when there is none. Nothing in it is executed.

        Raises:
            IntegrityError: the file is damaged.
        """
        steps = self.steps()
        if not steps:
            return None
        folder = self.folder / f"{steps[-1]:08d}"
        try:
            _check(folder)
            return torch.load(folder / STATE, weights_only=True, map_location="cpu")
        except Exception as error:
            before = "go on from the one before" if steps[:-1] else "begin again"
            raise IntegrityError(
                f"{os.fspath(folder)!r}: expected a checkpoint, but it is damaged ({str(error).splitlines()[0]}): "
                f"remove that folder to {before}"
            ) from None


def _check(folder: Path) -> None:
    """Raise IntegrityError unless the file is as it was written: torch reads over a bit that has flipped."""
    digest = hashlib.sha256()
    with open(folder / STATE, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    if digest.hexdigest() != (folder / SHA256).read_text():
        raise IntegrityError("its sha256 differs")
