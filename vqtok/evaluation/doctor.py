"""What this installation is, which backends run and why, and a self-test."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from PIL import features

from vqtok import ops, store
from vqtok.errors import IntegrityError, VqtokError
from vqtok.loading import load
from vqtok.ops.table import NEAREST_CODE

_PACKAGES = ("vqtok", "torch", "numpy", "pillow", "safetensors", "pydantic", "click", "triton")


def examine() -> dict[str, Any]:
    """Return versions, devices, backends and the outcome of the self-test, as lines of text by topic.

    The entry ``failed`` names the tests that failed; it is empty in a sound installation.
    """
    tests = {name: _outcome(test) for name, test in _TESTS.items()}
    return {
        "versions": [f"python {platform.python_version()}, {platform.system()} {platform.machine()}", *_versions()],
        "devices": _devices(),
        "backends": ops.explain("nearest_code", torch.zeros(64, 8), torch.zeros(32, 8)).splitlines(),
        "self-test": [f"{'ok    ' if not problem else 'FAILED'} {name}{problem}" for name, problem in tests.items()],
        "failed": [name for name, problem in tests.items() if problem],
    }


def _versions() -> list[str]:
    lines = []
    for name in _PACKAGES:
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name} not installed")
    return [*lines, f"libjpeg-turbo {features.version('libjpeg_turbo')}, zlib {features.version('zlib')}"]


def _devices() -> list[str]:
    lines = [f"cpu: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"]
    if not torch.cuda.is_available():
        return [*lines, "cuda: not available to this torch"]
    return [*lines, *(f"cuda:{i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count()))]


def _outcome(test: Callable[[], bool]) -> str:
    try:
        return "" if test() else ": another answer than expected"
    except (VqtokError, RuntimeError) as error:
        return f": {error}"


def _backends_agree() -> bool:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randint(-3, 4, (257, 8), generator=generator).float()  # integers: ties everywhere
    codebook = torch.randint(-3, 4, (101, 8), generator=generator).float()
    answers = []
    for backend in NEAREST_CODE.backends:
        if not backend.reason_against(latents):
            with ops.use_backend(backend.name):
                answers.append(ops.nearest_code(latents, codebook))
    return all(torch.equal(answer, answers[-1]) for answer in answers)


def _round_trip() -> bool:
    tokenizer = load()
    y, x = np.mgrid[0:40, 0:56]
    image = np.stack([4 * x, 6 * y, 2 * (x + y)], axis=2).astype(np.uint8)
    tokens = tokenizer.tokenize([image, image])
    return torch.equal(*map(torch.from_numpy, tokens.sequences())) and tokenizer.detokenize(tokens)[0].size == (56, 40)


def _damage_is_found() -> bool:
    data = bytearray(store.tokens_to_bytes(load().tokenize(np.zeros((16, 16, 3), np.uint8))))
    data[len(data) // 2] ^= 1
    try:
        store.tokens_from_bytes(data)
    except IntegrityError:
        return True
    return False


_TESTS = {
    "every nearest_code backend that runs here gives the reference's codes": _backends_agree,
    "the default tokenizer gives equal images equal tokens": _round_trip,
    "a flipped bit in a token file is found": _damage_is_found,
}
