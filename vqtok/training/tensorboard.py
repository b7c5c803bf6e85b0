"""The same rows and pictures for TensorBoard, where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vqtok.images import RGB
from vqtok.store.commit import output_errors
from vqtok.training.history import Row, numbers
from vqtok.training.progress import say

_ABSENT = "TensorBoard is not installed, so the run gets no tensorboard/: pip install 'vqtok[train]'"


class Board:
    """Event files of a run, begun with the first thing that is written; without TensorBoard one line says so.

    Args:
        folder: of the event files: ``tensorboard`` in the run.
        done: step of the checkpoint that the training goes on from; what an earlier process wrote after it is hidden.
            0 at the start.
        say: takes the line about TensorBoard that is missing.

    Raises:
        OutputError: from each method: the operating system refuses, as on a full disk.

    >>> import tempfile
    >>> board = Board(Path(tempfile.mkdtemp()), 0)
    >>> board.write({"event": "train", "step": 100, "losses": {"l2": 0.5}})
    >>> board.close()
    """

    def __init__(self, folder: Path, done: int, say: Callable[[str], None] = say) -> None:
        self._folder, self._done, self._say = folder, done, say
        self._begun, self._writer = False, None

    def _open(self) -> Any:
        """Return what writes event files, None without TensorBoard."""
        if not self._begun:
            self._begun = True
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self._say(_ABSENT)
            else:
                # Purging hides events of this step and later ones; the checkpoint's own stay.
                self._writer = SummaryWriter(str(self._folder), purge_step=self._done + 1 if self._done else None)
        return self._writer

    def write(self, row: Row) -> None:
        """Write the numbers of a training or validation row, or the words of an alarm."""
        with output_errors(self._folder):
            self._write(row)

    def _write(self, row: Row) -> None:
        writer = self._open()
        if writer is None:
            return
        found = numbers(row)
        event, step = str(row.get("event")), int(found.pop("step", 0))
        if event == "alarm":
            text = f"{row.get('message')}\n\nWhat helps: {row.get('remedy')}"
            writer.add_text(f"alarm/{row.get('name')}", text, step)
        elif event in ("train", "validate"):
            for name, value in found.items():
                writer.add_scalar(f"{event}/{name.replace('.', '/')}", value, step)

    def picture(self, step: int, pixels: RGB, name: str = "validation") -> None:
        """Write uint8 [H, W, 3]."""
        with output_errors(self._folder):
            writer = self._open()
            if writer is not None:
                writer.add_image(name, pixels, step, dataformats="HWC")
                writer.flush()

    def close(self) -> None:
        """Write what is left and close the files."""
        if self._writer is not None:
            with output_errors(self._folder):
                self._writer.close()
