"""The hostile corpus through the library and the command: documented ends, quickly, in bounded memory, alone.

A third of the kinds is attacked once here; `make test-slow` makes all of more than 1,200.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.attack import Attack
from tests.hostile.attack_images import seeded_images
from tests.hostile.attack_tokens import archives, seeded_token_files
from tests.hostile.attacks import every
from tests.hostile.siege import judge

ROOT = Path(__file__).resolve().parents[2]


def siege(place, what, first, step, seconds):
    """Carry out attacks in a process of their own, and return what came of each."""
    command = [sys.executable, "-m", "tests.hostile.siege", str(place), what, str(first), str(step)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def failures(rows):
    return [(row["name"], row["wrong"]) for row in rows if row["wrong"]]


def test_the_corpus_has_all_kinds_and_enough_of_them():
    attacks = list(every())
    assert {attack.kind for attack in attacks} == set(range(1, 105))
    assert len({attack.name for attack in attacks}) == len(attacks) >= 1200
    assert all(attack.codes and 1 not in attack.codes for attack in attacks)


def test_equal_seeds_make_equal_attacks():
    makers = (lambda: seeded_images(3), lambda: seeded_token_files(3), archives)
    for make in makers:
        first, second = ([(x.name, x.line, *x.files.items()) for x in make()] for _ in range(2))
        assert first == second


@pytest.mark.timeout(300)
def test_a_third_of_the_kinds(tmp_path):
    rows = siege(tmp_path, "each", 0, 3, 280)
    assert len(rows) >= 34
    assert failures(rows) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_attack(tmp_path):
    rows = siege(tmp_path, "all", 0, 1, 3500)
    assert len(rows) >= 1200
    assert failures(rows) == []


def test_the_judge_sees_what_is_wrong(tmp_path):
    said = tmp_path / "said"
    said.with_suffix(".1").write_text("")
    said.with_suffix(".2").write_text("Traceback (most recent call last)")
    wrong = judge("command", (1, 6.0, 300 << 10), Attack(1, "x", (), frozenset({0, 3})).codes, said)
    assert [any(word in line for line in wrong) for word in ("exit 1", "traceback", "6.0 s", "300 MB")] == [True] * 4
