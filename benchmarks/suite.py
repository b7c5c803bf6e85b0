"""All cases, and a run of some of them from request to report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from vqtok.errors import ConfigError
from vqtok.ops import native
from vqtok.ops.peak import fma_peak

from . import code_statistics, nearest_code, quantizer_step, tokenize_images
from .clocks import cuda_clock, wall_clock
from .harness import QUICK_ROUNDS, measure
from .machine import check_device, commit, machine, pin_threads, versions
from .memory import extra_bytes
from .protocol import Case, Contender, Panel, Plan, Say, Shape
from .report import SCHEMA, Memory, Report

CASES = {
    case.name: case for case in (nearest_code.CASE, code_statistics.CASE, quantizer_step.CASE, tokenize_images.CASE)
}


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure.

    Attributes:
        cases: names; all when empty.
        shapes: instead of each case's own.
        contenders: names; all but the optional ones when empty.
        quick: small shapes and few rounds, to see that all works.
        rounds: 0 for as many as fit, but at least seven.
        threads: 0 for torch's own number.
        device: ``cpu`` or ``cuda``.
    """

    cases: tuple[str, ...] = ()
    shapes: tuple[Shape, ...] = ()
    contenders: tuple[str, ...] = ()
    quick: bool = False
    rounds: int = 0
    threads: int = 0
    device: str = "cpu"


def run(request: Request, say: Say) -> Report:
    """Measure what was asked for.

    Raises:
        ConfigError: a case or a contender does not exist, or the shapes do not fit the cases.
        ResourceError: there is no such device.
        ReproducibilityError: an answer of vqtok's was proven wrong.
    """
    import torch

    check_device(request.device)
    cases = chosen_cases(request)
    field = {case.name: chosen_contenders(case, cases, request) for case in cases}
    threads = request.threads or torch.get_num_threads()
    pin_threads(threads)
    plan = _plan(request)
    panels: list[Panel] = []
    for case in cases:
        for shape in request.shapes or (case.quick_shapes if request.quick else case.shapes):
            say(f"{case.name} {' x '.join(map(str, shape))}")
            panels.append(measure(case, shape, field[case.name], plan, say))
    return Report(
        schema=SCHEMA,
        quick=request.quick,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        device=request.device,
        threads=threads,
        machine=machine(request.device),
        versions=versions(),
        commit=commit(),
        panels=tuple(panels),
        memory=tuple(_memory(cases, field, threads, say) if _wants_memory(request) else ()),
    )


def listing(device: str) -> str:
    """Return the cases, their shapes and their contenders; of those that are not installed, how to get them."""
    check_device(device)
    lines = []
    for case in CASES.values():
        shapes = ", ".join(" x ".join(map(str, shape)) for shape in case.shapes)
        lines += [f"{case.name}: {case.summary}", f"  {' x '.join(case.axes)}: {shapes}"]
        for contender in case.contenders(device):
            missing = contender.missing()
            state = f"not installed ({missing})" if missing else "on request" if contender.optional else ""
            lines.append(f"    {contender.name:<27}  {state}".rstrip())
    return "\n".join(lines)


def chosen_cases(request: Request) -> list[Case]:
    """Return the cases asked for, in the order of the suite."""
    for name in request.cases:
        if name not in CASES:
            raise ConfigError(f"expected a case, one of {', '.join(CASES)}, got {name!r}")
    cases = [case for name, case in CASES.items() if not request.cases or name in request.cases]
    if request.shapes and len({case.axes for case in cases}) > 1:
        meanings = "; ".join(f"{case.name}: {', '.join(case.axes)}" for case in cases)
        raise ConfigError(f"expected --shape for cases whose numbers mean the same, got {meanings}: name the cases")
    return cases


def chosen_contenders(case: Case, cases: Sequence[Case], request: Request) -> list[Contender]:
    """Return the contenders asked for; a name that one of the cases has is no mistake in the others."""
    there = case.contenders(request.device)
    known = dict.fromkeys(c.name for each in cases for c in each.contenders(request.device))
    for name in request.contenders:
        if name not in known:
            raise ConfigError(f"expected a contender, one of {', '.join(known)}, got {name!r}")
    if request.contenders:
        return [c for c in there if c.name in request.contenders]
    return [c for c in there if not c.optional]


def _plan(request: Request) -> Plan:
    on_gpu = request.device == "cuda"
    return Plan(
        device=request.device,
        clock=cuda_clock() if on_gpu else wall_clock,
        peak=None if on_gpu or native.reason_against() else fma_peak,
        rounds=request.rounds or (QUICK_ROUNDS if request.quick else 0),
    )


def _wants_memory(request: Request) -> bool:
    return request.device == "cpu" and not request.quick and not request.shapes


def _memory(cases: Sequence[Case], field: dict[str, list[Contender]], threads: int, say: Say) -> list[Memory]:
    rows = []
    for case in cases:
        for contender in field[case.name] if case.memory_shape else []:
            if case.memory_shape and not contender.missing():
                say(f"memory of {contender.name}")
                used = extra_bytes(case, contender, case.memory_shape, threads)
                rows.append(Memory(case.name, case.memory_shape, contender.name, used))
    return rows
