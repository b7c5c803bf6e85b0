"""Tables of renames between a publisher's tensor names and ours: strict both ways, and the same table reads and writes.

A pattern is a name with placeholders. ``{level}`` stands for a number; ``{level:mirror}`` for a number that is counted
from the other end on our side; ``{level:5+}`` for one that begins with 5; ``{leaf:weight|bias}`` for one of the words
listed. A rule's two patterns have the same placeholders, so every rule reads from right to left as well. What is
counted from the other end is counted once a placeholder's name, over all rules that mirror it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from torch import Tensor

from vqtok.errors import ConfigError, MismatchError, escape

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Mapping[str, Shape]

_PLACEHOLDER = re.compile(r"\{(\w+)(?::([\w|]+|\d+\+))?\}")
_FROM = re.compile(r"(\d+)\+")
_MIRROR = "mirror"
_SHOWN = 40  # differences that a message lists


@dataclass(frozen=True, slots=True)
class Rename:
    """The same tensor under another name.

    Attributes:
        foreign: the publisher's pattern.
        native: ours.

    >>> rule = Rename("down.{level}.{leaf:weight|bias}", "levels.{level}.{leaf:weight|bias}")
    >>> apply((rule,), {"down.10.weight": (3,)}).tensors
    {'levels.10.weight': Source(name='down.10.weight', shape=(3,), change='')}
    """

    foreign: str
    native: str


@dataclass(frozen=True, slots=True)
class Reshape:
    """The same numbers under another name and in another shape.

    Attributes:
        foreign: the publisher's pattern.
        native: ours.
        change: a key of `CHANGES`.
    """

    foreign: str
    native: str
    change: str


@dataclass(frozen=True, slots=True)
class Drop:
    """A tensor that tokens do not depend on.

    Attributes:
        foreign: the publisher's pattern; a final ``*`` stands for the rest of the name.
        why: what it is.
    """

    foreign: str
    why: str


Rule: TypeAlias = Rename | Reshape | Drop


# What a foreign tensor becomes: [O, I] a 1x1 convolution's weight, and the other way; [A, B] its transposed; [1, ...]
# without that axis; a 1x1 convolution of one-hot maps [D, K, 1, 1] the codebook [K, D].
CHANGES = ("linear-to-conv", "conv-to-linear", "transpose", "first", "one-hot")


class Source(NamedTuple):
    """Where one of our tensors comes from: the publisher's name, the shape it has for us, a key of `CHANGES` or ""."""

    name: str
    shape: Shape
    change: str


class Applied(NamedTuple):
    """What a table makes of a checkpoint: sources by our name, and names that no rule knows."""

    tensors: dict[str, Source]
    leftovers: tuple[str, ...]


def apply(rules: Sequence[Rule], shapes: Shapes) -> Applied:
    """Find our name for each of a checkpoint's tensors; the first rule whose pattern fits decides.

    Args:
        rules: the family's table.
        shapes: shape by the publisher's name.

    Raises:
        MismatchError: two tensors would have one name.
    """
    found = [(name, rule, values) for name in shapes for rule, values in [_first(rules, name)]]
    counts = _mirrored((rule, values) for _, rule, values in found if not isinstance(rule, Drop | None))
    tensors: dict[str, Source] = {}
    for name, rule, values in found:
        if rule is None or isinstance(rule, Drop):
            continue
        native = _filled(rule.native, values, counts)
        if native in tensors:
            raise MismatchError(
                f"expected one tensor for {native!r}, got {tensors[native].name!r} and {escape(name)!r}"
            )
        change = rule.change if isinstance(rule, Reshape) else ""
        tensors[native] = Source(name, changed_shape(shapes[name], change), change)
    return Applied(tensors, tuple(name for name, rule, _ in found if rule is None))


