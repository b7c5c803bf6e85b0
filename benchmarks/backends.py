"""vqtok's own contenders: the automatic choice, and every backend held to by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vqtok import ops

from .protocol import Call, Contender

_VERDICTS = ("taken", "can run", "cannot run")
_ELSEWHERE = "cannot run: runs on "
_SLOW = "reference"
"""States what is right, in no hurry at all."""


def backend_names(op_name: str, device: str) -> list[str]:
    """Return the names of an op's backends for a device, those included that cannot run here: they say why."""
    zeros = torch.zeros(1, 1, device=device)
    rows = [line.split(maxsplit=1) for line in ops.explain(op_name, zeros, zeros).splitlines()[1:]]
    verdicts = {name: "".join(verdict) for name, *verdict in rows}
    return [name for name, it in verdicts.items() if it.startswith(_VERDICTS) and not it.startswith(_ELSEWHERE)]


def held(name: str, prepare: Callable[[Any], Call]) -> Callable[[Any], Call]:
    """Return the same call, held to a backend."""

    def prepare_held(inputs: Any) -> Call:
        call = prepare(inputs)

        def run() -> Any:
            with ops.use_backend(name):
                return call()

        return run

    return prepare_held


def ours(op_name: str, device: str, prepare: Callable[[Any], Call]) -> list[Contender]:
    """Return ``vqtok``, which chooses by itself, and ``vqtok:NAME`` for each backend."""
    named = [
        Contender(f"vqtok:{name}", held(name, prepare), ours=True, optional=name == _SLOW)
        for name in backend_names(op_name, device)
    ]
    return [Contender("vqtok", prepare, ours=True), *named]
