"""The harness: contenders are checked, then timed in turns; what came of each is kept, whether it was timed or not.

A case says what is computed and who computes it. A contender's first call warms it up and gives the answer that is
judged, so nobody is timed who is wrong. Then every round runs every contender once, in another order each time: a slow
moment of the machine meets all of them, and none always follows the same neighbour. Only who is slower than
the baseline and takes a second or more for a call sits some rounds out, which the table says.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from vqtok.errors import BackendUnavailable, ReproducibilityError, escape

from .protocol import Call, Case, Clock, Contender, Entry, Panel, Plan, Say, Shape, Status, Verdict

LEAST_ROUNDS, MOST_ROUNDS, QUICK_ROUNDS = 7, 25, 3
_SECONDS_A_SHAPE = 15.0
_SECONDS_A_CONTENDER = 6.0
"""Who is slower than the baseline and needs more than this for seven rounds is timed in fewer, but in two at least."""
_HEADLINE = "vqtok"
"""What users get; it is timed in all rounds however slow it is."""
_PAUSE = 0.005
"""Threads of a runtime spin for some milliseconds after their work, on the processor of whoever comes next."""


@dataclass(frozen=True, slots=True)
class Runner:
    """A contender at work, or why it is not.

    Attributes:
        first_seconds: what its first call took, which is the one that is judged.
    """

    contender: Contender
    call: Call | None = None
    answer: Any = None
    first_seconds: float = 0.0
    status: Status = "timed"
    reason: str = ""
    verdict: Verdict | None = None


def measure(case: Case, shape: Shape, contenders: Sequence[Contender], plan: Plan, say: Say) -> Panel:
    """Check and time some of a case's contenders at one shape.

    Raises:
        ReproducibilityError: somebody's answer proves that vqtok's is wrong.
    """
    inputs = case.inputs(shape, plan.device)
    started = [_start(contender, inputs, say) for contender in contenders]
    judged = _judged(case, inputs, started)
    if plan.device != "cpu":  # there a first call compiles, and returns before the work is done
        judged = [replace(r, first_seconds=plan.clock(r.call)) if r.call else r for r in judged]
    baseline = case.contenders(plan.device)[0].name
    rounds = rounds_each(judged, baseline, plan.rounds)
    say(f"  {max(rounds.values(), default=0)} rounds of {len(rounds)} contenders")
    calls = {r.contender.name: r.call for r in judged if r.call and r.contender.name in rounds}
    times, peaks = interleave(calls, rounds, plan.clock, plan.peak)
    return Panel(
        case=case.name,
        axes=case.axes,
        shape=shape,
        baseline=baseline,
        rounds=max(rounds.values(), default=0),
        flop=case.flop(shape),
        peak=tuple(peaks),
        entries=tuple(_entry(runner, times.get(runner.contender.name, [])) for runner in judged),
    )


def interleave(
    calls: Mapping[str, Call], rounds: Mapping[str, int], clock: Clock, peak: Callable[[], float] | None = None
) -> tuple[dict[str, list[float]], list[float]]:
    """Run the calls in turns and return their times by name, and the peaks, one a round.

    Args:
        calls: by name.
        rounds: how often to run each; who has fewer than the others sits out evenly spread rounds.
        clock: returns the seconds of a call.
        peak: what to measure besides, once a round.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    peaks: list[float] = []
    total = max(rounds.values(), default=0)
    with _no_collector():
        for number in range(total):
            if peak:
                peaks.append(peak())
            for name in order(list(calls), number):
                if number * rounds[name] % total < rounds[name]:
                    time.sleep(_PAUSE)
                    times[name].append(clock(calls[name]))
    return times, peaks


def order(names: Sequence[str], number: int) -> list[str]:
    """Return the order of a round: forwards, backwards, and the same from the next one on.

    >>> [order("abc", number) for number in range(3)]
    [['a', 'b', 'c'], ['c', 'b', 'a'], ['b', 'c', 'a']]
    """
    first = number // 2 % max(1, len(names))
    turned = [*names[first:], *names[:first]]
    return turned[::-1] if number % 2 else turned


@contextmanager
def _no_collector() -> Iterator[None]:
    """Collect Python's garbage now and not inside the block."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _start(contender: Contender, inputs: Any, say: Say) -> Runner:
    """Prepare a contender and let it answer once; what a library throws at us is its own affair, and is shown."""
    if missing := contender.missing():
        return Runner(contender, status="not installed", reason=missing)
    say(f"  {contender.name}: first call")
    try:
        call = contender.prepare(inputs)
        begin = time.perf_counter()
        return Runner(contender, call, call(), time.perf_counter() - begin)
    except BackendUnavailable as error:
        return Runner(contender, status="cannot run", reason=_first_line(error))
    except Exception as error:
        if contender.ours:
            raise
        return Runner(contender, status="cannot run", reason=f"{type(error).__name__}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return escape((str(error).strip().splitlines() or ["no reason given"])[0], 200)


def _judged(case: Case, inputs: Any, runners: Sequence[Runner]) -> list[Runner]:
    """Compare all answers with that of the first of ours, or with the first one there is."""
    answering = sorted((r for r in runners if r.call), key=lambda r: not r.contender.ours)
    if not answering:
        return list(runners)
    return [_judge(case, inputs, answering[0], runner) if runner.call else runner for runner in runners]


def _judge(case: Case, inputs: Any, expected: Runner, runner: Runner) -> Runner:
    verdict = case.judge(inputs, expected.answer, runner.answer)
    if verdict.better and expected.contender.ours:
        raise ReproducibilityError(
            f"{runner.contender.name} has {verdict.better} of {verdict.of} answers that are clearly better than those "
            f"of {expected.contender.name}: this is a bug in vqtok, please report it; nothing was timed"
        )
    status, reason = "timed", ""
    if runner.contender.ours and verdict.differing:
        status = "refused"
        reason = (
            f"differs from {expected.contender.name} on {verdict.differing} of {verdict.of}: a bug, please report it"
        )
    elif verdict.wrong:
        status = "refused"
        reason = f"{verdict.differing} of {verdict.of} differ, {verdict.wrong} by more than rounding explains"
    return replace(runner, answer=None, status=status, reason=reason, verdict=verdict)


def rounds_each(runners: Sequence[Runner], baseline: str, wanted: int = 0) -> dict[str, int]:
    """Return how often to run everybody who is timed: as wanted, or as often as the time for a shape allows."""
    costs = {r.contender.name: max(r.first_seconds, 1e-6) for r in runners if r.status == "timed"}
    if wanted:
        return dict.fromkeys(costs, wanted)
    allowed = {name: int(_SECONDS_A_CONTENDER / cost) for name, cost in costs.items()}
    bar = costs.get(baseline, 0.0)
    quick = [name for name, cost in costs.items() if allowed[name] >= LEAST_ROUNDS or cost <= bar or name == _HEADLINE]
    a_round = sum(costs[name] + _PAUSE for name in quick)
    rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(_SECONDS_A_SHAPE / max(a_round, 1e-6))))
    return {name: rounds if name in quick else max(2, allowed[name]) for name in costs}


def _entry(runner: Runner, seconds: Sequence[float]) -> Entry:
    who = runner.contender
    return Entry(who.name, runner.status, who.ours, runner.reason, who.note, runner.verdict, tuple(seconds))
