"""The JSON files of a run: each is written in one form and carries its own sha256, so a flipped bit is found."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from vqtok.errors import IntegrityError, MismatchError, escape
from vqtok.store.canonical import canonical_json, pretty_json, strict_json
from vqtok.store.fingerprint import mapping_fingerprint
from vqtok.store.reading import open_regular, read_exactly, size_of

RUN_FORMAT = "vqtok.run/1"
_Sha = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0)]
D = TypeVar("D", bound="Document")


class Document(BaseModel):
    """A JSON file of a run folder; frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    def pack(self) -> bytes:
        """Return the file's bytes: the fields, and under ``sha256`` the checksum of their canonical JSON."""
        fields = self.model_dump(mode="json")
        return pretty_json({**fields, "sha256": checksum(fields)}).encode()


def checksum(fields: dict[str, Any]) -> str:
    """Return the sha256 of canonical JSON.

    >>> checksum({})[:8]
    '44136fa3'
    """
    return hashlib.sha256(canonical_json(fields).encode()).hexdigest()


def unpack(kind: type[D], data: bytes, name: str) -> D:
    """Read a document.

    Raises:
        IntegrityError: it is damaged or malformed; the message begins with the name.
        MismatchError: it is intact, and of another format.
    """
    try:
        value = strict_json(data)
        fields: dict[str, Any] = dict(value) if isinstance(value, dict) else {}
        came = fields.pop("sha256", "")
        if came != checksum(fields) or pretty_json({**fields, "sha256": came}).encode() != data:
            raise ValueError("its content and its sha256 differ")  # noqa: TRY301
        if fields.get("format", RUN_FORMAT) != RUN_FORMAT:
            raise MismatchError(f"{name}: expected format {RUN_FORMAT!r}, got {escape(str(fields['format']), 40)!r}")
        return kind.model_validate(fields)
    except ValidationError as error:
        reason = f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}"
    except ValueError as error:
        reason = str(error)
    raise IntegrityError(f"{name}: damaged: {escape(reason)}")


def read_document(kind: type[D], path: Path) -> D:
    """Read a document from its file; InputError when there is none."""
    return unpack(kind, read_file(path, "a file of a run"), os.fspath(path))


def read_file(path: Path, what: str) -> bytes:
    """Return a regular file's bytes."""
    with open_regular(path, what) as file:
        return bytes(read_exactly(file, size_of(file)))


class Settings(Document):
    """What decides a shard's bytes beside the images: equal settings and images give equal shards.

    Attributes:
        model: fingerprint of the model.
        codebook: fingerprint of its quantizer.
        preprocess: fingerprint of what is done to images before.
        vocab_size: number of codes.
        precision: ``float32`` or ``bfloat16``.
        repro: ``fast``, ``stable`` or ``exact``.
        crop: ``none``, ``center``, ``ten`` or ``random:N``.
        size: side of crops, or 0.
        seed: of random crops.
        source_hash: whether shards hold the sha256 of each image's file.
        limits: of images: ``max_bytes``, ``max_pixels``, ``max_side``.
        shard_size: images a shard.
        tile: side in pixels above which images go through in tiles, or 0; left out where it is 0, as in older runs.
    """

    model: _Sha
    codebook: _Sha
    preprocess: _Sha
    vocab_size: Annotated[int, Field(ge=1)]
    precision: Literal["float32", "bfloat16"]
    repro: Literal["fast", "stable", "exact"]
    crop: str
    size: _Count
    seed: int
    source_hash: bool
    limits: dict[str, int]
    shard_size: Annotated[int, Field(ge=1)]
    tile: _Count = 0

    @model_serializer(mode="wrap")
    def _without_default(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = serialize(self)
        return fields if self.tile else {name: value for name, value in fields.items() if name != "tile"}

    def fingerprint(self) -> str:
        """Return the sha256 of the settings, which shards carry as ``settings``."""
        return mapping_fingerprint(self.model_dump(mode="json"))


class Manifest(Document):
    """What a run shall be: written once, before the first shard.

    Attributes:
        format: ``vqtok.run/1``.
        settings: what decides the bytes, beside the images.
        images: number of images listed.
        listing: sha256 over names and what travels with them.
        chunks: sha256 of each ``plan/NNNNN.jsonl``: the images of each shard.
        inputs: what was asked for, as it was written.
        columns: how tables are read.
        model: folder of the model, or "" for the embedded one.
        execution: what the first process ran on.
        created_by: the program.
    """

    format: Literal["vqtok.run/1"] = RUN_FORMAT
    settings: Settings
    images: _Count
    listing: _Sha
    chunks: list[_Sha]
    inputs: list[str]
    columns: dict[str, str]
    model: str
    execution: dict[str, Any]
    created_by: str

    def job(self) -> str:
        """Return the fingerprint of the job: the settings and the names of the images."""
        return mapping_fingerprint({"settings": self.settings.model_dump(mode="json"), "listing": self.listing})

    def differences(self, other: Manifest) -> list[str]:
        """Return what another job has otherwise, in words; empty for the same job.

        >>> Manifest.differences.__name__
        'differences'
        """
        mine, theirs = self.settings.model_dump(mode="json"), other.settings.model_dump(mode="json")
        rows = [
            f"{name} {_short(mine.get(name, 0))} -> {_short(theirs.get(name, 0))}"
            for name in {**mine, **theirs}
            if mine.get(name, 0) != theirs.get(name, 0)
        ]
        if self.listing != other.listing:
            rows.append(f"images {self.images} ({self.listing[:12]}) -> {other.images} ({other.listing[:12]})")
        return rows


class Part(Document):
    """A file of a shard: its checksum and size."""

    sha256: _Sha
    bytes: _Count


class Record(Document):
    """The commit record: a shard without one that fits does not exist.

    Attributes:
        shard: its number.
        settings: fingerprint of the settings.
        plan: sha256 of its images' list.
        images: number of images planned; ok + failed.
        ok: number of images in the shard.
        failed: number of images in the failures.
        rows: number of rows of the token file: more than ok when images were cropped several times.
        tokens: number of tokens.
        keys: first and last key of the plan, or nothing.
        failures: number of failures by kind.
        files: checksums of ``vqt`` and, when there is any, ``failures``, ``rows`` and ``ties``.
        execution: what it was made on.
    """

    shard: _Count
    settings: _Sha
    plan: _Sha
    images: _Count
    ok: _Count
    failed: _Count
    rows: _Count
    tokens: _Count
    keys: list[str]
    failures: dict[str, int]
    files: dict[Literal["vqt", "failures", "rows", "ties"], Part]
    execution: dict[str, Any]


class Index(Document):
    """All commit records in one file, for readers; made anew from them at any time."""

    job: _Sha
    images: _Count
    ok: _Count
    failed: _Count
    rows: _Count
    tokens: _Count
    failures: dict[str, int]
    shards: list[dict[str, Any]]


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
