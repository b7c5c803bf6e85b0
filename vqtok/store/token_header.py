"""What a token file says of itself, and the record of how its tokens were made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from vqtok.errors import ConfigError, IntegrityError
from vqtok.store.canonical import canonical_json, strict_json

_FINGERPRINT = re.compile(r"(?:[0-9a-f]{64})?")
_FINGERPRINTS = ("model", "codebook", "preprocess")
_RECORD_KEYS = {"fingerprints", "execution", "created_by"}
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TokenHeader:
    """The header of a token file.

    Attributes:
        vocab_size: number of codes; every token is below it.
        images: number of images, n.
        tokens: number of tokens of all images.
        layout: "grid" when every image has Q * h * w tokens, "runs" when some have fewer (dynamic tokenizers).
        fingerprints: sha256 or "" by name; "model", "codebook" and "preprocess" are always there.
        execution: how the tokens were made (versions, device, precision, ...); any JSON.
        created_by: the program that wrote the file.
        sha256: checksum of header and tensors, as stored under ``vqt.sha256``.
    """

    vocab_size: int
    images: int
    tokens: int
    layout: str
    fingerprints: Mapping[str, str]
    execution: Mapping[str, object]
    created_by: str
    sha256: str

    def record(self) -> dict[str, object]:
        """Return what `Tokens.record` holds, to write another file of the same origin."""
        return {"fingerprints": self.fingerprints, "execution": self.execution, "created_by": self.created_by}


def header_json(
    record: Mapping[str, object], model: str, counts: Mapping[str, int], vocab_size: int, layout: str
) -> str:
    """Return the canonical JSON of ``vqt.header``.

    Args:
        record: ``fingerprints`` (sha256 by name), ``execution`` (any JSON) and ``created_by`` (text), each optional.
        model: the fingerprint that the tokens carry, or "".
        counts: number of "images" and of "tokens".
        vocab_size: number of codes.
        layout: "grid" or "runs".

    Raises:
        ConfigError: the record has other keys or types, or names another model.
    """
    if unknown := sorted(set(record) - _RECORD_KEYS):
        raise ConfigError(f"expected a record of {', '.join(sorted(_RECORD_KEYS))}, got also {', '.join(unknown)}")
    fingerprints = {**dict.fromkeys(_FINGERPRINTS, ""), "model": model, **_typed(record, "fingerprints", Mapping, {})}
    if fingerprints["model"] != model:
        raise ConfigError(
            f"expected a record of the model that made the tokens, {model!r}, got {fingerprints['model']!r}: "
            "leave the model out of the record, the tokens carry it"
        )
    for name, digest in fingerprints.items():
        if not isinstance(digest, str) or not _FINGERPRINT.fullmatch(digest):
            raise ConfigError(f"expected fingerprint {name!r} of 64 lowercase hexadecimal digits or '', got {digest!r}")
    return canonical_json(
        {
            "counts": counts,
            "created_by": _typed(record, "created_by", str, "vqtok"),
            "execution": _typed(record, "execution", Mapping, {}),
            "fingerprints": fingerprints,
            "layout": layout,
            "vocab_size": vocab_size,
        }
    )


def parse_header_json(text: str, sha256: str) -> TokenHeader:
    """Read ``vqt.header``; fields of later minor versions are ignored, known ones must be there and well-formed.

    Raises:
        IntegrityError: anything else.
    """
    try:
        value = strict_json(text.encode("utf-8"))
        fields = _typed({"vqt.header": value}, "vqt.header", dict)
        counts = _typed(fields, "counts", dict)
        header = TokenHeader(
            vocab_size=_typed(fields, "vocab_size", int),
            images=_typed(counts, "images", int),
            tokens=_typed(counts, "tokens", int),
            layout=_typed(fields, "layout", str),
            fingerprints=cast(dict[str, str], _typed(fields, "fingerprints", dict)),
            execution=cast(dict[str, object], _typed(fields, "execution", dict)),
            created_by=_typed(fields, "created_by", str),
            sha256=sha256,
        )
        digests = [_typed(header.fingerprints, name, str) for name in {*_FINGERPRINTS, *header.fingerprints}]
    except (ValueError, ConfigError) as error:
        raise IntegrityError(f"expected vqt.header to describe tokens, but: {error}") from error
    if not all(map(_FINGERPRINT.fullmatch, digests)) or canonical_json(value) != text:
        raise IntegrityError("expected vqt.header in canonical form with sha256 fingerprints, got another text")
    return header


def _typed(fields: Mapping[str, object], key: str, kind: type[_T], default: _T | None = None) -> _T:
    """Return a field of the given type (true is no number), or the default when it is absent."""
    value = fields.get(key, default)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"expected {key!r} of type {kind.__name__}, got {str(value)[:80]!r}")
    return value
