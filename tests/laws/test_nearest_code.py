"""What nearest_code promises, whichever backend computes it."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqtok.errors import BackendUnavailable, ConfigError, NonFiniteLatents
from vqtok.ops import (
    PreparedCodebook,
    explain,
    half_squared_norms,
    native,
    native_lookup,
    nearest_code,
    normalize_codebook,
    use_backend,
)
from vqtok.ops.arithmetic import fused_multiply_add
from vqtok.ops.table import NEAREST_CODE

METRICS = ("l2", "cosine", "dot")


@pytest.fixture(params=[backend.name for backend in NEAREST_CODE.backends if backend.serves("cpu")])
def backend(request):
    row = next(b for b in NEAREST_CODE.backends if b.name == request.param)
    if reason := row.reason_against(torch.zeros(1, 1)):
        pytest.skip(f"{row.name} {reason}")
    with use_backend(request.param):
        yield request.param


def gauss(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_nearest(latents, codebook, codes, metric="l2"):
    """No code is farther than the nearest by more than twice the float32 chain's rounding."""
    z, e = latents.double(), codebook.double()
    if metric == "cosine":
        e = normalize_codebook(codebook).double()
    half = e.square().sum(1) / 2 if metric == "l2" else torch.zeros(len(e), dtype=torch.float64)
    scores = z @ e.T - half
    error = (e.shape[1] + 2) * 2.0**-24 * (half.max() + z.norm(dim=1) * e.norm(dim=1).max()) + e.shape[1] * 2.0**-149
    best, runner_up = scores.topk(min(2, len(e)), dim=1).values.T[[0, -1]]
    assert (best - scores.gather(1, codes[:, None])[:, 0] <= 2 * error).all()
    clear = best - runner_up > 2 * error
    assert torch.equal(codes[clear], scores.argmax(1)[clear])
    return clear


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("rows", "vocab_size", "dim"), [(97, 61, 13), (40, 130, 4), (33, 17, 64), (5, 300, 1)])
def test_nearest_code_picks_the_nearest(backend, metric, rows, vocab_size, dim):
    latents, codebook = gauss(rows, dim), gauss(vocab_size, dim, seed=1)
    clear = assert_nearest(latents, codebook, nearest_code(latents, codebook, metric), metric)
    assert clear.float().mean() > 0.7 or dim == 1


HARD = {
    "far from the origin": lambda: (gauss(50, 8) + 1e3, gauss(70, 8, seed=1) + 1e3),
    "collapsed to four centres": lambda: (
        gauss(50, 8),
        gauss(4, 8, seed=1).repeat(20, 1) + 1e-3 * gauss(80, 8, seed=2),
    ),
    "small initial codes": lambda: (gauss(50, 8), (torch.rand(70, 8, generator=torch.manual_seed(3)) * 2 - 1) / 70),
    "huge norms": lambda: (gauss(50, 8) * 1e15, gauss(70, 8, seed=1) * 1e15),
    "denormals": lambda: (gauss(50, 8) * 1e-38, gauss(70, 8, seed=1)),
    "denormal codes": lambda: (gauss(50, 8), gauss(70, 8, seed=1) * 1e-39),
    "unit vectors": lambda: (normalize_codebook(gauss(50, 8)), normalize_codebook(gauss(70, 8, seed=1))),
    "one great code": lambda: (gauss(50, 8), torch.cat([gauss(70, 8, seed=1), 1e6 * gauss(1, 8)])),
}


@pytest.mark.parametrize("case", HARD)
def test_nearest_code_is_right_on_hard_data(backend, case):
    latents, codebook = HARD[case]()
    assert_nearest(latents, codebook, nearest_code(latents, codebook))


@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_ties_go_to_the_lowest_index(backend, metric, dim):
    values = torch.randint(-3, 4, (300, dim), generator=torch.Generator().manual_seed(dim))
    latents, codebook = values[:200], values[150:]
    scores = 2 * latents @ codebook.T - (codebook.square().sum(1) if metric == "l2" else 0)
    lowest = torch.where(scores == scores.amax(1, keepdim=True), torch.arange(150), 150).amin(1)
    assert torch.equal(nearest_code(latents.float(), codebook.float(), metric), lowest)


def test_torchs_default_dtype_changes_nothing(backend, default_dtype):
    latents, codebook = gauss(60, 9).float(), gauss(31, 9, seed=1).float()
    codes = nearest_code(latents, codebook)
    torch.set_default_dtype(torch.float32)
    assert torch.equal(codes, nearest_code(latents, codebook))


