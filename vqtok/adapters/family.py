"""What a family of checkpoints is: a table of renames, and beside it the facts that are not in the tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from vqtok.adapters.rules import Rule, Shape, Source
from vqtok.architecture import AnyArchitecture
from vqtok.errors import MismatchError
from vqtok.images import PreprocessSpec

Facts: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tensors:
    """Shapes by our name, and the publisher's names for messages.

    >>> Tensors({"encoder.conv_in.weight": Source("conv1.weight", (8, 3, 3, 3), "")})["encoder.conv_in.weight"]
    (8, 3, 3, 3)
    """

    sources: Mapping[str, Source]

    def __getitem__(self, name: str) -> Shape:
        if name not in self.sources:
            raise MismatchError(
                f"expected a tensor for {name!r}, of which the shape says what the model is, but the checkpoint has "
                "none: is it whole, and of this family?"
            )
        return self.sources[name].shape

    def __contains__(self, name: str) -> bool:
        return name in self.sources

    def count(self, prefix: str) -> int:
        """Return one more than the largest number that follows a prefix, 0 when none does."""
        numbers = [
            int(head)
            for name in self.sources
            if name.startswith(prefix)
            for head in [name[len(prefix) :].split(".", 1)[0]]
            if head.isdigit()
        ]
        return max(numbers, default=-1) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One publisher's layout.

    Attributes:
        name: what ``family=`` takes.
        source: the publisher's code.
        anchor: a tensor that every checkpoint of it has; what stands before its name is the checkpoint's prefix.
        marks: tensors that it must have, beside the anchor.
        without: tensors that it must not have.
        rules: the table.
        variant: the table of a model that has these names, the publisher's or ours, where one table cannot say it: a
            name that means two layers, or numbers that shift with the number of blocks.
        architecture: from shapes by our name and what the publisher's configuration states, to a model.
        facts: what the shapes say, in the words of ``words``; compared with what the configuration states.
        words: place in the publisher's configuration by our word.
        classes: names by which publishers' configurations call it.
        likely: whether names and shapes, behind the prefix, speak for it when nobody names it; else it must be named.
        averaged: whether ``model_ema.<name without dots>``, where it is there, is the tensor to use.
        preprocess: how its images become pixels, but for ``multiple``.
        top: under which key the publisher's loader looks for the state dict in what torch.load gives; "" where that is
            all there is.
        parts: file names and the prefix each file's tensors get, for checkpoints of several files.
    """

    name: str
    source: str
    anchor: str
    marks: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    rules: tuple[Rule, ...]
    variant: Callable[[Collection[str]], tuple[Rule, ...]] | None = None
    architecture: Callable[[Tensors, Facts, PreprocessSpec], AnyArchitecture]
    facts: Callable[[Any, Facts], Facts]  # of what its own architecture gives
    words: Mapping[str, str]
    classes: tuple[str, ...] = ()
    likely: Callable[[Mapping[str, Shape]], bool] = lambda shapes: True
    averaged: bool = False
    preprocess: PreprocessSpec = field(default_factory=PreprocessSpec)
    top: str = ""
    parts: tuple[Mapping[str, str], ...] = ()


def table(family: Family, names: Collection[str]) -> tuple[Rule, ...]:
    """Return the family's table for a model that has these names, the publisher's or ours."""
    return family.variant(names) if family.variant else family.rules


def published(**fields: Any) -> PreprocessSpec:
    """Return how published models take images: neither EXIF nor alpha is looked at, as their loaders do not."""
    return PreprocessSpec(**{"exif": "ignore", "alpha": "keep", **fields})
