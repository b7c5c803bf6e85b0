"""What compact and pad promise."""

import pytest
import torch

from vqtok.errors import ConfigError
from vqtok.ops import compact, pad, use_backend
from vqtok.ops.table import COMPACT


@pytest.fixture(params=[backend.name for backend in COMPACT.backends if backend.serves("cpu")], autouse=True)
def _backend(request):
    row = next(b for b in COMPACT.backends if b.name == request.param)
    if reason := row.reason_against(torch.zeros(1, 1)):
        pytest.skip(f"{row.name} {reason}")
    with use_backend(request.param):
        yield


KEEP = {
    "some": torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]]).bool(),
    "none": torch.zeros(3, 4, dtype=torch.bool),
    "one": torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0]]).bool(),
    "all": torch.ones(2, 5, dtype=torch.bool),
    "no rows": torch.zeros(0, 4, dtype=torch.bool),
    "rows of nothing": torch.zeros(3, 0, dtype=torch.bool),
}
every_mask = pytest.mark.parametrize("keep", KEEP.values(), ids=KEEP)


@every_mask
@pytest.mark.parametrize("shape", [(), (5,), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool], ids=str)
def test_they_undo_each_other_on_what_is_kept(keep, shape, dtype):
    values = torch.randn(*keep.shape, *shape).mul(9).to(dtype)
    kept, lengths = compact(values, keep)
    assert torch.equal(lengths, keep.sum(1))
    by_hand = [row[mask] for row, mask in zip(values, keep, strict=True)]
    assert torch.equal(kept, torch.cat([values.new_empty(0, *shape), *by_hand]))
    rows, mask = pad(kept, lengths, fill=1)
    assert rows.shape == (len(keep), int(lengths.max()) if len(keep) else 0, *shape)
    assert (rows.dtype, mask.dtype) == (dtype, torch.bool)
    again, its_lengths = compact(rows, mask)
    assert torch.equal(again, kept)
    assert torch.equal(its_lengths, lengths)
    for row, present, length in zip(rows, mask, lengths.tolist(), strict=True):
        assert present.tolist() == [True] * length + [False] * (len(row) - length)
        assert (row[length:] == torch.ones((), dtype=dtype)).all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.half, torch.float32, torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 2, 0, 3), (3, 2, 1, 0), (2, 0, 3, 1)], ids=str)
def test_strided_values_are_read_in_the_order_of_their_rows(dtype, order):
    values = torch.arange(120).reshape(2, 3, 4, 5).to(dtype).permute(order)
    keep = torch.rand(values.shape[:2]) > 0.4
    kept, _ = compact(values, keep)
    assert torch.equal(kept, values.contiguous()[keep])
    assert torch.equal(compact(values[..., ::2], keep)[0], values[..., ::2].contiguous()[keep])


def test_nothing_depends_on_the_threads():
    values, keep = torch.randn(50, 200, 300), torch.rand(50, 200) > 0.5
    expected = values[keep]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            kept, lengths = compact(values, keep)
            assert torch.equal(kept, expected)
            assert torch.equal(
                torch.cat([r[:n] for r, n in zip(pad(kept, lengths)[0], lengths, strict=True)]), expected
            )
    finally:
        torch.set_num_threads(before)


@every_mask
def test_gradients_reach_what_was_kept_and_nothing_else(keep):
    values = torch.randn(*keep.shape, 3, dtype=torch.float64, requires_grad=True)
    kept, lengths = compact(values, keep)
    weights = torch.randn_like(kept)
    (kept * weights).sum().backward()
    expected = torch.zeros_like(values)
    expected[keep] = weights
    assert torch.equal(values.grad, expected)
    assert lengths.dtype == torch.int64


def test_gradients_pass_both_ways_as_differences_say():
    keep = KEEP["some"]
    values = torch.randn(4, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: compact(x, keep)[0], values)
    kept = torch.randn(8, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: pad(x, keep.sum(1), 7.0)[0], kept)


def test_padding_takes_no_gradient():
    values = torch.randn(3, requires_grad=True)
    rows, mask = pad(values, torch.tensor([1, 0, 2]), fill=float("-inf"))
    rows.masked_fill(~mask, 0).sum().backward()
    assert values.grad.tolist() == [1.0] * 3


def test_dynamic_tokens_under_autocast_keep_their_dtype():
    with torch.autocast("cpu", torch.bfloat16):
        kept, lengths = compact(torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool))
        assert (kept.dtype, pad(kept, lengths)[0].dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize(
    ("values", "keep"),
    [
        (torch.zeros(2, 3), torch.ones(2, 3)),
        (torch.zeros(2, 3), torch.ones(3, 2, dtype=torch.bool)),
        (torch.zeros(2, 3), torch.ones(2, dtype=torch.bool)),
        (torch.zeros(2), torch.ones(2, 1, dtype=torch.bool)),
    ],
)
def test_masks_that_do_not_fit_are_refused(values, keep):
    with pytest.raises(ConfigError, match=r"expected values \[B, N, ...\] and keep bool \[B, N\] on one device, got"):
        compact(values, keep)


@pytest.mark.parametrize(
    ("values", "lengths", "message"),
    [
        (torch.zeros(3), torch.tensor([1, 1]), r"sum to the 3 values, got \[1, 1\]"),
        (torch.zeros(3), torch.tensor([4, -1]), r"at least 0 .* got \[4, -1\]"),
        (torch.zeros(3), torch.ones(12, dtype=torch.int64), "got 12 of them from 1 to 1 that sum to 12"),
        (torch.zeros(3), torch.tensor([1.0, 2.0]), "lengths int64"),
        (torch.zeros(3), torch.tensor([[3]]), "lengths int64"),
        (torch.zeros(()), torch.tensor([1]), r"expected values \[T, ...\]"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(values, lengths, message):
    with pytest.raises(ConfigError, match=message):
        pad(values, lengths)


def test_a_mask_of_other_places_than_values_is_refused():
    with pytest.raises(ConfigError, match="a mask with 3 places, one a value, got 4"):
        torch.ops.vqtok.spread.default(torch.zeros(3), torch.ones(2, 2, dtype=torch.bool), 0)
