"""What code_statistics promises, whichever backend computes it."""

import pytest
import torch

from vqtok.errors import ConfigError
from vqtok.ops import code_statistics, use_backend
from vqtok.ops.table import CODE_STATISTICS


@pytest.fixture(params=[backend.name for backend in CODE_STATISTICS.backends if backend.serves("cpu")])
def backend(request):
    row = next(b for b in CODE_STATISTICS.backends if b.name == request.param)
    if reason := row.reason_against(torch.zeros(1, 1)):
        pytest.skip(f"{row.name} {reason}")
    with use_backend(request.param):
        yield request.param


def batch(rows, dim, vocab_size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(rows, dim, generator=generator) * 10 ** torch.randn(rows, dim, generator=generator)
    return latents, torch.randint(vocab_size, (rows,), generator=generator)


def by_hand(latents, codes, vocab_size):
    sums = [[0.0] * latents.shape[1] for _ in range(vocab_size)]
    for row, code in zip(latents.tolist(), codes.tolist(), strict=True):
        for d, x in enumerate(row):
            sums[code][d] += x
    return torch.bincount(codes, minlength=vocab_size), torch.tensor(sums, dtype=torch.float64).float()


@pytest.mark.parametrize(("rows", "dim", "vocab_size"), [(500, 5, 7), (64, 1, 200), (33, 19, 1), (1, 3, 4)])
def test_sums_are_added_in_row_order_and_rounded_once(backend, rows, dim, vocab_size):
    latents, codes = batch(rows, dim, vocab_size)
    counts, sums = code_statistics(latents, codes, vocab_size)
    expected_counts, expected_sums = by_hand(latents, codes, vocab_size)
    assert (counts.dtype, sums.dtype) == (torch.int64, torch.float32)
    assert torch.equal(counts, expected_counts)
    assert torch.equal(sums, expected_sums)


def test_the_order_of_the_rows_is_the_order_of_the_sum(backend):
    codes = torch.zeros(3, dtype=torch.int64)
    sums = [
        code_statistics(torch.tensor(rows)[:, None], codes, 1)[1].item()
        for rows in ([2.0**60, 1.0, -(2.0**60)], [2.0**60, -(2.0**60), 1.0])
    ]
    assert sums == [0.0, 1.0]


def test_torchs_default_dtype_changes_nothing(backend, default_dtype):
    latents, codes = batch(500, 5, 7)
    counts, sums = code_statistics(latents.float(), codes, 7)
    expected_counts, expected_sums = by_hand(latents.float(), codes, 7)
    assert (sums.dtype, counts.dtype) == (torch.float32, torch.int64)
    assert torch.equal(counts, expected_counts)
    assert torch.equal(sums, expected_sums)


def test_no_latents_give_zeros(backend):
    counts, sums = code_statistics(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 5)
    assert counts.tolist() == [0] * 5
    assert torch.equal(sums, torch.zeros(5, 3))


def test_strided_views_and_leading_shapes_are_read_as_rows(backend):
    latents, _ = batch(2 * 4 * 6, 5, 1)
    grid = latents.reshape(2, 4, 6, 5).permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    codes = torch.arange(48).remainder(9).reshape(2, 4, 6)
    for view, its_codes in ((grid, codes), (grid[:, ::2, 1:], codes[:, ::2, 1:])):
        counts, sums = code_statistics(view, its_codes, 9)
        expected_counts, expected_sums = by_hand(view.reshape(-1, 5), its_codes.flatten(), 9)
        assert torch.equal(counts, expected_counts)
        assert torch.equal(sums, expected_sums)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_summed_as_they_are(backend, dtype):
    latents = torch.randn(70, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)
    codes = torch.arange(70).remainder(6)
    if dtype == torch.float64 and backend == "cpu":
        pytest.skip("cpu takes at most float32; the reference is chosen instead")
    assert torch.equal(code_statistics(latents, codes, 6)[1], by_hand(latents, codes, 6)[1])


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_statistics_do_not_depend_on_the_threads(backend, layout):
    rows, codes = batch(30_000, 150, 50)
    latents = rows.t().contiguous().t() if layout == "columns" else rows
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(code_statistics(latents, codes, 50)[1])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[0], code_statistics(rows, codes, 50)[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab_size", [3, 900])
def test_half_latents_of_any_layout_are_summed_as_their_float32_copies(backend, dtype, vocab_size):
    latents = (torch.randn(2, 6, 8, 9) * 100).to(dtype).permute(0, 2, 3, 1)
    codes = torch.randint(vocab_size, (2, 8, 9))
    counts, sums = code_statistics(latents, codes, vocab_size)
    expected_counts, expected_sums = by_hand(latents.reshape(-1, 6).float(), codes.flatten(), vocab_size)
    assert torch.equal(counts, expected_counts)
    assert torch.equal(sums, expected_sums)


@pytest.mark.parametrize(
    ("latents", "codes", "vocab_size", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 4]), 4, r"expected codes in 0..3, got 4"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), 4, r"expected codes in 0..3, got -1"),
        (torch.zeros(2, 3), torch.tensor([0]), 4, r"expected codes int64 \[2\]"),
        (torch.zeros(2, 3), torch.tensor([0, 1], dtype=torch.int32), 4, "expected codes int64"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 1]), 4, "expected float latents"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), 0, "at least 1"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_hint(backend, latents, codes, vocab_size, message):
    with pytest.raises(ConfigError, match=message):
        code_statistics(latents, codes, vocab_size)
