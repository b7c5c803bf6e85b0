"""63 to 76: checkpoints and model folders."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterator

import numpy as np
import torch

from tests.hostile import test_checkpoints as checkpoints
from tests.hostile import test_model_folders as folders
from tests.hostile.attack import REFUSED, Attack, foreign_state, model_folder, packed, sound_config, sound_model, tar_of


def checkpoint(kind: int, name: str, data: bytes, suffix: str = "ckpt") -> Attack:
    path = f"bad.{suffix}"
    return Attack(kind, f"{kind}-{name}", ("convert", "model", path, "out"), REFUSED, {path: data}, "load", path)


def foreign_checkpoints() -> Iterator[Attack]:
    state = foreign_state()
    for name, make in checkpoints.BOMBS.items():
        for legacy in (False, True):
            content = {"state_dict": state, "x": make()}
            kind = 63 if name in ("system", "eval", "open", "reduce") else 64
            yield checkpoint(kind, f"{name}-{legacy}", packed(content, legacy=legacy))
    for protocol in range(6):
        bomb = pickle.dumps(checkpoints.Bomb(os.system, "touch BOMB"), protocol=protocol)
        yield checkpoint(63, f"protocol-{protocol}", bomb, ("pkl", "pt", "bin")[protocol % 3])
    names = sorted(state)
    for seed in range(8):
        name = names[seed * 7 % len(names)]
        tensor, rest = state[name], {key: x for key, x in state.items() if key != name}
        yield checkpoint(65, f"{seed}", tar_of(f"{seed}.pt", tarfile.REGTYPE), "tar" if seed % 2 else "ckpt")
        yield checkpoint(68, f"{seed}", packed(rest))
        yield checkpoint(69, f"{seed}", packed({**state, f"{name}_more": tensor}))
        yield checkpoint(70, f"{seed}", packed({**state, name: torch.zeros(*tensor.shape, 2)}))
        yield checkpoint(71, f"{seed}", packed({**state, name: tensor.to((torch.int64, torch.bool)[seed % 2])}))
        yield checkpoint(72, f"{seed}", packed({**state, name: torch.full_like(tensor, (np.nan, np.inf)[seed % 2])}))
    book = "quantize.embedding.weight"
    for number, shape in enumerate([(6, 24), (144,), (24, 6, 1), (0, 6), (24, 0), (1, 24, 6)]):
        yield checkpoint(74, f"{number}", packed({**state, book: torch.ones(shape)}))
    yield from torn_checkpoints()


def torn_checkpoints() -> Iterator[Attack]:
    """66, 67, 75, 76 and cuts: containers that lie."""
    state = foreign_state()
    for number, case in enumerate(
        [((5,), (1,), 0), ((4,), (1,), 1), ((2,), (4,), 0), ((1 << 40,), (0,), 0), ((2,), (-1,), 1), ((4,), (1, 1), 0)]
    ):
        yield checkpoint(66, f"{number}", rezipped(packed({"a": torch.zeros(4)}), checkpoints.tensor_pickle(*case)))
    whole = packed(state)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        yield checkpoint(67, f"{seed}", rezipped(whole, deflate=True, only=seed))
        at = int(rng.integers(len(whole) // 10, len(whole)))
        yield checkpoint(66, f"cut-{seed}", whole[:at])
        wrong = {"weights": {"dtype": "F32", "sha256": "0" * 64}, "dim": seed}
        yield model_folder(76, f"weights-{seed}", json.dumps(wrong).encode(), rng.bytes(200))
    for number, (name, data) in enumerate(folders.FOREIGN.items()):
        first = name.partition("_")[0]
        kind = int(first) if first.isdigit() else 66
        yield model_folder(kind, f"folder-{name}", sound_config(), data)
        if number % 2:
            yield checkpoint(kind, f"file-{name}", data, "safetensors")
    for seed in range(12):
        config, weights = sound_model()
        rng, data = np.random.default_rng(seed), bytearray(weights)
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        yield model_folder(75 if seed % 2 else 73, f"flip-{seed}", config, bytes(data))
    yield model_folder(73, "zeros", *zero_codebook())


def rezipped(data: bytes, data_pickle: bytes = b"", *, deflate: bool = False, only: int = 0) -> bytes:
    """Write a zip anew: with another pickle, or with members deflated (all, or every third from ``only`` on)."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        for number, name in enumerate(source.namelist()):
            content = data_pickle if data_pickle and name.endswith("data.pkl") else source.read(name)
            squeeze = deflate and (only == 0 or number % only == 0)
            entry = zipfile.ZipInfo(name)  # of 1980, and the same bytes every time
            entry.compress_type = zipfile.ZIP_DEFLATED if squeeze else zipfile.ZIP_STORED
            target.writestr(entry, content)
    return out.getvalue()


def zero_codebook() -> tuple[bytes, bytes]:
    """A sound folder in all but that its codes are all one vector: usable or refused, never code 0 in silence."""
    config, weights = sound_model()
    size = struct.unpack("<Q", weights[:8])[0]
    entries = json.loads(weights[8 : 8 + size])
    name = next(key for key in entries if "codebook" in key)
    first, last = entries[name]["data_offsets"]
    return config, weights[: 8 + size + first] + bytes(last - first) + weights[8 + size + last :]
