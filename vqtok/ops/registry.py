"""Ops, their backends, and the choice between them with its reasons."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from vqtok.errors import BackendUnavailable, ConfigError
from vqtok.ops.checks import FLOATS

_WITHOUT_FLOAT64 = frozenset({"mps"})

_forced: ContextVar[str] = ContextVar("vqtok_backend", default="")


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to compute an op.

    Attributes:
        name: what `use_backend` and ``VQTOK_BACKEND`` call it.
        function: ``module:attribute``, imported on first use.
        devices: torch device types it runs on; empty: wherever torch runs and has float64.
        dtypes: dtypes of latents it takes; empty: all there are.
        codebook_dtypes: dtypes of codebooks it takes.
        max_dim: largest D it takes.
        probe: ``module:attribute`` of a function that returns why it cannot run on this machine, or "".
        prepare: ``module:attribute`` of a function that packs a codebook for ``function``, which then takes the tensor
            or tensors in the codebook's place.
        pays: ``module:attribute`` of a function of a `Workload` that returns why the automatic choice does better to
            pass it over, or "".
    """

    name: str
    function: str
    devices: frozenset[str] = frozenset()
    dtypes: frozenset[torch.dtype] = FLOATS
    codebook_dtypes: frozenset[torch.dtype] = FLOATS
    max_dim: int = 1 << 31
    probe: str = ""
    prepare: str = ""
    pays: str = ""

    def serves(self, device_type: str) -> bool:
        """Return whether it is for this type of device, whatever else may be lacking."""
        return not self.devices or device_type in self.devices

    def load(self) -> Callable[..., Any]:
        """Return ``function``, imported."""
        return _imported(self.function)

    def packed(self, *codebook: Tensor) -> tuple[Tensor, ...]:
        """Return what ``function`` takes in the codebook's place."""
        packed = _imported(self.prepare)(*codebook) if self.prepare else codebook
        return (packed,) if isinstance(packed, Tensor) else packed

    def reason_against(self, latents: Tensor, codebook: Tensor | None = None) -> str:
        """Return why this backend cannot take these inputs on this machine, or ""."""
        if not self.serves(latents.device.type):
            return f"runs on {_listed(self.devices)}, the latents are on {latents.device.type}"
        if not self.devices and latents.device.type in _WITHOUT_FLOAT64:
            return f"needs float64, which {latents.device.type} lacks: move the latents to the CPU"
        if self.dtypes and latents.dtype not in self.dtypes:
            return f"takes {_listed(map(_short, self.dtypes))}, the latents are {_short(latents.dtype)}"
        if codebook is not None and codebook.dtype not in self.codebook_dtypes:
            return f"takes codebooks of {_listed(map(_short, self.codebook_dtypes))}, this is {_short(codebook.dtype)}"
        if latents.shape[-1] > self.max_dim:
            return f"takes up to {self.max_dim} dimensions, the latents have {latents.shape[-1]}"
        return _imported(self.probe)() if self.probe else ""

    def reason_to_pass(self, work: Workload | None) -> str:
        """Return why this backend, although it can run, is not worth it for this work, or ""."""
        return _imported(self.pays)(work) if self.pays and work else ""


@dataclass(frozen=True, slots=True)
class Workload:
    """How much a lookup has to do.

    Attributes:
        rows: number of latents; 0: unknown and many, of a codebook that is packed once.
        vocab_size: number of codes.
        dim: dimensions.
    """

    rows: int
    vocab_size: int
    dim: int


@dataclass(frozen=True, slots=True)
class Op:
    """One meaning and the backends that compute it, the preferred ones first; the last is the reference."""

    name: str
    backends: tuple[Backend, ...]

    def choose(self, latents: Tensor, codebook: Tensor | None = None) -> Callable[..., Any]:
        """Return the function of the forced backend, or of the first one that can run.

        Raises:
            BackendUnavailable: the forced backend cannot run; the message says why.
            ConfigError: ``VQTOK_BACKEND`` names no backend.
        """
        return self.chosen(latents, codebook).load()

    def chosen(self, latents: Tensor, codebook: Tensor | None = None, work: Workload | None = None) -> Backend:
        """Return the backend that `choose` takes; with ``work``, of those that can run the first that pays."""
        if forced := self.forced():
            if reason := forced.reason_against(latents, codebook):
                raise BackendUnavailable(
                    f"expected backend {forced.name!r} to compute {self.name}, but it {reason}; "
                    "leave the choice to vqtok or see vqtok.ops.explain"
                )
            return forced
        reason = ""
        for backend in self.backends:
            reason = backend.reason_against(latents, codebook)
            if not reason and not backend.reason_to_pass(work):
                return backend
        raise BackendUnavailable(
            f"expected a backend to compute {self.name}, but none can; {self.backends[-1].name} {reason}"
        )

    def forced(self) -> Backend | None:
        """Return this op's backend of the forced name; a name that only other ops have leaves the choice automatic."""
        name = forced_backend()
        return next((backend for backend in self.backends if backend.name == name), None)


