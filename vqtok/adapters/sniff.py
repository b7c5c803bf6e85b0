"""Which family a checkpoint is of: from names and shapes, from the publisher's configuration, or from its reader."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from vqtok.adapters.family import Family
from vqtok.adapters.rules import Shapes
from vqtok.errors import ConfigError, InputError, MismatchError, escape

# Larger checkpoints that hold two tokenizers: the first of these that is there is meant.
_PREFERRED = ("", "first_stage_model.", "gen_vision_model.", "model.vqmodel.", "vqmodel.", "module.")


def prefix_of(family: Family, names: Sequence[str]) -> str | None:
    """Return what stands before a family's names in a checkpoint, None when it has none of them.

    Raises:
        ConfigError: several tokenizers are in it, none of which is known to be meant.
    """
    found = [name.removesuffix(family.anchor) for name in names if name.endswith(family.anchor)]
    found = [prefix for prefix in found if not prefix or prefix.endswith(".")]
    fitting = [prefix for prefix in found if all(f"{prefix}{mark}" in names for mark in family.marks)]
    for prefix in _PREFERRED:
        if prefix in fitting:
            return prefix
    if len(fitting) > 1:
        raise ConfigError(
            f"expected one tokenizer in the checkpoint, got several, under {', '.join(map(escape, fitting[:9]))}: "
            "save the one that is meant alone"
        )
    return fitting[0] if fitting else None


def behind(prefix: str, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return what stands under a prefix, without it."""
    return {name.removeprefix(prefix): tuple(shape) for name, shape in shapes.items() if name.startswith(prefix)}


def fits(family: Family, shapes: Shapes) -> bool:
    """Tell whether a checkpoint has what every one of a family has, and nothing that none has."""
    prefix = prefix_of(family, [*shapes])
    return prefix is not None and not any(f"{prefix}{name}" in shapes for name in family.without)


def choose(
    families: Mapping[str, Family], shapes: Shapes, *, named: str | None = None, classes: set[str] | None = None
) -> Family:
    """Return the family of a checkpoint.

    Args:
        families: by name.
        shapes: shape by the publisher's name.
        named: the reader's word, which decides.
        classes: classes that the publisher's configuration names; they decide where nobody did.

    Raises:
        ConfigError: no family of that name; or names and shapes fit several, all of which are given.
        InputError: they fit none.
        MismatchError: the configuration names another family than the tensors have.
    """
    fitting = [family for family in families.values() if fits(family, shapes)]
    said = [family for family in families.values() if any(name in family.classes for name in classes or ())]
    if named is not None:
        return _named(families, fitting, said, named)
    both = [family for family in fitting if family in said]
    if said and fitting and not both:
        raise MismatchError(
            f"expected configuration and weights of one family: the configuration says {_words(said)}, the tensors "
            f"{_words(fitting)}"
        )
    likely = both or [f for f in fitting if f.likely(behind(prefix_of(f, [*shapes]) or "", shapes))]
    if not likely:
        raise InputError(
            f"expected a checkpoint of one of {', '.join(families)}, but its names fit none: "
            f"{escape(', '.join([*shapes][:5]))}, ..."
        )
    if len(likely) > 1:
        raise ConfigError(
            f"the tensors fit {_words(likely)}, and names and shapes cannot tell which: give family=, or the "
            "publisher's configuration (config=, or beside the checkpoint)"
        )
    return likely[0]


def find_named(families: Mapping[str, Family], name: str) -> Family:
    """Return a family by name, or raise ConfigError with the nearest one."""
    if name in families:
        return families[name]
    near = difflib.get_close_matches(str(name), families, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"families: {', '.join(families)}"
    raise ConfigError(f"unknown family {escape(str(name))!r}: {hint}")


def _named(families: Mapping[str, Family], fitting: list[Family], said: list[Family], named: str) -> Family:
    family = find_named(families, named)
    if family not in fitting:
        other = f", but of {_words(fitting)}" if fitting else ""
        raise MismatchError(f"expected a checkpoint of {named}, but its names are none of that{other}")
    if said and family not in said:
        raise MismatchError(f"expected a configuration of {named}, got one of {_words(said)}")
    return family


def _words(families: Sequence[Family]) -> str:
    return " and ".join(family.name for family in families)
