"""What an attack is, and the sound things that attacks change."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch

import vqtok
from tests.hostile import image_kinds as pictures
from tests.hostile import test_checkpoints as checkpoints
from vqtok import adapters

REFUSED = frozenset({2, 4, 6, 7})
IMAGES, CONFIG = frozenset({0, 3}), frozenset({2, 7})
COMMANDS = ("tokenize detokenize reconstruct status verify retry merge convert inspect train doctor bench").split()


@dataclass(frozen=True, eq=False)
class Attack:
    """One hostile thing: what lies in the folder, what is called, and which exit codes are right.

    ``api`` names a function of `siege.CALLS` that is given ``target``; ``prepare`` runs in the folder, in the process
    that is attacked. In command lines ``{m}`` is a sound model.
    """

    kind: int
    name: str
    line: tuple[str, ...]
    codes: frozenset[int]
    files: Mapping[str, bytes] = field(default_factory=dict)
    api: str = ""
    target: str = ""
    prepare: Callable[[], None] | None = None


def run_line(*more: str, workers: int = 0) -> tuple[str, ...]:
    return ("tokenize", "in", "-o", "run/", "-m", "{m}", "--json", "--workers", str(workers), *more)


@lru_cache
def good_png() -> bytes:
    return pictures.save(pictures.picture(16, 24, seed=5), "PNG")


def tar_of(member: str, type: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, data in (("good.png", tarfile.REGTYPE, good_png()), (member, type, good_png()[:-1])):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(data) if info.size else None)
    return buffer.getvalue()


@lru_cache
def sound_model() -> tuple[bytes, bytes]:
    """config.json and model.safetensors of a tiny model."""
    with tempfile.TemporaryDirectory() as place:
        save_model(Path(place) / "m")
        return (Path(place) / "m/config.json").read_bytes(), (Path(place) / "m/model.safetensors").read_bytes()


def save_model(path: Path) -> None:
    torch.manual_seed(0)
    vqtok.build("photo-f8", vocab_size=16, channels=(8, 8, 8)).save(path)


def sound_config() -> bytes:
    return sound_model()[0]


def model_folder(kind: int, name: str, config: bytes, weights: bytes, codes: frozenset[int] = REFUSED) -> Attack:
    files = {"bad/config.json": config, "bad/model.safetensors": weights}
    line = ("tokenize", "in", "-o", "run/", "-m", "bad")
    return Attack(kind, f"{kind}-{name}", line, codes, files, "load", "bad")


@lru_cache
def foreign_state() -> dict[str, torch.Tensor]:
    """A tiny VQGAN as its publisher would save it."""
    torch.manual_seed(0)
    tokenizer = vqtok.build("vqgan-f16-1024", vocab_size=24, dim=6, multiple=2, **checkpoints.CONV).eval()
    return {
        name: tensor.clone() for name, tensor in adapters.export(tokenizer.inference_tensors(), "taming_vqgan").items()
    }


def packed(content: object, *, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()
