"""Are the tests of csrc/cuda able to fail? Each line broken here must turn the named tests of test_cuda_shim.py red."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MUTATIONS = {
    # ---- the certificate
    "no bound for the products": (
        "cuda/certificate.cuh",
        "return static_cast<float>(padded_D + 8) * 0x1p-22f;",
        "return 0.0f * static_cast<float>(padded_D);",
        "test_ties_are_not_decided",
    ),
    "a quarter of the bound for the products": (
        "cuda/certificate.cuh",
        "static_cast<float>(padded_D + 8) * 0x1p-22f",
        "static_cast<float>(padded_D + 8) * 0x1p-24f",
        "test_ties_are_not_decided",
    ),
    "no rounding of the latents": (
        "cuda/screen.cuh",
        "return {safe ? error * kRaise + kTiny : INFINITY,",
        "return {safe ? 0.0f * error : INFINITY,",
        "test_what_rounding_does_to_latents",
    ),
    "no rounding of the codes": (
        "cuda/codebook.cuh",
        "(norms.error + 0x1p-24f * norms.length +",
        "(0x1p-24f * norms.length +",
        "test_what_rounding_does_to_codes",
    ),
    "no rounding of the float32 chain": (
        "cuda/certificate.cuh",
        "return static_cast<float>(D) * 0x1p-24f * kRaise;",
        "return 0.0f * static_cast<float>(D);",
        "test_nearest_code_is_the_references_on_every_kind_of_data",
    ),
    "once the error instead of twice": (
        "cuda/certificate.cuh",
        "lower = fmaxf(lower, top.first - 2 * bound(row, groups[top.first_group]))",
        "lower = fmaxf(lower, top.first)",
        "test_no_true_winner_is_screened_out or test_ties_are_not_decided",
    ),
    "the third group is forgotten": (
        "cuda/certificate.cuh",
        "third = fmaxf(third, fminf(second, upper));",
        "",
        "test_a_third_group_is_seen or test_ties_are_not_decided",
    ),
    "the third group of other lanes is forgotten": (
        "cuda/certificate.cuh",
        "third = fmaxf(third, other.third);",
        "",
        "test_a_third_group_is_seen",
    ),
    "overflow of the chain is not foreseen": (
        "cuda/screen.cuh",
        "const bool safe = original / scale * longest + heaviest < 0x1p120f &&",
        "const bool safe = original / scale * longest + heaviest >= 0.0f &&",
        "test_nearest_code_is_the_references_on_every_kind_of_data or test_codes_beyond_float32",
    ),
    "nothing is ever left to the exact scan": (
        "cuda/certificate.cuh",
        "return !(third < lower);",
        "return third < lower && false;",
        "test_what_float16_cannot_decide",
    ),
    "everything is left to the exact scan": (
        "cuda/certificate.cuh",
        "return !(third < lower);",
        "return third <= INFINITY || lower > 0;",
        "test_screening_decides_ordinary_latents",
    ),
    "codes are not centred": (
        "cuda/codebook.cuh",
        "book.mean[d] = fabsf(mean) < 0x1p100f ? mean : 0.0f;",
        "book.mean[d] = 0.0f * mean;",
        "test_screening_decides_ordinary_latents",
    ),
    # ---- the score and its order
    "ties go to the higher code": (
        "cuda/score.cuh",
        "other == score && its_code < code",
        "other == score && its_code > code",
        "test_nearest_code_is_the_references_on_every_kind_of_data",
    ),
    "two roundings a step in the rescan": (
        "cuda/nearest_code.cu",
        "score = fmaf(__shfl_sync(kAllLanes, mine, i), vector[first + i], score);",
        "score += __shfl_sync(kAllLanes, mine, i) * vector[first + i];",
        "test_the_deciding_score_rounds_once or test_nearest_code_is_the_references_on_every_kind_of_data",
    ),
    "the scan starts at nothing": (
        "cuda/scan.cuh",
        "k < task.K ? -task.half_norms[k] : -INFINITY;",
        "k < task.K ? 0.0f : -INFINITY;",
        "test_nearest_code_is_the_references_on_every_kind_of_data",
    ),
    "minus zero is less than zero": (
        "cuda/score.cuh",
        "__float_as_uint(best.score + 0.0f)",
        "__float_as_uint(best.score)",
        "test_a_score_of_minus_zero",
    ),
    # ---- the order of registers and threads
    "columns of a panel in another order": (
        "cuda/codebook.cuh",
        "n / 8 % 2 * 2 + d / 8) * 2",
        "d / 8 * 2 + n / 8 % 2) * 2",
        "test_nearest_code_is_the_references_in_every_shape",
    ),
    "rows of a latent tile in another order": (
        "cuda/screen.cuh",
        "which = d / 8 * 2 + r % 16 / 8;",
        "which = r % 16 / 8 * 2 + d / 8;",
        "test_nearest_code_is_the_references_in_every_shape",
    ),
    "groups of the wrong lanes": (
        "cuda/codebook.cuh",
        "return place / 2 * 8 + 2 * t + place % 2;",
        "return place / 2 * 8 + 2 * (3 - t) + place % 2;",
        "test_nearest_code_is_the_references_in_every_shape",
    ),
    "a quad merges with itself": (
        "cuda/screen.cuh",
        "for (int bits = 1; bits < 4; bits *= 2) {",
        "for (int bits = 1; bits < 2; bits *= 2) {",
        "test_nearest_code_is_the_references_in_every_shape",
    ),
    # ---- who waits for whom
    "no barrier before a place of the ring is read": (
        "cuda/screen.cuh",
        "__syncthreads();  // this stage has come for all; nobody reads the place that is filled next any more",
        "",
        "test_no_schedule_changes_a_code or test_codes_are_shared_out",
    ),
    "copies are not awaited": (
        "cuda/screen.cuh",
        "await_copies<S::kRing - 2>();",
        "await_copies<S::kRing - 1>();",
        "test_nearest_code_is_the_references_in_every_shape",
    ),
    "no barrier after a scan's tile was read": (
        "cuda/scan.cuh",
        "static_cast<int>(left) : kScanDepth, ty, tx, scores);\n        __syncthreads();",
        "static_cast<int>(left) : kScanDepth, ty, tx, scores);",
        "test_nearest_code_is_the_references_on_every_kind_of_data or test_nearest_code_is_the_references_in_every",
    ),
    "no barrier between staging and packing": (
        "cuda/screen.cuh",
        "stage(task, shared, step);\n        __syncthreads();\n        uint32_t* tile",
        "stage(task, shared, step);\n        uint32_t* tile",
        "test_nearest_code_is_the_references_in_every_shape",
    ),
    # ---- statistics and passages
    "a sort that is not stable": (
        "cuda/sort.cuh",
        "earlier = alike & ((1u << lane) - 1u);",
        "earlier = alike & ~((2u << lane) - 1u);",
        "test_the_order_of_the_rows or test_code_statistics_are_the_references",
    ),
    "places of a digit are not waited for": (
        "cuda/sort.cuh",
        "const uint32_t place = places[digit] + __popc(earlier);\n        __syncwarp();",
        "const uint32_t place = places[digit] + __popc(earlier);",
        "test_code_statistics_are_the_references",
    ),
    "sums of float32": (
        "cuda/code_statistics.cu",
        "    double sum = 0;\n    uint32_t at",
        "    float sum = 0;\n    uint32_t at",
        "test_code_statistics_are_the_references",
    ),
    "one rounding less in the gradient": (
        "cuda/straight_through.cu",
        "const Real pull = weight * error;",
        "const double pull = double{weight} * double{error};",
        "test_the_gradient_of_the_latents_rounds",
    ),
    # ---- memory
    "one row too many": (
        "cuda/nearest_code.cu",
        "if (n >= screening.rows) return;",
        "if (n > screening.rows) return;",
        "test_no_kernel_oversteps",
    ),
    "a dimension too many": (
        "cuda/codebook.cuh",
        "const bool inside = present && d < book.D;",
        "const bool inside = present && d <= book.D;",
        "test_no_kernel_oversteps",
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_line_turns_its_tests_red(mutation, tmp_path):
    file, line, broken, tests = MUTATIONS[mutation]
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    source = (tmp_path / "csrc" / file).read_text()
    assert source.count(line) == 1, f"expected this line once in csrc/{file}; did it change? {line}"
    (tmp_path / "csrc" / file).write_text(source.replace(line, broken))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += [f"--basetemp={tmp_path / 'run' / 'tests'}", "-k", tests, "tests/parity/test_cuda_shim.py"]
    (tmp_path / "run").mkdir()
    environment = {**os.environ, "VQTOK_TEST_CSRC": str(tmp_path / "csrc")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED" in done.stdout, done.stdout