def invert(rules: Sequence[Rule], names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return the publisher's name and the change (a key of `CHANGES`, or "") for each of our names.

    Raises:
        ConfigError: the table has no place for some of them.

    >>> rule = Rename("up.{level:mirror}.weight", "levels.{level:mirror}.weight")
    >>> invert((rule,), ["levels.0.weight", "levels.1.weight"])
    {'levels.0.weight': ('up.1.weight', ''), 'levels.1.weight': ('up.0.weight', '')}
    """
    names = list(names)
    keeping = [rule for rule in rules if not isinstance(rule, Drop)]
    found = {name: _first_native(keeping, name) for name in names}
    if unknown := [name for name, rule in found.items() if rule is None]:
        raise ConfigError(f"expected tensors that the family has a place for, got {_listed(unknown)}")
    pairs = {name: pair for name, pair in found.items() if pair is not None}
    counts = _mirrored(pairs.values())
    return {
        name: (
            _filled(rule.foreign, values, counts),
            rule.change if isinstance(rule, Reshape) else "",
        )
        for name, (rule, values) in pairs.items()
    }


def check(rules: Sequence[Rule], applied: Applied, expected: Shapes, shapes: Shapes) -> None:
    """Compare a checkpoint with the model that its shapes describe, and say all differences at once.

    Args:
        rules: the family's table.
        applied: what `apply` gave.
        expected: shape by our name, all that the model has.
        shapes: shape by the publisher's name, for messages.

    Raises:
        MismatchError: tensors are missing, left over or of another shape.
    """
    came = applied.tensors
    foreign = {name: pair[0] for name, pair in invert(rules, expected).items()}
    problems = [f"missing {foreign[name]!r}" for name in expected if name not in came]
    problems += [f"left over {escape(name)!r} {shapes[name]}" for name in applied.leftovers]
    problems += [f"left over {source.name!r} {source.shape}" for name, source in came.items() if name not in expected]
    problems += [
        f"{source.name!r} of shape {shapes[source.name]} does not fit {tuple(expected[name])}"
        for name, source in came.items()
        if name in expected and source.shape != tuple(expected[name])
    ]
    if problems:
        raise MismatchError(
            f"expected the {len(expected)} tensors that this family's table and the shapes describe, but "
            f"{len(problems)} differ: {_listed(problems)}. Is it whole, and of this family?"
        )


def changed_shape(shape: Shape, change: str) -> Shape:
    """Return a foreign shape after a change; a shape that the change is not for stays, and will not fit."""
    if change == "first":
        return shape[1:] if shape[:1] == (1,) else shape
    if change in ("one-hot", "conv-to-linear"):
        if shape[2:] != (1, 1):
            return shape
        return shape[1::-1] if change == "one-hot" else shape[:2]
    if len(shape) != 2 or not change:
        return shape
    return shape[::-1] if change == "transpose" else (*shape, 1, 1)


def changed(tensor: Tensor, change: str) -> Tensor:
    """Return a foreign tensor after a change."""
    if change == "transpose":
        return tensor.T.contiguous()
    if change == "first":
        return tensor[0]
    if change == "one-hot":
        return tensor[:, :, 0, 0].T.contiguous()
    if change == "conv-to-linear":
        return tensor[:, :, 0, 0]
    return tensor[..., None, None] if change else tensor


def unchanged(tensor: Tensor, change: str) -> Tensor:
    """Return what `changed` was given; its inverse."""
    if change == "transpose":
        return tensor.T.contiguous()
    if change == "first":
        return tensor[None]
    if change == "one-hot":
        return tensor.T.contiguous()[:, :, None, None]
    if change == "conv-to-linear":
        return tensor[:, :, None, None]
    return tensor[..., 0, 0] if change else tensor


_Values: TypeAlias = dict[str, str]


def _first(rules: Sequence[Rule], name: str) -> tuple[Rule | None, _Values]:
    for rule in rules:
        if (values := _read(rule.foreign, name)) is not None:
            return rule, values
    return None, {}


def _first_native(rules: Sequence[Rename | Reshape], name: str) -> tuple[Rename | Reshape, _Values] | None:
    for rule in rules:
        if (values := _read(rule.native, name)) is not None:
            return rule, values
    return None


def _read(pattern: str, name: str) -> _Values | None:
    """Return what a name has at a pattern's placeholders, numbers from 0; None when it is another name."""
    if not (match := _compiled(pattern).fullmatch(name)):
        return None
    values = match.groupdict()
    for key, first in _first_numbers(pattern):
        if int(values[key]) < first:
            return None
        values[key] = str(int(values[key]) - first)
    return values


def _first_numbers(pattern: str) -> list[tuple[str, int]]:
    found = ((match[1], _FROM.fullmatch(match[2] or "")) for match in _PLACEHOLDER.finditer(pattern))
    return [(name, int(first[1])) for name, first in found if first]


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    """Turn a pattern into a regular expression with a group a placeholder."""
    pieces, end = [], 0
    for match in _PLACEHOLDER.finditer(pattern):
        name, kind = match.groups()
        number = kind in (None, _MIRROR) or _FROM.fullmatch(kind)
        pieces.append(re.escape(pattern[end : match.start()]))
        pieces.append(f"(?P<{name}>{'(?:0|[1-9][0-9]{0,3})' if number else kind})")
        end = match.end()
    rest = pattern[end:]
    pieces.append(re.escape(rest[:-1]) + "(?s:.*)" if rest.endswith("*") else re.escape(rest))
    return re.compile("".join(pieces))


def _mirrored(found: Iterable[tuple[Rename | Reshape, _Values]]) -> dict[str, int]:
    """Return how many there are of what is counted from the other end, by the placeholder's name."""
    counts: dict[str, int] = {}
    for rule, values in found:
        for match in _PLACEHOLDER.finditer(rule.native):
            if match[2] == _MIRROR:
                counts[match[1]] = max(counts.get(match[1], 0), int(values[match[1]]) + 1)
    return counts


def _filled(pattern: str, values: _Values, counts: Mapping[str, int]) -> str:
    first = dict(_first_numbers(pattern))

    def fill(match: re.Match[str]) -> str:
        value = values[match[1]]
        if match[1] in first:
            return str(int(value) + first[match[1]])
        return str(counts[match[1]] - 1 - int(value)) if match[2] == _MIRROR else value

    return _PLACEHOLDER.sub(fill, pattern)


def _listed(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more
