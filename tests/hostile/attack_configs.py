"""77 to 88: configurations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from tests.hostile import test_model_folders as folders
from tests.hostile.attack import REFUSED, Attack, foreign_state, model_folder, packed, sound_config, sound_model


def places(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of each object and each leaf of a configuration."""
    yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*path, name))


def altered(path: tuple[str, ...], change: Callable[[dict[str, object], str], None]) -> bytes:
    """The sound configuration with one entry changed."""
    config = json.loads(sound_config())
    inner = config
    for name in path[:-1]:
        inner = inner[name]
    change(inner, path[-1])
    return json.dumps(config).encode()


def put(value: object) -> Callable[[dict[str, object], str], None]:
    return lambda fields, name: fields.update({name: value})


def configurations() -> Iterator[Attack]:
    config = json.loads(sound_config())
    found = [path for path in places(config["architecture"], ("architecture",)) if path]
    inner = [path for path in found if isinstance(look(config, path), dict)]
    leaves = [path for path in found if not isinstance(look(config, path), dict)]
    for path in inner:
        name = ".".join(path)
        for key in ("evil", "_target_", "auto_map", "trust_remote_code"):
            kind = 77 if key == "evil" else 85
            yield broken(kind, f"{name}-{key}", altered((*path, key), put("os.system")))
    for path in leaves:
        name = ".".join(path)
        yield broken(78, name, altered(path, lambda fields, key: fields.update({key[:-1] + "_": fields.pop(key)})))
        for number, value in enumerate(("8", None, [], {"a": 1}, "x" * 9)):
            if type(value) is not type(look(config, path)) and (len(name) + number) % 2:
                yield broken(79, f"{name}-{number}", altered(path, put(value)))
    for number, text in enumerate((b"NaN", b"1e400", b"-Infinity", b"1e-400", b"9" * 5000)):
        yield broken(80, f"{number}", sound_config().replace(b'"vocab_size": 16', b'"vocab_size": ' + text, 1))
    yield from raw_configurations()


def values() -> Iterator[Attack]:
    """81 and 82: numbers that no model has."""
    sizes = ("architecture", "quantizer", "vocab_size")
    for number, value in enumerate((0, -1, 1 << 31, 1 << 63, 1 << 70, 15, 17)):
        yield broken(81, f"{number}", altered(sizes, put(value)))
    for number, value in enumerate((0, -8, 7, 1 << 40)):
        for name in ("size", "multiple") if value else ("multiple",):  # a size of 0 is none
            yield broken(82, f"{name}-{number}", altered(("architecture", "preprocess", name), put(value)))


def look(config: dict, path: tuple[str, ...]) -> object:
    value = config
    for name in path:
        value = value[name]
    return value


def raw_configurations() -> Iterator[Attack]:
    config = sound_config()
    for number, (name, data) in enumerate(folders.CONFIGS.items()):
        first = name.partition("_")[0]
        yield broken(int(first) if first.isdigit() else 79, f"raw-{name}-{number}", data)
    for number, at in enumerate((1, 40, len(config) // 2)):
        yield broken(87, f"double-{number}", config.replace(b'"format"', b'"format": "x",\n "format"', 1))
        yield broken(86, f"long-{number}", config.replace(b'"licence": "', b'"licence": "' + b"y" * (10 << 20), 1))
        yield broken(88, f"bom-{number}", (b"\xef\xbb\xbf", b"\xff\xfe", b"\0")[number] + config)
        yield broken(84, f"cut-{number}", config[:at])
    bombs = {
        83: b"a: &a [x,x,x,x,x,x,x,x,x]\n"
        + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(9)),
        84: b"x: !!python/object/apply:os.system [touch BOMB]\n",
        85: b"_target_: os.system\nparams: {command: touch BOMB}\n",
        86: b"x: " + b"y" * (10 << 20),
        87: b"ddconfig: {ch: 32}\nddconfig: {ch: 32}\n",
        88: "ddconfig: {ch: 32}\n".encode("utf-16"),
    }
    state = packed(foreign_state())
    for kind, text in bombs.items():
        line = ("convert", "model", "x.ckpt", "out", "--config", "c.yaml")
        codes = REFUSED | {0} if kind > 86 else REFUSED  # YAML lets a key come twice, and knows UTF-16
        yield Attack(kind, f"{kind}-yaml", line, codes, {"x.ckpt": state, "c.yaml": text}, "load_with", "x.ckpt")
    for kind, text in {**bombs, 77: b"evil = 1\n", 79: b"steps = 'many'\n", 80: b"steps = nan\n"}.items():
        line = ("train", "r.toml", "-o", "out", "--dry-run")
        yield Attack(kind, f"{kind}-recipe", line, REFUSED, {"r.toml": text})


def broken(kind: int, name: str, config: bytes) -> Attack:
    return model_folder(kind, name, config, sound_model()[1])