def test_a_repeated_code_is_never_taken_twice(backend):
    codebook = gauss(23, 6).repeat(7, 1)
    assert nearest_code(gauss(90, 6, seed=1), codebook).max() < 23


def test_all_codes_alike_give_code_zero(backend):
    assert nearest_code(gauss(40, 3), torch.ones(500, 3)).eq(0).all()
    assert nearest_code(torch.zeros(40, 3), torch.zeros(50, 3), "cosine").eq(0).all()


def test_codes_beyond_float32_lose_and_all_of_them_give_code_zero(backend):
    codebook = torch.tensor([[1e30, 0.0], [1.0, 1.0], [-1e30, 1.0]])
    assert nearest_code(torch.tensor([[1e8, 1.0]]), codebook).tolist() == [1]
    assert nearest_code(torch.tensor([[1.0, 1.0]]), codebook[[0, 2]]).tolist() == [0]
    assert nearest_code(torch.tensor([[1e38, 1e38]]), torch.tensor([[1e3, 0.0], [1e3, 1e3]]), "dot").tolist() == [0]


def test_every_code_is_nearest_to_itself(backend):
    codebook = gauss(130, 9)
    assert torch.equal(nearest_code(codebook, codebook), torch.arange(130))


@pytest.mark.parametrize("shape", [(3,), (1, 3), (0, 3), (2, 0, 3), (2, 1, 4, 3), (1, 2, 1, 2, 3)])
def test_any_leading_shape_is_kept(backend, shape):
    latents, codebook = gauss(*shape), gauss(11, 3, seed=1)
    codes = nearest_code(latents, codebook)
    assert codes.shape == shape[:-1]
    assert codes.dtype == torch.int64
    assert torch.equal(codes.flatten(), nearest_code(latents.reshape(-1, 3), codebook))


def test_one_code_and_one_dimension_work(backend):
    assert nearest_code(gauss(5, 3), gauss(1, 3)).tolist() == [0] * 5
    assert nearest_code(torch.tensor([[0.4], [0.6]]), torch.tensor([[0.0], [1.0]])).tolist() == [0, 1]
    assert nearest_code(gauss(1, 1), gauss(1, 1)).tolist() == [0]


STRIDED = {
    "BCHW": lambda x: x.permute(0, 2, 3, 1),
    "cropped BCHW": lambda x: x[:, :, 1:4, 2:5].permute(0, 2, 3, 1),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1),
    "every second row": lambda x: x.permute(0, 2, 3, 1)[:, ::2, ::3],
    "every second dimension": lambda x: x.repeat_interleave(2, 1).permute(0, 2, 3, 1)[..., ::2],
    "expanded": lambda x: x.permute(0, 2, 3, 1)[:, :1].expand(-1, 4, -1, -1),
    "transposed": lambda x: x[0, :, :, 0].t(),
}


@pytest.mark.parametrize("view", STRIDED)
def test_strided_views_give_the_codes_of_their_copies(backend, view):
    latents, codebook = STRIDED[view](gauss(2, 7, 5, 6)), gauss(19, 7, seed=1)
    assert torch.equal(nearest_code(latents, codebook), nearest_code(latents.clone().contiguous(), codebook))
    assert torch.equal(nearest_code(latents, codebook.t().contiguous().t()), nearest_code(latents, codebook))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_latents_are_rounded_once_to_float32(backend, dtype):
    latents, codebook = gauss(60, 5).to(dtype), gauss(19, 5, seed=1)
    assert torch.equal(nearest_code(latents, codebook), nearest_code(latents.float(), codebook))
    assert torch.equal(nearest_code(latents, codebook.to(dtype)), nearest_code(latents, codebook.to(dtype).float()))


def test_codes_do_not_depend_on_the_batch_they_came_in(backend):
    latents, codebook = gauss(101, 12) + 30, gauss(90, 12, seed=1) + 30
    whole = nearest_code(latents, codebook)
    for size in (1, 7, 64):
        assert torch.equal(torch.cat([nearest_code(part, codebook) for part in latents.split(size)]), whole)


def test_codes_do_not_depend_on_the_threads(backend):
    latents, codebook = gauss(801, 32) if backend == "cpu" else gauss(50, 32), gauss(301, 32, seed=1)
    before, codes = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            codes.append(nearest_code(latents, codebook))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(codes[0], codes[1])
    assert torch.equal(codes[0], codes[2])


