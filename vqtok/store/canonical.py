"""JSON in one canonical form, and a reader that takes nothing ambiguous."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from vqtok.errors import ConfigError

_MAX_DEPTH = 64


def canonical_json(value: object) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN, characters as themselves.

    Args:
        value: None, bool, int, float, str, or lists, tuples and mappings (with str keys) of them.

    Returns:
        The text; it encodes to UTF-8 without error.

    Raises:
        ConfigError: the value holds something JSON cannot say exactly.

    >>> canonical_json({"b": (1, 2.5), "a": None})
    '{"a":null,"b":[1,2.5]}'
    """
    text = json.dumps(_plain(value, 0), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return _encodable(text)


def pretty_json(value: object) -> str:
    """Return the JSON text of a value for people, with sorted keys and a final newline; one value, one text."""
    return _encodable(json.dumps(_plain(value, 0), sort_keys=True, indent=2, ensure_ascii=False) + "\n")


def strict_json(data: bytes) -> object:
    """Parse JSON as UTF-8, refusing byte order marks, duplicate keys, NaN, overflow, lone surrogates, deep nesting.

    Raises:
        ValueError: with the reason; callers know whose file it is and turn it into their own error.
    """
    try:
        value: object = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
        plain = _plain(value, 0)
        if b"\\u" in data:  # only an escape can smuggle half a surrogate pair into valid UTF-8
            _encodable(json.dumps(plain, ensure_ascii=False))
    except RecursionError:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels") from None
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return value


def _encodable(text: str) -> str:
    """Return the text unless it holds half a surrogate pair, which UTF-8 cannot carry."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"expected text that UTF-8 can carry, got {text[error.start]!r}: escape such names") from None
    return text


def _plain(value: object, depth: int) -> object:
    """Return the value in dicts and lists, or say what JSON cannot hold."""
    if depth > _MAX_DEPTH:
        raise ConfigError(f"expected values nested at most {_MAX_DEPTH} levels deep, got more")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"expected text as keys, got {key!r} of type {type(key).__name__}")
        return {key: _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"expected finite numbers, got {value}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(f"expected None, bool, int, float, str, list or mapping, got {type(value).__name__}: convert it")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse an object that says the same key twice: two readers could believe two things."""
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r} comes twice")
    return result


def _no_constant(text: str) -> float:
    """Refuse NaN and Infinity, which JSON does not know."""
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    """Refuse numbers beyond float64."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is beyond float64")
    return value
