"""The cases of ``vqtok bench`` under pytest-benchmark, for those who compare runs with its tools.

pytest benchmarks/test_bench.py [-k "nearest_code and FAISS"]      (make bench-pytest)
pytest --pyargs vqtok.benchmarks.test_bench                        (an installed vqtok)
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from .harness import LEAST_ROUNDS
from .protocol import Case, Contender, Shape
from .suite import CASES

Problem = tuple[Case, Shape]

# Other libraries warn as they like, and some take their time to compile.
pytestmark = [
    pytest.mark.skipif(
        find_spec("pytest_benchmark") is None, reason="needs pytest-benchmark: pip install 'vqtok[bench]'"
    ),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(600),
]
CONTENDERS = [
    pytest.param((case, shape), contender, id=f"{case.name}-{'x'.join(map(str, shape))}-{contender.name}")
    for case in CASES.values()
    for shape in case.shapes
    for contender in case.contenders("cpu")
    if not contender.optional
]


@pytest.mark.parametrize(("problem", "contender"), CONTENDERS)
def test_bench(problem: Problem, contender: Contender, benchmark: Any) -> None:
    """Check a contender's answer against vqtok's, then time it."""
    case, shape = problem
    if missing := contender.missing():
        pytest.skip(f"not installed ({missing})")
    inputs = case.inputs(shape, "cpu")
    (ours,) = (c for c in case.contenders("cpu") if c.name == "vqtok")
    expected = ours.prepare(inputs)()
    call = contender.prepare(inputs)
    verdict = case.judge(inputs, expected, call())
    assert not verdict.wrong
    assert not verdict.better
    benchmark.group = f"{case.name}: {' x '.join(map(str, shape))}"
    benchmark.pedantic(call, rounds=LEAST_ROUNDS)