def test_cosine_ignores_the_length_of_a_code(backend):
    latents, codebook = gauss(60, 6), gauss(40, 6, seed=1)
    longer = codebook * 2.0 ** torch.arange(-20, 20)[:, None]
    assert torch.equal(nearest_code(latents, longer, "cosine"), nearest_code(latents, codebook, "cosine"))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_latents_that_are_not_finite_raise_with_their_first_row(backend, bad):
    latents = gauss(2, 6, 5, 30).permute(0, 2, 3, 1)
    latents[0, 4, 17, 3] = latents[1, 0, 0, 0] = bad
    with pytest.raises(NonFiniteLatents, match=f"row {4 * 30 + 17} ") as caught:
        nearest_code(latents, gauss(9, 6))
    assert caught.value.row == 4 * 30 + 17


def test_the_first_bad_row_is_named_whatever_the_threads(backend):
    latents = gauss(5000, 32)
    latents[1234, 31] = latents[1300] = latents[4999] = math.nan
    with pytest.raises(NonFiniteLatents, match="row 1234 "):
        nearest_code(latents, gauss(64, 32))


@pytest.mark.parametrize(
    ("latents", "codebook", "metric", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 5), "l2", r"expected latents \[..., 5\].*permute"),
        (torch.zeros(()), torch.zeros(4, 5), "l2", "expected latents"),
        (torch.zeros(2, 3), torch.zeros(0, 3), "l2", "at least one code"),
        (torch.zeros(2, 0), torch.zeros(4, 0), "l2", "at least one code"),
        (torch.zeros(2, 3), torch.zeros(3), "l2", "expected a codebook"),
        (torch.zeros(2, 3), torch.zeros(4, 3), "manhattan", "expected a metric, one of l2, cosine, dot"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(4, 3), "l2", "expected latents of float16"),
        (torch.zeros(2, 3), torch.zeros(4, 3, dtype=torch.int32), "l2", "expected a codebook of float16"),
        (torch.zeros(2, 3, device="meta"), torch.zeros(4, 3), "l2", "on one device"),
        (torch.zeros(2, 1), torch.tensor([[0.0], [math.nan]]), "dot", "code 1 holds NaN"),
        (torch.zeros(2, 1), torch.tensor([[math.inf], [0.0]]), "l2", "code 0 holds NaN"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_hint(latents, codebook, metric, message):
    with pytest.raises(ConfigError, match=message):
        nearest_code(latents, codebook, metric)


def test_backends_are_chosen_by_name_and_say_why_not(monkeypatch, tmp_path):
    latents, codebook = gauss(4, 3), gauss(5, 3)
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "libvqtok_cpu.so")
    assert "cpu        cannot run: needs libvqtok_cpu.so, which was not built" in explain(
        "nearest_code", latents, codebook
    )
    assert "screened   taken" in explain("nearest_code", latents, codebook)
    nearest_code(latents, codebook)
    with use_backend("cpu"), pytest.raises(BackendUnavailable, match="not built; install a C"):
        nearest_code(latents, codebook)
    (tmp_path / "libvqtok_cpu.so").write_bytes(b"not a library")
    assert "cannot be loaded" in explain("nearest_code", latents, codebook)
    monkeypatch.setenv("VQTOK_BACKEND", "reference")
    assert "reference  taken, as asked for" in explain("nearest_code", latents, codebook)
    monkeypatch.setenv("VQTOK_BACKEND", "fastest")
    names = "cpu, cpu-bf16, cpu-int8, cuda, reference, screened"
    with pytest.raises(ConfigError, match=f"expected VQTOK_BACKEND to name a backend, one of {names}"):
        nearest_code(latents, codebook)
    with pytest.raises(ConfigError, match="got 'gpu'"), use_backend("gpu"):
        pass
    with pytest.raises(ConfigError, match="expected an op's name"):
        explain("farthest_code", latents, codebook)