def forced_backend() -> str:
    """Return the name set by `use_backend` or else by ``VQTOK_BACKEND``, or "" for the automatic choice."""
    if name := _forced.get():
        return name
    if name := os.environ.get("VQTOK_BACKEND", ""):
        _check_name(name, "VQTOK_BACKEND")
    return name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Compute every op that has a backend of this name with it, inside a ``with`` block.

    Ops that have no backend of this name go on choosing by themselves. The choice belongs to the running thread or
    task (a `contextvars.ContextVar`) and goes before ``VQTOK_BACKEND``.

    Args:
        name: a backend's name, as `explain` lists them.

    Raises:
        ConfigError: no op has a backend of this name.

    >>> import torch, vqtok.ops
    >>> with vqtok.ops.use_backend("reference"):
    ...     vqtok.ops.nearest_code(torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0]]))
    tensor([1])
    """
    _check_name(name, "use_backend")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def explain(op_name: str, latents: Tensor, codebook: Tensor | None = None) -> str:
    """Return a table of an op's backends: which can run on these inputs, why others cannot, which one is taken.

    Args:
        op_name: an op's name, as the functions of this package have it; ``_backward`` is added for its gradient.
        latents: [..., D], or an op's values.
        codebook: [K, D], for ops that read one.

    Raises:
        ConfigError: no op has this name, or ``VQTOK_BACKEND`` names no backend.

    >>> import torch
    >>> print(explain("finite_scalar_backward", torch.zeros(5, 2)))
    finite_scalar_backward: latents float32 [5, 2] on cpu
      reference  taken
    """
    ops = _ops()
    if op_name not in ops:
        raise ConfigError(f"expected an op's name, one of {_listed(ops)}, got {op_name!r}")
    inputs = ", ".join(
        f"{name} {_short(x.dtype)} {list(x.shape)} on {x.device}"
        for name, x in (("latents", latents), ("codebook", codebook))
        if x is not None
    )
    op, lines, taken = ops[op_name], [f"{op_name}: {inputs}"], False
    forced, width = op.forced(), max(len(backend.name) for backend in op.backends)
    work = None if codebook is None else Workload(latents.shape[:-1].numel(), *codebook.shape)
    for backend in op.backends:
        reason, passed = backend.reason_against(latents, codebook), backend.reason_to_pass(work)
        verdict = f"cannot run: {reason}" if reason else f"can run, but {passed}" if passed else "can run"
        wanted = backend == forced if forced else not taken and not passed
        if wanted and not reason:
            taken, verdict = True, "taken" + (", as asked for" if forced else "")
        lines.append(f"  {backend.name:<{width}}  {verdict}")
    if forced and not taken:
        lines.append(f"  {forced.name!r} was asked for and cannot run: calls will raise BackendUnavailable")
    return "\n".join(lines)


def _ops() -> dict[str, Op]:
    return import_module("vqtok.ops.table").OPS


def _check_name(name: str, came_from: str) -> None:
    names = dict.fromkeys(backend.name for op in _ops().values() for backend in op.backends)
    if name not in names:
        raise ConfigError(f"expected {came_from} to name a backend, one of {_listed(names)}, got {name!r}")


_functions: dict[str, Callable[..., Any]] = {}


def _imported(path: str) -> Callable[..., Any]:
    """Return what ``module:attribute`` names, importing it once."""
    if path not in _functions:
        module, attribute = path.split(":")
        _functions[path] = getattr(import_module(module), attribute)
    return _functions[path]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
