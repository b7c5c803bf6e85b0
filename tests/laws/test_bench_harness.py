"""The benchmark harness: nobody is timed who is wrong, near-ties are forgiven and counted, nobody is dropped unseen."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from vqtok import ops
from vqtok.benchmarks import code_statistics, machine, nearest_code, quantizer_step, rivals, suite, tokenize_images
from vqtok.benchmarks.clocks import wall_clock
from vqtok.benchmarks.harness import Runner, interleave, measure, order, rounds_each
from vqtok.benchmarks.inputs import Lookup, gaussian_lookup
from vqtok.benchmarks.protocol import Contender, Plan, Verdict
from vqtok.benchmarks.report import SCHEMA, Memory, Report
from vqtok.benchmarks.verdicts import judge_codes
from vqtok.errors import BackendUnavailable, ReproducibilityError
from vqtok.ops.table import NEAREST_CODE

SHAPE = (40, 12, 4)
PLAN = Plan("cpu", wall_clock, rounds=3)
BASELINE, *_ = rivals.rivals("cpu")
OURS = Contender("vqtok", nearest_code.unprepared, ours=True)


class Counted:
    """A contender that counts its calls and answers as a function of the right codes."""

    def __init__(self, change):
        self.calls, self.change = 0, change

    def __call__(self, inputs):
        right = ops.nearest_code(inputs.latents, inputs.codebook)

        def run():
            self.calls += 1
            return self.change(inputs, right)

        return run


def field(*contenders, make=gaussian_lookup, case=nearest_code.CASE):
    return replace(case, inputs=make, contenders=lambda device: [BASELINE, *contenders, OURS])


def measured(*contenders, make=gaussian_lookup, plan=PLAN):
    case = field(*contenders, make=make)
    panel = measure(case, SHAPE, case.contenders("cpu"), plan, say=lambda text: None)
    return panel, {entry.contender: entry for entry in panel.entries}


def twins(shape, device):
    """Codes in pairs that differ in the last bit: every latent has two that are as near as makes no difference."""
    made = gaussian_lookup(shape, device)
    half = made.codebook[: shape[1] // 2]
    moved = half.clone()
    moved[:, 0] = torch.nextafter(half[:, 0], torch.tensor(torch.inf))
    return Lookup(made.latents, torch.cat([half, moved]))


def report(panel, memory=()):
    return Report(
        SCHEMA, False, "2026-01-01", "cpu", 1, machine.machine("cpu"), machine.versions(), "", (panel,), memory
    )


def test_a_wrong_contender_is_called_once_and_never_timed():
    wrong = Counted(lambda inputs, right: (right + 1) % len(inputs.codebook))
    panel, entries = measured(Contender("wrong", wrong))
    assert wrong.calls == 1
    assert entries["wrong"].status == "refused"
    assert entries["wrong"].seconds == ()
    assert entries["wrong"].verdict.differing == SHAPE[0]
    assert 0 < entries["wrong"].verdict.wrong <= SHAPE[0]
    assert "not timed" in report(panel).table()
    assert report(panel).bugs() == [], "a rival's mistake is none of vqtok's"


def test_one_wrong_answer_among_many_is_enough():
    one = Counted(lambda inputs, right: torch.cat([(right[:1] + 1) % len(inputs.codebook), right[1:]]))
    _, entries = measured(Contender("wrong", one))
    assert (entries["wrong"].status, entries["wrong"].verdict.differing) == ("refused", 1)


@pytest.mark.parametrize("strange", [-1, 12, 1 << 40])
def test_codes_that_do_not_exist_are_wrong(strange):
    _, entries = measured(Contender("wrong", Counted(lambda inputs, right: torch.full_like(right, strange))))
    assert (entries["wrong"].status, entries["wrong"].verdict.wrong) == ("refused", SHAPE[0])


@pytest.mark.parametrize("change", [lambda right: right[:-1], lambda right: right.float()], ids=["short", "float"])
def test_an_answer_of_another_shape_or_dtype_is_wrong(change):
    _, entries = measured(Contender("wrong", Counted(lambda inputs, right: change(right))))
    assert entries["wrong"].status == "refused"


def test_near_ties_are_accepted_and_counted():
    half = SHAPE[1] // 2
    swapped = Counted(lambda inputs, right: (right + half) % (2 * half))
    panel, entries = measured(Contender("swapper", swapped), make=twins)
    assert entries["swapper"].status == "timed"
    assert (entries["swapper"].verdict.differing, entries["swapper"].verdict.wrong) == (SHAPE[0], 0)
    assert len(entries["swapper"].seconds) == 3
    assert f"{SHAPE[0]} of {SHAPE[0]} answers differ" in report(panel).table()


def test_ours_must_agree_bit_for_bit():
    half = SHAPE[1] // 2
    swapped = Counted(lambda inputs, right: (right + half) % (2 * half))
    case = replace(field(make=twins), contenders=lambda device: [BASELINE, OURS, Contender("own", swapped, ours=True)])
    panel = measure(case, SHAPE, case.contenders("cpu"), PLAN, say=lambda text: None)
    assert panel.entries[-1].status == "refused"
    assert len(report(panel).bugs()) == 1


def test_a_rival_that_proves_us_wrong_stops_everything():
    off = Contender("vqtok", Counted(lambda inputs, right: (right + 1) % len(inputs.codebook)), ours=True)
    case = replace(field(), contenders=lambda device: [BASELINE, off])
    with pytest.raises(ReproducibilityError, match="bug in vqtok"):
        measure(case, SHAPE, case.contenders("cpu"), PLAN, say=lambda text: None)


def test_who_is_not_installed_or_cannot_run_is_in_the_table_with_the_reason():
    def breaks(inputs):
        raise OSError("no compiler\nsecond line")

    def unavailable(inputs):
        raise BackendUnavailable("runs on cuda")

    panel, entries = measured(
        Contender("absent", breaks, modules=("no_such_module.inner",), install="no-such-package"),
        Contender("broken", breaks),
        Contender("vqtok:gpu", unavailable, ours=True),
    )
    states = [(entries[name].status, entries[name].reason) for name in ("absent", "broken", "vqtok:gpu")]
    assert states == [
        ("not installed", "pip install no-such-package"),
        ("cannot run", "OSError: no compiler"),
        ("cannot run", "runs on cuda"),
    ]
    table = report(panel).table()
    assert "not installed (pip install no-such-package)" in table
    assert "cannot run: OSError: no compiler" in table
    assert all(entry.contender in table for entry in panel.entries)


def test_an_error_of_our_own_is_not_hushed_up():
    def breaks(inputs):
        raise OSError("ours")

    with pytest.raises(OSError, match="ours"):
        measured(Contender("vqtok:new", breaks, ours=True))


def test_every_round_runs_everybody_once_in_another_order():
    log = []
    calls = {name: lambda name=name: log.append(name) for name in "abcd"}
    peaks = iter(range(100))
    times, found = interleave(calls, dict.fromkeys(calls, 8), wall_clock, lambda: next(peaks))
    rounds = [log[i : i + 4] for i in range(0, len(log), 4)]
    assert all(sorted(each) == list("abcd") for each in rounds)
    assert rounds == [order("abcd", number) for number in range(8)]
    assert {each[0] for each in rounds} == set("abcd"), "everybody begins now and then"
    followers = {(a, b) for each in rounds for a, b in pairwise(each)}
    assert all(len({b for a, b in followers if a == name}) > 1 for name in "abcd"), "not always the same neighbour"
    assert [len(seconds) for seconds in times.values()] == [8] * 4
    assert found == list(range(8)), "the peak is measured in every round"


def test_the_slow_sit_out_evenly_spread_rounds():
    log = []
    calls = {name: lambda name=name: log.append(name) for name in ("fast", "slow")}
    times, _ = interleave(calls, {"fast": 9, "slow": 3}, wall_clock)
    assert (len(times["fast"]), len(times["slow"])) == (9, 3)
    gaps = [len(part) for part in "".join("s" if name == "slow" else "f" for name in log).split("s")]
    assert max(gaps) - min(gaps) <= 3, log


def test_time_decides_the_rounds_but_seven_are_the_least():
    def runner(name, seconds):
        return Runner(Contender(name, lambda inputs: lambda: None), lambda: None, first_seconds=seconds)

    assert rounds_each([runner("a", 1e-4), runner("b", 1e-4)], "a") == {"a": 25, "b": 25}
    assert rounds_each([runner("a", 3.0), runner("b", 0.5), runner("c", 9.0)], "a") == {"a": 7, "b": 7, "c": 2}
    assert rounds_each([runner("a", 3.0), runner("b", 2.9), runner("c", 3.1)], "a") == {"a": 7, "b": 7, "c": 2}
    assert rounds_each([runner("a", 3.0), runner("vqtok", 9.0)], "a") == {"a": 7, "vqtok": 7}, "whatever it costs us"
    assert rounds_each([runner("b", 2.0), runner("c", 0.1)], "a") == {"b": 3, "c": 25}
    assert rounds_each([runner("a", 3.0), runner("c", 9.0)], "a", wanted=5) == {"a": 5, "c": 5}
    assert rounds_each([replace(runner("a", 1.0), status="refused")], "a") == {}


def test_the_json_is_complete_and_reads_back_the_same():
    panel, _ = measured(Contender("absent", lambda inputs: lambda: None, modules=("no_such_module",), install="x"))
    written = report(replace(panel, peak=(1e11, 2e11)), (Memory("nearest_code", SHAPE, "vqtok", 7),))
    text = written.to_json()
    assert Report.from_json(text) == written
    found = json.loads(text)
    assert found["schema"] == "vqtok.bench/1"
    assert {"processor", "cores", "instruction_set", "memory_bytes", "system"} <= set(found["machine"])
    assert {"python", "vqtok", "torch", "numpy"} <= set(found["versions"])
    assert {"date", "device", "threads", "commit", "quick"} <= set(found)
    (panel,) = found["panels"]
    assert {entry["contender"]: len(entry["seconds"]) for entry in panel["entries"]} == {
        BASELINE.name: 3,
        "absent": 0,
        "vqtok": 3,
    }
    assert found["memory"][0]["extra_bytes"] == 7


def test_the_table_has_medians_bests_speedups_and_the_share_of_the_peak():
    panel, entries = measured()
    rows = [replace(entries[BASELINE.name], seconds=(0.04, 0.02, 0.03)), replace(entries["vqtok"], seconds=(0.01,))]
    panel = replace(panel, entries=tuple(rows), flop=1e9, peak=(2e11, 4e11, 1e11))
    lines = report(panel).table().splitlines()
    base, ours = (next(line for line in lines if line.strip().startswith(name)) for name in (BASELINE.name, "vqtok"))
    assert base.removeprefix(f"  {BASELINE.name}").split()[:3] == ["30.00", "20.00", "1.00x"]
    assert ours.split()[1:7] == ["10.00", "10.00", "3.00x", "100.0", "50%", "(25%)"]
    assert "1 rounds, being slow" in ours


def test_what_rounding_explains_grows_with_the_length_of_vectors_and_no_further():
    latents, codebook = torch.zeros(1, 4), torch.tensor([[1.0, 0, 0, 0], [1.0 + 1e-7, 0, 0, 0], [1.001, 0, 0, 0]])
    expected = torch.tensor([0])
    assert judge_codes(latents, codebook, expected, torch.tensor([1])) == Verdict(1, differing=1)
    assert judge_codes(latents, codebook, expected, torch.tensor([2])) == Verdict(1, differing=1, wrong=1)
    assert judge_codes(latents, codebook, torch.tensor([2]), expected) == Verdict(1, differing=1, better=1)
    assert judge_codes(latents, codebook, expected, expected) == Verdict(1)


@pytest.mark.parametrize(
    ("case", "shape"),
    [
        (nearest_code.CASE, (50, 20, 8)),
        (code_statistics.CASE, (50, 20, 8)),
        (quantizer_step.CASE, (50, 20, 8)),
        (tokenize_images.CASE, (2, 24, 32)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.filterwarnings("ignore")
def test_all_that_needs_no_compiler_agrees(case, shape):
    elsewhere = ("torch.compile", "KeOps")  # a compiler
    quick = [c for c in case.contenders("cpu") if not c.name.startswith(elsewhere)]
    panel = measure(case, shape, quick, replace(PLAN, rounds=1), say=lambda text: None)
    states = {entry.contender: entry.status for entry in panel.entries}
    assert set(states.values()) <= {"timed", "not installed", "cannot run"}, panel.entries
    baseline = states[case.contenders("cpu")[0].name]
    assert states["vqtok"] == states["vqtok:reference"] == "timed"
    assert baseline in ("timed", "not installed")
    assert not {"vqtok:cuda", "vqtok:triton"} & set(states)  # they are for another device


def test_the_statistics_of_a_contender_that_miscounts_are_wrong():
    given = code_statistics.inputs((50, 20, 8), "cpu")
    right = code_statistics.vqtok_statistics(given)()
    counts = right.counts.clone()
    counts[3] += 1
    verdict = code_statistics.judge(given, right, replace(right, counts=counts))
    assert (verdict.differing, verdict.wrong) == (1, 1)
    sums = right.sums.clone()
    sums[5, 2] += 0.01
    assert code_statistics.judge(given, right, replace(right, sums=sums)).wrong == 1


def test_a_step_with_another_gradient_is_wrong():
    given = quantizer_step.inputs((50, 20, 8), "cpu")
    right = quantizer_step.vqtok_step(given)()
    assert quantizer_step.judge(given, right, right) == Verdict(50)
    assert quantizer_step.judge(given, right, replace(right, gradient=right.gradient * 1.001)).wrong
    assert quantizer_step.judge(given, right, replace(right, codebook=given.codebook)).wrong


def test_a_backend_that_is_added_becomes_a_contender_by_itself():
    names = [contender.name for contender in nearest_code.contenders("cpu")]
    here = {f"vqtok:{backend.name}" for backend in NEAREST_CODE.backends if backend.serves("cpu")}
    assert here == {name for name in names if name.startswith("vqtok:")}
    optional = [c.name for c in nearest_code.contenders("cpu") if c.optional]
    assert optional == ["vqtok:reference"]
    assert len(set(names)) == len(names)


def test_the_gpu_has_its_own_rivals():
    names = [contender.name for contender in rivals.rivals("cuda")]
    assert {"flash-kmeans", "cuVS brute force", "FAISS GpuIndexFlatL2", BASELINE.name} <= set(names)
    assert all(case.contenders("cpu") for case in suite.CASES.values())


def test_the_measured_peak_bounds_what_the_kernels_reach_of_it():
    from vqtok.ops import native, peak

    if reason := native.reason_against():
        pytest.skip(reason)
    assert 1e8 < peak.fma_peak(0.002) < 1e14
