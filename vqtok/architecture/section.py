"""What every part of a configuration is: frozen data with bounds, read from JSON with errors that teach."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vqtok.errors import ConfigError

# Bounds that no published model comes near, so that a stranger's configuration cannot ask for endless work.
Width = Annotated[int, Field(ge=1, le=1 << 16)]
Blocks = Annotated[int, Field(ge=0, le=256)]
Heads = Annotated[int, Field(ge=1, le=1 << 10)]
Codes = Annotated[int, Field(ge=1, le=1 << 32)]


class Section(BaseModel):
    """A frozen part of a configuration; unknown keys and near-miss types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


S = TypeVar("S", bound=Section)


def read_section(kind: type[S], config: object, name: str) -> S:
    """Check JSON values against a section; ``name`` says in messages where they came from."""
    try:
        # As JSON: strict about types, and a list is the only way a file can write a tuple.
        return kind.model_validate_json(json.dumps(config, default=repr))
    except ValidationError as error:
        raise ConfigError(f"{name}: {explain_validation(error)}") from None


def explain_validation(error: ValidationError) -> str:
    """Return one line that names every refused key, what was expected there and what came."""
    return "; ".join(
        f"{'.'.join(map(str, e['loc']))}: {e['msg'][:1].lower()}{e['msg'][1:]}, got {e['input']!r:.60}"
        for e in error.errors()
    )


def arguments(section: Section) -> dict[str, Any]:
    """Return a section's fields as keyword arguments of the class that its ``type`` stands for."""
    return {name: value for name, value in section if name != "type"}


def described(value: object) -> Any:
    """Return what a section says, without fields at their defaults, as JSON; for fingerprints.

    So a later version may add an option, and every older model keeps its fingerprint. A default never changes.

    >>> class Net(Section):
    ...     type: str = "net"
    ...     depth: int = 2
    ...     width: int = 8
    >>> described(Net(width=16))
    {'type': 'net', 'width': 16}
    """
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {
            name: described(field)
            for name, field in value
            if name == "type" or field != fields[name].get_default(call_default_factory=True, validated_data={})
        }
    if isinstance(value, tuple | list):
        return [described(item) for item in value]
    return value
