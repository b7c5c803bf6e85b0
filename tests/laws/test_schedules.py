"""Schedules start, go one way and end where they say, along the curve they name."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqtok.errors import ConfigError
from vqtok.training.schedules import cosine_ramp, gumbel_temperature, kl_weight, linear_ramp

RAMPS = pytest.mark.parametrize("ramp", [linear_ramp, cosine_ramp])
NUMBERS = st.floats(-100, 100)


@RAMPS
@given(start=NUMBERS, end=NUMBERS, steps=st.integers(1, 1000), first=st.integers(0, 1000), step=st.integers(0, 3000))
def test_a_ramp_stays_between_its_ends_and_never_turns(ramp, start, end, steps, first, step):
    def at(step):
        return ramp(step, start=start, end=end, steps=steps, first=first)

    assert at(first) == at(0) == start
    assert at(first + steps) == at(first + steps + 10**6) == pytest.approx(end, abs=1e-9)
    low, high = sorted((start, end))
    assert low - 1e-9 <= at(step) <= high + 1e-9
    assert (at(step + 1) - at(step)) * (end - start) >= 0
    # Half the way is half the time, and what is left of the way before it mirrors what was done after it.
    assert at(first + step % (steps + 1)) + at(first + steps - step % (steps + 1)) == pytest.approx(
        start + end, abs=1e-9
    )


def test_a_line_is_straight_and_a_cosine_is_one():
    for step in range(41):
        assert linear_ramp(step, start=2, end=-6, steps=40) == pytest.approx(2 - 8 * step / 40)
        assert cosine_ramp(step, start=2, end=-6, steps=40) == pytest.approx(-2 + 4 * math.cos(math.pi * step / 40))


def test_defaults_are_those_of_the_paper():
    assert [gumbel_temperature(step) for step in (0, 150_000, 10**7)] == pytest.approx([1, 1 / 16, 1 / 16])
    assert [kl_weight(step) for step in (0, 5_000, 10**7)] == pytest.approx([0, 6.6, 6.6])
    assert gumbel_temperature(50_000) == pytest.approx(1 / 16 + 15 / 16 * 0.75)
    assert kl_weight(2_500, end=2.0) == pytest.approx(1.0)


@RAMPS
@pytest.mark.parametrize("wrong", [{"steps": 0}, {"step": -1}, {"first": -1}])
def test_impossible_schedules_are_refused(ramp, wrong):
    with pytest.raises(ConfigError, match="expected steps >= 1, first >= 0 and step >= 0"):
        ramp(**{"step": 1, "start": 0.0, "end": 1.0, "steps": 5} | wrong)
