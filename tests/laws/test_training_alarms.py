"""Laws of alarms: each is raised on the curve it is for, at the step it should be, and on no healthy one."""

import json
import math
import random
import string
from pathlib import Path

import numpy as np
import pytest

from vqtok.training.alarms import Watch, alarms
from vqtok.training.history import History, numbers
from vqtok.training.limits import LIMITS
from vqtok.training.remedies import _REMEDIES, recipe_changes, remedy
from vqtok.training.symptoms import SYMPTOMS

ROOT = Path(__file__).parents[2]
RATE = 8e-4


def noise(rng: random.Random, value: float, by: float = 0.1) -> float:
    return value * math.exp(rng.gauss(0, by))


def healthy(steps: int = 20_000, every: int = 100, start: int | None = 12_000, seed: int = 0) -> list[dict]:
    """A training as they go when they go well, with a discriminator from `start` on."""
    rng, rows = random.Random(seed), [{"event": "start", "step": 0, "torch": "2.14.1"}]
    for step in range(every, steps + 1, every):
        done = step / steps
        l2, commitment = 0.01 + 0.1 * math.exp(-8 * done), 0.002 + 0.004 * done
        row = {"event": "train", "step": step, "seconds": 0.3 * step, "images_per_second": noise(rng, 55.0)}
        row |= {"learning_rate": RATE * (0.505 + 0.495 * math.cos(math.pi * done)), "data_wait": noise(rng, 0.03)}
        row |= {"losses": {"l2": noise(rng, l2), "commitment": noise(rng, commitment)}, "total": noise(rng, l2)}
        row |= {"gradient_norm": noise(rng, 0.3), "failures": 0}
        if step > 400:  # quantized from here on
            usage = 0.9 - 0.85 * math.exp(-(step - 400) / 1000)
            row |= {"usage": usage, "perplexity": 4000 * usage}
        if start is not None and step > start:
            logits = {"real": rng.gauss(0.3, 0.1), "fake": rng.gauss(-0.2, 0.1)}
            row["discriminator"] = {"loss": noise(rng, 0.85, 0.05), **logits, "adaptive_weight": noise(rng, 2.0, 0.3)}
        rows.append(row)
        if step % 500 == 0:
            fallen = 0.0 if start is None or step <= start else 0.3
            rows.append({"event": "validate", "step": step, "psnr": 27.5 - 3 * math.exp(-3 * done) - fallen})
    return rows


def changed(rows: list[dict], first: int, last: float = math.inf, event: str = "train", **values) -> list[dict]:
    """Rows with values put in from a step on; a value may be a function of the row."""
    found = []
    for row in rows:
        if row["event"] == event and first <= row["step"] <= last:
            row = json.loads(json.dumps(row))
            for name, value in values.items():
                value = value(row) if callable(value) else value
                row[name] = {**row.get(name, {}), **value} if isinstance(value, dict) else value
        found.append(row)
    return found


def names(rows: list[dict]) -> list[tuple[int, str]]:
    return [(alarm.step, alarm.name) for alarm in alarms(rows)]


def logits(loss: float, real: float, fake: float, weight: float = 2.0) -> dict:
    return {"discriminator": {"loss": loss, "real": real, "fake": fake, "adaptive_weight": weight}}


# Healthy trainings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("start", [None, 12_000])
def test_a_healthy_training_raises_nothing(start, seed):
    assert names(healthy(start=start, seed=seed)) == []


def test_the_training_of_the_embedded_model_raises_nothing():
    rows = []
    for line in (ROOT / "docs/photo-f8-training.jsonl").read_text().splitlines():
        row = json.loads(line)
        losses = {"l2": row["mse"], "commitment": row["commitment"]}
        total = row["mse"] + 0.1 * row["commitment"]
        rows.append({"event": "train", "step": row["step"], "losses": losses, "total": total})
        rows.append({"event": "validate", "step": row["step"], "psnr": row["psnr"]})
    assert len(rows) == 36
    assert rows[-1]["psnr"] < rows[-3]["psnr"], "its last validation is a little worse: no reason for alarm"
    assert names(rows) == []


def test_no_rows_and_rows_without_numbers_raise_nothing():
    assert alarms([]) == []
    assert names([{"event": "train", "step": 100 * i} for i in range(50)]) == []
    assert names([{"event": "validate", "step": 100 * i, "best": True} for i in range(50)]) == []


