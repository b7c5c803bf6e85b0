"""The same rows and pictures for TensorBoard, where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vqtok.images import RGB
from vqtok.training.history import Row, numbers

_ABSENT = "TensorBoard is not installed, so the run gets no tensorboard/: pip install 'vqtok[train]'"


class Board:
    """Event files of a run; without TensorBoard it says so once and then does nothing.

    Args:
        folder: of the event files: ``tensorboard`` in the run.
        done: step of the checkpoint that the training goes on from; what an earlier process wrote after it is hidden.
            0 at the start.
        say: takes the line about TensorBoard that is missing.

    >>> import tempfile
    >>> board = Board(Path(tempfile.mkdtemp()), 0, print)
    >>> board.row({"event": "train", "step": 100, "losses": {"l2": 0.5}})
    >>> board.close()
    """

    def __init__(self, folder: Path, done: int, say: Callable[[str], None]) -> None:
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            say(_ABSENT)
        else:
            # Purging hides events of this step and later ones; the checkpoint's own stay.
            self._writer = SummaryWriter(str(folder), purge_step=done + 1 if done else None)

    def row(self, row: Row) -> None:
        """Write the numbers of a training or validation row, or the words of an alarm."""
        if self._writer is None:
            return
        found = numbers(row)
        event, step = str(row.get("event")), int(found.pop("step", 0))
        if event == "alarm":
            text = f"{row.get('message')}\n\nWhat helps: {row.get('remedy')}"
            self._writer.add_text(f"alarm/{row.get('name')}", text, step)
        elif event in ("train", "validate"):
            for name, value in found.items():
                self._writer.add_scalar(f"{event}/{name.replace('.', '/')}", value, step)

    def picture(self, step: int, pixels: RGB, name: str = "validation") -> None:
        """Write uint8 [H, W, 3]."""
        if self._writer is not None:
            self._writer.add_image(name, pixels, step, dataformats="HWC")
            self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the files."""
        if self._writer is not None:
            self._writer.close()
