"""What can go wrong, and the exit code each kind owns.

Every message says what was expected, what came, and what to do about it.
"""

from __future__ import annotations


class VqtokError(Exception):
    """Base of every error that vqtok raises on purpose.

    Attributes:
        exit_code: the status with which a command ends when this error stops it.

    >>> import vqtok
    >>> try:
    ...     vqtok.build("photo-f9")
    ... except VqtokError as error:
    ...     print(error.exit_code, error)
    2 unknown preset 'photo-f9': did you mean 'photo-f8'?
    """

    exit_code: int = 2


class ConfigError(VqtokError):
    """An option, a preset, a configuration or an argument's shape or dtype is not usable."""

    exit_code = 2


class TooManyFailures(VqtokError):
    """The work was finished, but more inputs failed than were allowed."""

    exit_code = 3


class InputError(VqtokError):
    """An input is missing, unreadable or not what its reader accepts."""

    exit_code = 4


class ImageError(InputError):
    """An image was refused.

    Attributes:
        kind: a stable word for tables and failure rows: ``missing``, ``unreadable``, ``empty``, ``format``,
            ``truncated``, ``corrupt``, ``too_large``, ``too_many_pixels``, ``depth``, ``memory``, ``decode``.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class NonFiniteLatents(InputError):
    """Latents hold NaN or infinity, so no nearest code exists.

    Attributes:
        row: index of the first such row, counted over the flattened leading dimensions.
    """

    def __init__(self, row: int) -> None:
        super().__init__(
            f"expected finite latents, but row {row} holds NaN or infinity. "
            "Look for an overflow in the encoder (half precision?) or a broken input."
        )
        self.row = row


class OutputError(VqtokError):
    """An output cannot be written, or exists already."""

    exit_code = 5


class IntegrityError(VqtokError):
    """A file's content is not what it says of itself: damaged, truncated or malformed."""

    exit_code = 6


class MismatchError(VqtokError):
    """Two things do not belong together: tokens and model, file version and reader, job and run."""

    exit_code = 7


class ResourceError(VqtokError):
    """The machine lacks what was asked for: memory, a device, a library."""

    exit_code = 8


class BackendUnavailable(ResourceError):
    """A backend was asked for by name and cannot run here; the message says why."""


class ReproducibilityError(VqtokError):
    """The same work gave other bytes than before."""

    exit_code = 9


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, which torch says in words.

    >>> out_of_memory(RuntimeError("can't allocate memory: you tried to allocate 8 bytes"))
    True
    """
    words = str(error)
    return isinstance(error, MemoryError) or "allocate memory" in words or "out of memory" in words


def escape(text: str, limit: int = 300) -> str:
    r"""Return text that cannot steer a terminal: unprintable characters as escapes, one line, about limit long.

    >>> escape("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    if len(text) > limit:
        text = f"{text[: limit // 2]}...{text[-limit // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