# One bad curve each --------------------------------------------------------------------------------------------------

ROWS = healthy()
LATE = healthy(start=None)

BAD = {
    "collapse: few": (changed(ROWS, 500, usage=0.02, perplexity=60.0), [(1000, "collapse")]),
    "collapse: a few share all": (changed(ROWS, 500, usage=0.3, perplexity=2.0), [(1000, "collapse")]),
    # 0.9 at its highest: the second row below 0.45 makes the median of three fall below it.
    "collapse: falls": (changed(ROWS, 8000, usage=0.4), [(8100, "collapse")]),
    "collapse: perplexity falls": (changed(ROWS, 8000, perplexity=900.0), [(8100, "collapse")]),
    "nan: a loss": (changed(ROWS, 5000, losses={"l2": "nan"}, total="nan"), [(5000, "nan")]),
    "nan: the gradient": (changed(ROWS, 5000, gradient_norm="inf"), [(5000, "nan")]),
    "nan: validation": (changed(ROWS, 5000, event="validate", psnr="nan"), [(5000, "validation-nan")]),
    "winning: far apart": (changed(ROWS, 15_000, **logits(0.01, 2.5, -2.4)), [(15_400, "discriminator-winning")]),
    "winning: no gradient": (
        changed(ROWS, 15_000, **logits(0.9, 0.3, -0.2, 8000.0)),
        [(15_400, "discriminator-winning")],
    ),
    # Six of ten rows make the median.
    "asleep": (changed(ROWS, 15_000, **logits(1.0, 0.011, 0.005)), [(15_500, "discriminator-asleep")]),
    "dead": (changed(ROWS, 5000, gradient_norm=1e-9), [(5100, "dead-gradients")]),
    "exploding": (changed(ROWS, 5000, gradient_norm=100.0), [(5100, "exploding-gradients")]),
    "slow": (changed(ROWS, 5000, data_wait=0.4), [(5200, "slow-data")]),
    "failures": (changed(ROWS, 5000, failures=3), [(5000, "failures")]),
    # The last gain is at 5,000, and ten validations of 500 steps without one end at 10,000.
    "stalled": (changed(LATE, 5500, event="validate", psnr=26.0), [(10_000, "stalled")]),
    # 26.19 dB at 5,500 are the best; it lies 0.3 below from 7,000 on.
    "overfitting": (
        changed(LATE, 6000, event="validate", psnr=lambda row: 27.0 - row["step"] / 6000),
        [(8000, "overfitting")],
    ),
    "diverging": (
        changed(changed(LATE, 5600, losses={"l2": 0.1}), 6000, event="validate", psnr=20.0),
        [(6500, "diverging")],
    ),
    "psnr fell": (changed(ROWS, 14_000, event="validate", psnr=26.4), [(14_000, "psnr-fell")]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_curve_raises_its_alarm_once_and_at_its_step(case):
    rows, expected = BAD[case]
    found = names(rows)
    if case == "overfitting":  # it falls for ever: it also stalls
        found = found[:1]
    elif case == "diverging":
        found = [row for row in found if row[1] == "diverging"]
    assert found == expected


def test_every_kind_has_a_bad_curve_a_remedy_and_limits_with_reasons():
    kinds = {symptom.name for symptom in SYMPTOMS}
    assert {name for _, expected in BAD.values() for _, name in expected} == kinds == set(_REMEDIES)
    assert all(len(row.why) > 12 and math.isfinite(row.value) for row in LIMITS.values())
    source = "".join((ROOT / "vqtok/training" / name).read_text() for name in ("symptoms.py", "history.py"))
    assert [name for name in LIMITS if f'"{name}"' not in source] == []


@pytest.mark.parametrize(
    ("rows", "event"),
    [
        (changed(ROWS, 5000, 5000, gradient_norm=100.0), "one odd gradient"),
        (changed(ROWS, 5000, 5000, gradient_norm=0.0), "one empty gradient"),
        (changed(ROWS, 8000, 8000, usage=0.1, perplexity=10.0), "one odd row of codes"),
        (changed(ROWS, 5000, 5100, data_wait=0.9), "two slow rows"),
        (changed(ROWS, 5000, event="validate", psnr="inf"), "nothing is lost"),
        (changed(ROWS, 14_000, event="validate", psnr=26.9), "less than half a decibel"),
        (changed(ROWS, 15_000, 15_300, **logits(0.01, 2.5, -2.4)), "ahead for a moment"),
        (changed(ROWS, 5000, total=0.0, gradient_norm=0.0), "nothing left to learn"),
        (changed(ROWS, 15_000, **logits(0.01, 1.2, -1.2)), "a small loss, but logits no further apart than asked for"),
        (changed(ROWS, 15_000, **logits(0.3, 0.01, 0.0)), "equal means, but a loss of one that tells"),
        (changed(ROWS, 500, 800, usage=0.01, perplexity=5.0), "a codebook that has only begun"),
        (changed(LATE, 17_500, event="validate", psnr=27.3), "the schedule has ended the learning"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_only_looks_bad_raises_nothing(rows, event):
    assert names(rows) == []


def test_small_codebooks_in_full_use_and_slow_ones_on_their_way_up_are_no_collapse():
    assert names(changed(ROWS, 0, usage=1.0, perplexity=2.0)) == []
    rising = changed(ROWS, 0, usage=lambda row: 1e-3 * 1.06 ** (row["step"] / 100), perplexity=50.0)
    assert names([row for row in rising if row["step"] <= 8000]) == []
    crawling = changed(ROWS, 0, usage=lambda row: 1e-3 * 1.01 ** (row["step"] / 100), perplexity=50.0)
    assert names(crawling)[0][1] == "collapse"


def test_texture_may_cost_psnr_for_long_but_a_perceptual_distance_may_not_stall():
    flat = changed(ROWS, 12_500, event="validate", psnr=27.0, learning_rate=RATE)
    steady = changed(flat, 0, learning_rate=RATE)
    assert names(steady) == []
    improving = changed(steady, 0, event="validate", **{"st-lpips-vgg": lambda row: 0.5 - row["step"] / 1e5})
    assert names(improving) == []
    stuck = changed(steady, 0, event="validate", **{"st-lpips-vgg": 0.2})
    # The first validation after the start is at 12,500; ten more end at 17,500.
    assert names(stuck) == [(17_500, "stalled")]


# Once until it clears ------------------------------------------------------------------------------------------------


def test_an_alarm_is_raised_again_only_after_three_good_rows():
    nans = {"losses": {"l2": "nan"}}
    twice = changed(changed(ROWS, 5000, 5000, **nans), 5200, 5200, **nans)
    assert names(twice) == [(5000, "nan")], "one good row between"
    apart = changed(changed(ROWS, 5000, 5000, **nans), 5600, 5600, **nans)
    assert names(apart) == [(5000, "nan"), (5600, "nan")]


def test_what_is_active_is_what_holds_now():
    rows = changed(ROWS, 5000, 6000, data_wait=0.4)
    watch = Watch()
    seen = {}
    for row in rows:
        watch.feed(row)
        if row["event"] == "train":
            seen[row["step"]] = set(watch.active)
    # Median of five: it rises with the third slow row, falls with the third good one, and is over two rows later.
    assert {step for step, active in seen.items() if active} == set(range(5200, 6500, 100))


def test_failures_are_news_again_after_ten_rows_without_any():
    rows = changed(changed(ROWS, 2000, failures=1), 2500, failures=2)
    assert names(rows) == [(2000, "failures")]
    rows = changed(changed(ROWS, 2000, failures=1), 6000, failures=5)
    assert names(rows) == [(2000, "failures"), (6000, "failures")]
    assert "5 images" in alarms(rows)[1].message
    again = changed(changed(ROWS, 2000, failures=7), 6000, failures=1)  # a process counts from its own start
    assert names(again) == [(2000, "failures"), (6000, "failures")]
    assert names([{k: v for k, v in row.items() if k != "failures" or v} for row in rows]) == names(rows)


@pytest.mark.parametrize("case", BAD)
def test_alarms_of_a_part_are_a_part_of_the_alarms(case):
    """So a resumed training, which feeds the rows that are there, goes on as if it had never stopped."""
    rows = BAD[case][0]
    whole = alarms(rows)
    for cut in (57, 151, 200):
        watch = Watch()
        before = [alarm for row in rows[:cut] for alarm in watch.feed(row)]
        assert before == alarms(rows[:cut]) == whole[: len(before)]
        assert before + [alarm for row in rows[cut:] for alarm in watch.feed(row)] == whole


def test_alarm_rows_in_the_log_change_nothing():
    rows = BAD["slow"][0]
    (alarm,) = alarms(rows)
    at = next(i for i, row in enumerate(rows) if row["step"] == alarm.step)
    assert alarms([*rows[: at + 1], alarm.row(), *rows[at + 1 :]]) == [alarm]


# Words ---------------------------------------------------------------------------------------------------------------


def test_messages_say_what_was_seen_in_numbers():
    said = {case: alarms(rows)[0].message for case, (rows, _) in BAD.items()}
    for case, words in {
        "collapse: few": "2.0% of the codes are used, perplexity 60",
        "collapse: falls": "fell from 89.9% to 40.0%",
        "nan: a loss": "not finite: losses.l2 nan, total nan",
        "nan: the gradient": "not finite: gradient_norm inf, while every loss is finite",
        "winning: far apart": "loss is 0.01, its logits 2.5 for real and -2.4 for made",
        "winning: no gradient": "8000",
        "asleep": "0.006 apart",
        "dead": "norm is 1e-09",
        "slow": "40%",
        "failures": "3 images",
        "stalled": "no gain in 10 validations: psnr -0.0829",
        "psnr fell": "to 26.40 dB since the discriminator started",
    }.items():
        assert words in said[case], said[case]


def test_remedies_name_values_of_the_recipe_that_fit_the_run():
    (alarm,) = alarms(BAD["exploding"][0])
    peak = max(row.get("learning_rate", 0) for row in ROWS)
    assert f"optimizer.learning_rate={peak / 2:.2g}" in alarm.remedy
    assert alarm.remedy in alarm.text()
    for name in _REMEDIES:
        assert not set("{}") & set(remedy(name, 0.0))
    for change in recipe_changes():
        key, _, value = change.partition("=")
        assert set(key) <= set(string.ascii_lowercase + "._0123456789"), change
        assert value.strip(string.ascii_lowercase + "0123456789.e-") == "", change
    assert {"data.workers=8", "discriminator.r1=10.0", "precision=float32"} <= set(recipe_changes())


# Numbers -------------------------------------------------------------------------------------------------------------


def test_numbers_of_a_row_are_those_that_are_numbers():
    row = {
        "event": "train",
        "step": 3,
        "best": True,
        "a": {"b": {"c": "-inf"}, "d": "x"},
        "e": [1],
        "f": 10**400,
        "g": None,
    }
    assert numbers(row) == {"step": 3.0, "a.b.c": -math.inf, "f": math.inf}


def test_a_history_keeps_what_numpy_says():
    values = np.random.default_rng(0).lognormal(size=100)
    history = History()
    for i, value in enumerate(values):
        history.add({"event": "train", "step": 10 * (i + 1), "gradient_norm": float(value), "usage": float(value)})
        if i >= 3:
            assert history.norms == sorted(values[: i - 2].tolist())
            assert history.recent("gradient_norm") == np.median(values[i - 2 : i + 1])
    medians = [np.median(values[i - 2 : i + 1]) for i in range(2, 100)]
    assert history.highest["usage"] == max(medians[48:]), "usage counts from 500 steps after its first row"


@pytest.mark.parametrize("change", recipe_changes())
def test_the_recipe_takes_what_remedies_name(change):
    recipes = pytest.importorskip("vqtok.training.recipe")
    recipe = {
        "model": {"preset": "vqvae-tiny"},
        "data": {"train": [{"path": "photos"}], "validate_on": ["held-out"]},
        "stages": [{"steps": 100, "images": 8, "size": 64}],
        "losses": {"l2": 1.0, "commitment": 0.1},
        "optimizer": {"learning_rate": 1e-3},
        "discriminator": {"learning_rate": 3e-4},
    }
    before = recipes.Recipe.from_mapping(recipe)
    recipes.set_key(recipe, change)
    assert recipes.Recipe.from_mapping(recipe) != before or change in ("precision=float32", "discriminator.r1=0.0")
