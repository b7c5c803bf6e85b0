"""Batches made ahead in worker processes, by torch's `DataLoader`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator

import torch
from torch.utils.data import DataLoader

from vqtok.errors import ResourceError
from vqtok.training.cutting import Cut, Cutter, Task

_AHEAD = 2  # batches a worker
_LOST = ("exited unexpectedly", "killed by signal", "ancdata")  # what torch and Python say then


def cut_ahead(cutter: Cutter, tasks: Iterable[Task], workers: int) -> Iterator[Cut]:
    """Yield what a cutter makes of tasks, in their order.

    The processes are spawned, so that they share no lock and no GPU with this one: a script that trains must start
    under ``if __name__ == "__main__":``. They end with this iterator, and with this process.

    Args:
        cutter: as it was made, not used yet.
        tasks: may be endless.
        workers: processes; 0 cuts in this one, one batch at a time.

    Raises:
        ResourceError: a process was lost.
    """
    loader: DataLoader[Cut] = DataLoader(
        cutter,
        batch_size=None,
        sampler=tasks,  # pyright: ignore[reportArgumentType]  (any iterable will do without batching)
        num_workers=workers,
        collate_fn=_as_it_is,  # pyright: ignore[reportArgumentType]  (typed as if there were batching)
        worker_init_fn=_ignore_interrupts,
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=_AHEAD if workers else None,
        generator=torch.Generator(),  # else it draws from the generator that the model trains with
    )
    try:
        yield from _watched(loader)
    except (RuntimeError, OSError, EOFError) as error:
        # The last two: it died with pixels in its hands that this process was about to take over.
        words = str(error) or "its answer ends early"
        ours = not workers or words.startswith("Caught ")  # raised by our code, here or in a process
        if ours or (isinstance(error, RuntimeError) and not any(known in words for known in _LOST)):
            raise
        raise ResourceError(
            f"expected training images, but a process that decodes them was lost ({words.splitlines()[0]}): "
            "if memory (or /dev/shm) ran out, set data.workers lower; if a script of yours trains, start it under "
            'if __name__ == "__main__":; data.workers = 0 decodes without processes'
        ) from error


def _watched(loader: DataLoader[Cut]) -> Iterator[Cut]:
    """Start the processes, and let the loss of one be noticed where a batch is waited for (within five seconds).

    `DataLoader` would raise it from a signal handler, wherever the training happens to be: in the middle of a step.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    signal.signal(signal.SIGCHLD, handler if handler is not None else signal.SIG_DFL)
    return batches


def _as_it_is(cut: Cut) -> Cut:
    return cut


def _ignore_interrupts(_: int) -> None:
    """Leave Ctrl-C to the training, which ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