@pytest.mark.parametrize("metric", METRICS)
def test_a_prepared_codebook_gives_the_same_codes_and_is_a_copy(backend, metric):
    latents, codebook = gauss(60, 12), gauss(300, 12, seed=1)
    expected = nearest_code(latents, codebook, metric)
    prepared = PreparedCodebook(codebook, metric)
    codebook.zero_()
    assert prepared.backend == backend
    assert torch.equal(nearest_code(latents, prepared, metric), expected)
    assert torch.equal(
        nearest_code(latents.half(), prepared, metric),
        nearest_code(latents.half(), prepared.vectors, "l2" if metric == "l2" else "dot"),
    )
    with use_backend("reference"):
        assert torch.equal(nearest_code(latents, prepared, metric), expected)


def test_a_prepared_codebook_is_refused_for_another_metric_or_space():
    prepared = PreparedCodebook(gauss(5, 3), "cosine")
    with pytest.raises(ConfigError, match="expected metric='cosine', which the codebook was prepared for, got 'l2'"):
        nearest_code(gauss(2, 3), prepared)
    with pytest.raises(ConfigError, match=r"expected latents \[..., 3\]"):
        nearest_code(gauss(2, 4), prepared, "cosine")
    with pytest.raises(ConfigError, match="code 1 holds NaN"):
        PreparedCodebook(torch.tensor([[0.0], [math.nan]]))
    with pytest.raises(ConfigError, match="expected a metric"):
        PreparedCodebook(gauss(5, 3), "manhattan")


def test_screening_is_chosen_where_it_pays():
    small, large = gauss(100, 4), gauss(1000, 32)
    if not native_lookup.reason_against_int8():
        assert "cpu-int8   taken" in explain("nearest_code", large, gauss(2000, 32))
        assert "cpu-int8   can run, but packing for it pays from 64 latents" in explain(
            "nearest_code", large[:9], gauss(2000, 32)
        )
        assert PreparedCodebook(gauss(2000, 32)).backend == "cpu-int8"
    if not native.reason_against():
        assert "cpu        taken" in explain("nearest_code", small, gauss(2000, 4))
        assert PreparedCodebook(gauss(2000, 4)).backend == "cpu"


def rounded_to_float32(exact: Fraction) -> float:
    """The float32 nearest to a rational number, ties to even: from the definition, in integers."""
    if exact == 0:
        return 0.0
    exponent = exact.numerator.bit_length() - exact.denominator.bit_length() - 24
    while abs(exact) >= Fraction(2) ** (exponent + 24):
        exponent += 1
    exponent = max(exponent, -149)
    result = Fraction(round(exact / Fraction(2) ** exponent)) * Fraction(2) ** exponent
    return float(result) if abs(result) < 2**128 else math.copysign(math.inf, result)


FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(FLOAT32, FLOAT32, FLOAT32)
def test_fused_multiply_add_rounds_once(a, b, c):
    fused = fused_multiply_add(*(torch.tensor(x, dtype=torch.float32) for x in (a, b, c))).item()
    assert fused == rounded_to_float32(Fraction(a) * Fraction(b) + Fraction(c))


def test_fused_multiply_add_does_not_round_twice():
    """Rounded to float64 first, this sum lies half-way between two float32 and falls to the wrong one."""
    a, b, one = torch.tensor(8163685.0), torch.tensor(538733 * 2.0**-66), torch.tensor(1.0)
    assert fused_multiply_add(a, b, one).item() == 1 + 2.0**-23
    assert fused_multiply_add(-a, b, -one).item() == -1 - 2.0**-23
    assert (a.double() * b.double() + one.double()).float().item() == 1


def test_the_deciding_score_rounds_once(backend):
    """The same sum decides between two codes: code 1 is nearer by one last bit, which rounding twice would lose."""
    latents = torch.tensor([[1.0, 8163685.0]])
    codebook = torch.tensor([[1.0, 0.0], [1.0, 538733 * 2.0**-66]])
    assert nearest_code(latents, codebook, "dot").tolist() == [1]


def test_half_norms_and_unit_vectors_are_summed_in_order_and_rounded_once():
    codebook = gauss(50, 33) * 10.0 ** gauss(50, 33, seed=1)
    rows = codebook.tolist()
    squares = []
    for row in rows:
        total = 0.0
        for x in row:
            total += x * x
        squares.append(total)
    assert half_squared_norms(codebook).tolist() == [torch.tensor(s / 2, dtype=torch.float32).item() for s in squares]
    units = torch.tensor([[x / math.sqrt(s) for x in row] for row, s in zip(rows, squares, strict=True)])
    assert torch.equal(normalize_codebook(codebook), units)
    assert torch.equal(normalize_codebook(torch.zeros(2, 3)), torch.zeros(2, 3))
