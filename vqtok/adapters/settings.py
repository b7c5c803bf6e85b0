"""A publisher's configuration as data: read with safe loaders, looked up by path, never followed to code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from vqtok.adapters.family import Facts, Family
from vqtok.errors import ConfigError, MismatchError, escape
from vqtok.store.reading import open_regular, read_exactly, size_of

Settings: TypeAlias = Mapping[str, Any]

# Where a configuration keeps the tokenizer's section: as it stands, behind a framework's keys, or in a larger model's.
_ROOTS = (
    "vq_config",
    "model.params.first_stage_config.params",
    "model.params",
    "model.init_args",
    "gen_vision_config.params",
    "params",
    "init_args",
    "",
)
_CLASSES = ("target", "class_path", "_class_name", "model_type", "architectures", "cls")
_CLASS_ROOTS = ("", "model", "vq_config", "model.params.first_stage_config")
_MAX_BYTES = 1 << 20


def read_settings(config: str | os.PathLike[str] | Mapping[str, Any]) -> Settings:
    """Return a publisher's configuration: a mapping as it is, or the yaml or json file of that path.

    Raises:
        InputError: there is no such file.
        ConfigError: it is no mapping.

    >>> read_settings({"embed_dim": 8})["embed_dim"]
    8
    """
    if isinstance(config, Mapping):
        return config
    path = Path(config)
    with open_regular(path, "a configuration") as file:
        if (size := size_of(file)) > _MAX_BYTES:
            raise ConfigError(f"{str(path)!r}: expected a configuration of at most {_MAX_BYTES} bytes, got {size}")
        text = read_exactly(file, size).tobytes()
    try:
        value = json.loads(text) if path.suffix == ".json" else _yaml(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{str(path)!r}: expected JSON or YAML, but {escape(str(error))}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{str(path)!r}: expected a mapping, got {type(value).__name__}")
    return value


def find_settings(path: Path) -> Path | None:
    """Return the configuration that lies beside a checkpoint, if any: of its name, or of a name that publishers use."""
    names = [f"{path.stem}{suffix}" for suffix in (".yaml", ".yml", ".json")]
    names += ["config.json", "config.yaml", "model.yaml", "../configs/model.yaml"]
    folder = path if path.is_dir() else path.parent
    return next((folder / name for name in names if (folder / name).is_file()), None)


def stated(settings: Settings | None, family: Family) -> Facts:
    """Return what a configuration says in the family's words; the first place that knows any of them is the section.

    Raises:
        ConfigError: it is given and says nothing of this family.
    """
    if settings is None:
        return {}
    if found := _stated(settings, family):
        return found
    raise ConfigError(
        f"expected a configuration of {family.name} with some of {', '.join(family.words)}, got one with "
        f"{escape(', '.join(map(str, list(settings)[:20])))}"
    )


def speaks_of(settings: Settings, family: Family) -> bool:
    """Tell whether a configuration says anything in the family's words."""
    return bool(_stated(settings, family))


def _stated(settings: Settings, family: Family) -> Facts:
    for root in _ROOTS:
        section = _at(settings, root)
        found = {word: value for place, word in family.words.items() if (value := _at(section, place)) is not None}
        if found:
            return found
    return {}


def classes(settings: Settings | None) -> set[str]:
    """Return the names of classes that a configuration gives; they are compared and never imported."""
    found: set[str] = set()
    for root in _CLASS_ROOTS if settings is not None else ():
        section = _at(settings, root)
        for key in _CLASSES:
            value = _at(section, key)
            found |= {item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)}
    return found


def compare(said: Facts, facts: Facts, family: Family) -> None:
    """Raise MismatchError, naming all differences, when a configuration says other than the shapes."""
    problems = [
        f"{word} is {escape(repr(said[word]), 60)}, the tensors say {facts[word]!r}"
        for word in said
        if facts.get(word) is not None and not _equal(said[word], facts[word])
    ]
    if problems:
        raise MismatchError(
            f"expected configuration and weights of one model ({family.name}), but {'; '.join(problems)}"
        )


def _equal(said: Any, fact: Any) -> bool:
    return list(said) == fact if isinstance(fact, list) and isinstance(said, Sequence) else said == fact


def _at(section: Any, place: str) -> Any:
    for key in place.split(".") if place else ():
        section = section.get(key) if isinstance(section, Mapping) else None
    return section


def _yaml(text: bytes) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
