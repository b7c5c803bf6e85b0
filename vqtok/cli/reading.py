"""Reading many images, of which some may be bad: one line for each of those, and the others are still done."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from tqdm import tqdm

from vqtok import images
from vqtok.cli.inputs import Input
from vqtok.errors import (
    ImageError,
    InputError,
    NonFiniteLatents,
    ResourceError,
    TooManyFailures,
    VqtokError,
    escape,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """An input that was refused."""

    key: str
    kind: str
    message: str


@dataclass
class Reader:
    """Decodes inputs one after the other and keeps count.

    Attributes:
        spec: how images become pixels.
        failures: what was refused so far.
        done: number of images read.
    """

    spec: images.PreprocessSpec
    failures: list[Failure] = field(default_factory=list)
    done: int = 0

    def read(self, inputs: Sequence[tuple[str, Input]]) -> Iterator[tuple[str, images.RGB]]:
        """Yield (key, uint8 [H, W, 3]) of each image that can be read; the others are reported on stderr."""
        limits = images.Limits()
        for key, item in inputs:
            try:
                array = images.to_rgb(item.source(limits.max_bytes), self.spec, limits=limits, name=key)
            except ImageError as error:
                self._fail(Failure(key, error.kind, str(error)))
            else:
                self.done += 1
                yield key, array

    def refuse(self, key: str, error: Exception) -> None:
        """Report an image that was read, but that the model could not take."""
        self.done -= 1
        if isinstance(error, NonFiniteLatents):
            self._fail(Failure(key, "latents", f"{escape(key)}: {error}"))
        else:
            words = f"{escape(key)}: memory ran out: use a smaller image or a machine with more memory"
            self._fail(Failure(key, "memory", words))

    def _fail(self, failure: Failure) -> None:
        self.failures.append(failure)
        with suppress(OSError):
            tqdm.write(f"vqtok: {failure.message}", sys.stderr)

    def outcome(self) -> VqtokError | None:
        """Return the error with which the command ends although the other inputs were done, if there is one."""
        if not self.failures:
            return None
        if self.done:
            return TooManyFailures(
                f"{len(self.failures)} of {len(self.failures) + self.done} inputs failed, the others are done"
            )
        if all(failure.kind == "memory" for failure in self.failures):
            return ResourceError("memory did not suffice for any input, nothing was written")
        return InputError("no input could be read, nothing was written")

    def summary(self) -> dict[str, object]:
        """Return counts and failures for ``--json``."""
        outcome = self.outcome()
        return {
            "schema": "vqtok.result/1",
            "ok": outcome is None,
            "exit_code": outcome.exit_code if outcome else 0,
            "counts": {"seen": self.done + len(self.failures), "ok": self.done, "failed": len(self.failures)},
            "failures": [asdict(failure) for failure in self.failures],
        }
