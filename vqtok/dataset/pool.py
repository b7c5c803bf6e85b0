"""Worker processes that decode ahead, watched one by one: a dead or hung one is replaced, and the image named.

A thread of the parent stands for each worker: it hands over one item, waits for the answer, and knows whom to blame.
Workers are started by hand and not by multiprocessing, whose spawn imports the caller's ``__main__`` again and whose
pools wait for ever for a worker that was killed.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from queue import SimpleQueue

from vqtok.dataset.crops import Box
from vqtok.dataset.decoding import Decoded, Failure, Recipe, array_of, decode_item, failure
from vqtok.dataset.items import Item
from vqtok.errors import ResourceError, escape

_ATTEMPTS = 2  # the first death may be an innocent's: the kernel kills whom it likes when memory runs out
_MOST_ANSWER = 1 << 34
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from vqtok.dataset.worker import main; main()"

Outcome = Decoded | Failure


class WorkerLost(Exception):
    """A worker died, or did not answer in time."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind


class Worker:
    """One process that decodes; started anew by `decode` when the last one was lost."""

    def __init__(self, recipe: Recipe, timeout: float, memory: int) -> None:
        self._settings = json.dumps({**recipe.record(), "memory": memory}).encode() + b"\n"
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = bytearray()

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process, unless it runs."""
        if self._process is None:
            # -S would save little and lose .pth files, by which editable installs are found.
            command = [sys.executable, "-c", _START, json.dumps(sys.path)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                bufsize=0,
            )
            self._buffer.clear()
            self._send(self._settings)
        return self._process

    def decode(self, item: Item) -> Outcome:
        """Return what the process makes of an item.

        Raises:
            WorkerLost: it died or hung, and was ended.
        """
        try:
            self.start()
            self._send(item.line().encode() + b"\n")
            return self._answer(time.monotonic() + self._timeout)
        except (OSError, ValueError, KeyError) as error:
            self.stop()
            raise WorkerLost("worker_crash", f"the process that decoded it died ({error})") from None
        except WorkerLost:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):
                stream.close()  # pyright: ignore[reportOptionalMemberAccess]
        process.wait()

    def _send(self, data: bytes) -> None:
        process = self._process
        if process is None or process.stdin is None:
            raise OSError("stopped")
        view = memoryview(data)
        while view:
            view = view[process.stdin.write(view) or 0 :]

    def _answer(self, deadline: float) -> Outcome:
        while b"\n" not in self._buffer:
            self._receive(1 << 16, deadline)
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        head = json.loads(line)
        if "failure" in head:
            return Failure(*head["failure"])
        sizes = [3 * height * width for height, width in head["shapes"]]
        data = memoryview(self._exactly(sum(sizes), deadline))
        arrays, at = [], 0
        for shape, size in zip(head["shapes"], sizes, strict=True):
            arrays.append(array_of(data[at : at + size], tuple(shape)))
            at += size
        return Decoded(bytes.fromhex(head["sha256"]), arrays, [Box(*box) for box in head["boxes"]])

    def _exactly(self, size: int, deadline: float) -> bytearray:
        if size > _MOST_ANSWER:
            raise ValueError("an answer beyond all limits")
        data = bytearray(size)
        start = len(self._buffer)
        data[:start], self._buffer = self._buffer[:size], self._buffer[size:]
        view, at = memoryview(data), start
        while at < size:
            at += self._read_into(view[at:], deadline)
        return data

    def _receive(self, size: int, deadline: float) -> None:
        chunk = bytearray(size)
        self._buffer += chunk[: self._read_into(memoryview(chunk), deadline)]

    def _read_into(self, view: memoryview, deadline: float) -> int:
        process = self._process
        if process is None or process.stdout is None:
            raise OSError("stopped")
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise WorkerLost("timeout", f"no pixels came within {self._timeout:g} s")
        count = process.stdout.readinto(view)  # pyright: ignore[reportAttributeAccessIssue]
        if not count:
            raise OSError(f"exit status {process.wait()}")
        return int(count)


class Pool:
    """Several workers behind one iterator, in the order of the items; use it as a context.

    Args:
        recipe: how items become pixels.
        workers: processes; with 0, items are decoded where the iterator is read, without protection.
        timeout: seconds for an image.
        memory: bytes of address space a worker may take, or 0.
        ahead: items under way at once, decoded or not, for each worker.
    """

    def __init__(self, recipe: Recipe, workers: int, timeout: float = 30.0, memory: int = 0, ahead: int = 4) -> None:
        self._recipe, self._timeout = recipe, timeout
        self._workers = [Worker(recipe, timeout, memory) for _ in range(workers)]
        self._ahead = ahead * workers
        self._tasks: SimpleQueue[tuple[Item, SimpleQueue[Outcome | BaseException]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def __enter__(self) -> Pool:
        for worker in self._workers:
            try:
                worker.start()  # all at once, while the model is still being loaded
            except OSError as error:
                self.__exit__()
                raise ResourceError(f"cannot start a worker process: {error.strerror}: use fewer --workers") from None
            thread = threading.Thread(target=self._serve, args=(worker,), daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        for _thread in self._threads:
            self._tasks.put(None)
        for worker in self._workers:
            worker.stop()
        for thread in self._threads:
            thread.join(5.0)
        for worker in self._workers:
            worker.stop()  # whatever a thread started meanwhile

    def decode(self, items: Iterable[Item]) -> Iterator[tuple[Item, Outcome]]:
        """Yield each item with its pixels or its failure, in order, decoding ahead."""
        if not self._workers:
            yield from ((item, decode_item(item, self._recipe)) for item in items)
            return
        source = iter(items)
        waiting: list[tuple[Item, SimpleQueue[Outcome | BaseException]]] = []
        while True:
            while len(waiting) < self._ahead and (item := next(source, None)) is not None:
                place: SimpleQueue[Outcome | BaseException] = SimpleQueue()
                waiting.append((item, place))
                self._tasks.put((item, place))
            if not waiting:
                return
            item, place = waiting.pop(0)
            outcome = place.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield item, outcome

    def _serve(self, worker: Worker) -> None:
        while (task := self._tasks.get()) is not None and not self._closed:
            item, place = task
            try:
                place.put(self._decode(worker, item))
            except BaseException as error:  # the reader of the iterator raises it
                place.put(error)

    def _decode(self, worker: Worker, item: Item) -> Outcome:
        lost: WorkerLost | None = None
        for _ in range(_ATTEMPTS):
            if self._closed:
                break
            try:
                return worker.decode(item)
            except WorkerLost as error:
                lost = error
        kind, words = (lost.kind, str(lost)) if lost else ("worker_crash", "the run was ended")
        if kind == "worker_crash":
            words = "the process that decoded it died, twice"
        return failure(item.key, kind, f"{escape(item.key)}: expected pixels, but {words}: leave the image out")
