"""The Triton kernels against the reference, bit for bit: on a GPU where there is one, else in Triton's interpreter.

The interpreter is chosen when Triton is imported, so without a GPU these tests run in a process of their own, which
``test_the_kernels_hold_in_the_interpreter`` starts. What the interpreter cannot show: bf16 products (wrong there, and
not used), races (programs run one after the other), reads beyond a tensor (hence the poison around all of them).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.parity.kinds import DTYPES, KINDS, SHAPES, gauss
from vqtok.ops import (
    PreparedCodebook,
    arithmetic,
    explain,
    half_squared_norms,
    nearest_code,
    normalize_codebook,
    reference,
    triton_codebook,
    triton_training,
    use_backend,
)
from vqtok.ops import triton as lookup
from vqtok.ops.levels import level_thresholds
from vqtok.ops.table import OPS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, for overflow that the kernels handle
runs = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(),
    reason="needs a GPU, or the interpreter that test_the_kernels_hold_in_the_interpreter starts",
)
PARTS = ("codes", "certificate", "training")


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="the tests below run in this process")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", PARTS)
def test_the_kernels_hold_in_the_interpreter(part):
    pytest.importorskip("triton")
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-m",
        f"{part} and not slow",
    ]
    done = subprocess.run(
        [*command, __file__], cwd=Path(__file__).parents[2], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.parametrize(
    ("present", "available", "capability", "reason"),
    [
        (("vqtok.kernels",), True, (9, 0), "needs triton, which is not installed"),
        (("triton", "vqtok.kernels"), False, (9, 0), "needs a GPU that torch can use"),
        (("triton", "vqtok.kernels"), True, (7, 5), "needs compute capability 8.0, the GPU has 7.5"),
        (("triton",), True, (9, 0), "needs vqtok.kernels, which this checkout has not installed"),
        (("triton", "vqtok.kernels"), True, (8, 0), ""),
    ],
)
def test_what_the_kernels_lack_is_said(monkeypatch, present, available, capability, reason):
    monkeypatch.setattr(lookup, "find_spec", lambda name: name if name in present else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    came = lookup.reason_against.__wrapped__()
    assert came.startswith(reason)
    assert bool(came) == bool(reason)
    table = explain("nearest_code", torch.zeros(2, 3), torch.zeros(4, 3))
    assert "cannot run: runs on cuda, the latents are on cpu" in table


def starts(codebook, metric):
    """The codebook and the half norms that ops.nearest_code hands to a backend."""
    half = half_squared_norms(codebook)
    if metric == "cosine":
        codebook = normalize_codebook(codebook)
    return codebook, half if metric == "l2" else torch.zeros_like(half)


def poisoned(tensor, far=None):
    """The tensor with not-a-numbers, or with numbers that lead far away, in front of it and behind it."""
    if far is None:
        far = float("nan") if tensor.dtype.is_floating_point else 1 << 30
    margin = 256
    whole = tensor.new_full((tensor.numel() + 2 * margin,), far)
    inside = whole[margin : margin + tensor.numel()].view(tensor.shape)
    inside.copy_(tensor)
    return inside


@pytest.fixture(autouse=True)
def guarded(monkeypatch):
    """What the adapters allocate begins as poison and stands in poison, which must be whole afterwards."""
    if not INTERPRETED:
        yield
        return
    empty, allocated = torch.empty, []

    def guarded_empty(*shape, dtype=None, device=None):
        inside = poisoned(empty(*shape, dtype=dtype, device=device).fill_(torch.nan if dtype.is_floating_point else 7))
        allocated.append(inside)
        return inside

    prepare = triton_codebook.screening_codebook

    def guarded_codebook(*args):
        made = prepare(*args)
        return triton_codebook.ScreeningCodebook(*(poisoned(getattr(made, name)) for name in made.__slots__))

    for module in (lookup, triton_training):
        monkeypatch.setattr(module, "torch", type("torch", (), {**vars(torch), "empty": staticmethod(guarded_empty)}))
    monkeypatch.setattr(lookup, "screening_codebook", guarded_codebook)
    yield
    for inside in allocated:
        whole = inside.as_strided((inside.numel() + 512,), (1,), inside.storage_offset() - 256)
        edges = torch.cat([whole[:256], whole[-256:]])
        assert (edges.isnan() if edges.is_floating_point() else edges == 1 << 30).all(), "written beyond a tensor"


def looked_up(latents, codebook, half_norms):
    latents, codebook, half_norms = (x.to(DEVICE) for x in (latents, codebook, half_norms))
    if INTERPRETED:
        codebook, half_norms = poisoned(codebook), poisoned(half_norms, far=-3e38)  # codes beyond the last would win
        latents = poisoned(latents) if latents.is_contiguous() else latents
    return lookup.nearest_code(latents, *lookup.pack(codebook, half_norms)).cpu()


class Listed:
    """Notes how many rows `decide` left to `search`, and how many lists of groups it merged."""

    def __init__(self, monkeypatch):
        kernels = lookup.kernel_module("nearest_code")
        self.search, self.rows, self.splits = kernels.search, None, None
        self.decide = kernels.decide
        monkeypatch.setattr(kernels, "search", self._Spy(self, "search", 11))
        monkeypatch.setattr(kernels, "decide", self._Spy(self, "decide", 17))

    class _Spy:
        def __init__(self, listed, name, position):
            self.listed, self.name, self.position = listed, name, position

        def __getitem__(self, grid):
            def launch(*args, **kwargs):
                setattr(self.listed, "rows" if self.name == "search" else "splits", int(args[self.position]))
                return getattr(self.listed, self.name)[grid](*args, **kwargs)

            return launch


@pytest.fixture
def listed(monkeypatch):
    return Listed(monkeypatch)


@runs
@pytest.mark.codes
@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_the_references_on_every_kind_of_data(kind):
    latents, codebook = KINDS[kind](40, 150, 9)
    for metric in ("l2", "cosine" if kind == "gauss" else "dot"):
        inputs = (latents, *starts(codebook, metric))
        assert torch.equal(looked_up(*inputs), reference.nearest_code(*inputs)), metric


@runs
@pytest.mark.codes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_are_the_references_in_every_shape_and_dtype(dtype, shape):
    latents, codebook = (x.to(dtype) for x in KINDS["gauss"](*shape))
    inputs = (latents, *starts(codebook.float(), "l2"))
    assert torch.equal(looked_up(*inputs), reference.nearest_code(*inputs))


@runs
@pytest.mark.codes
@pytest.mark.parametrize("dim", [2, 14, 15, 16, 17, 30, 31, 32, 33, 48, 300, 1024])
def test_codes_are_the_references_in_every_dimension(dim):
    """Around the places where the bias finds room in the vectors, and where one product becomes several."""
    latents, codebook = KINDS["gauss"](20 if dim < 1000 else 3, 70, dim)
    inputs = (latents, *starts(codebook, "l2"))
    assert torch.equal(looked_up(*inputs), reference.nearest_code(*inputs))


@runs
@pytest.mark.codes
@pytest.mark.parametrize("kind", ["gauss", "lattice", "unit vectors", "offset 5"])
def test_codes_are_those_of_float64_wherever_its_gap_exceeds_the_chains_rounding(kind):
    latents, codebook = KINDS[kind](100, 300, 24)
    codebook, half = starts(codebook, "l2")
    codes = looked_up(latents, codebook, half)
    exact = latents.double() @ codebook.double().t() - half.double()
    best = exact.topk(2, dim=1)
    bound = 24 * 2.0**-24 * (half.max() + latents.norm(dim=1) * codebook.norm(dim=1).max()).double()
    clear = best.values[:, 0] - best.values[:, 1] > 2.001 * bound
    assert torch.equal(codes[clear], best.indices[clear, 0])
    assert clear.float().mean() > (0.5 if kind != "lattice" else 0)
    assert (exact.gather(1, codes[:, None])[:, 0] >= best.values[:, 0] - 2.001 * bound).all()


@runs
@pytest.mark.codes
def test_the_deciding_score_rounds_once():
    latents = torch.tensor([[1.0, 8163685.0]])
    codebook = torch.tensor([[1.0, 0.0], [1.0, 538733 * 2.0**-66]])
    assert looked_up(latents, *starts(codebook, "dot")).tolist() == [1]


@runs
@pytest.mark.codes
@pytest.mark.parametrize("apart", [1, 16, 17, 64, 100, 299])
def test_of_equal_codes_the_lowest_is_taken(apart, listed):
    """In one group, in two groups, in two tiles: a copy ``apart`` places later must never win."""
    codebook = gauss(600, 8, seed=1) * 3
    codebook[apart : apart + 1] = codebook[:1]
    codebook[300 + apart] = codebook[300]
    latents = torch.cat([codebook[:1], codebook[300:301]]).repeat(20, 1) + 0.01 * gauss(40, 8)
    assert looked_up(latents, *starts(codebook, "l2")).tolist() == [0, 300] * 20
    assert listed.rows == 0


LAYOUTS = {
    "BCHW": lambda x: x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "sliced": lambda x: torch.nn.functional.pad(x, (1, 2))[..., 1:-2],
    "every second": lambda x: torch.nn.functional.pad(x, (0, 0, 1, 1, 0, 3))[:, ::1, 1:-1][:, : x.shape[1]],
    "crossed": lambda x: x.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3),
}


@runs
@pytest.mark.codes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_latents_are_read_where_they_lie(layout, dtype):
    rows = gauss(3, 5, 7, 12).to(dtype)
    latents = LAYOUTS[layout](rows)
    assert torch.equal(latents, rows)
    inputs = starts(gauss(40, 12, seed=1), "l2")
    assert lookup.rows_of(latents).latents is latents
    assert torch.equal(looked_up(latents, *inputs), reference.nearest_code(rows, *inputs))


@runs
@pytest.mark.codes
def test_what_has_more_axes_than_a_kernel_walks_is_copied():
    rows = gauss(2, 3, 4, 5, 6)
    latents = rows.permute(3, 2, 1, 0, 4).contiguous().permute(3, 2, 1, 0, 4)
    inputs = starts(gauss(40, 6, seed=1), "l2")
    assert lookup.rows_of(latents).latents.is_contiguous()
    assert torch.equal(looked_up(latents, *inputs), reference.nearest_code(rows, *inputs))


@runs
@pytest.mark.codes
@pytest.mark.parametrize("processors", [1, 3, 1000])
@pytest.mark.parametrize("kind", ["gauss", "lattice", "collapsed"])
def test_codes_do_not_depend_on_how_the_work_is_split(monkeypatch, listed, kind, processors):
    family = lookup._device(torch.device(DEVICE))[0]
    monkeypatch.setattr(lookup, "_device", lambda device: (family, processors))
    latents, codebook = KINDS[kind](40, 500, 6)
    inputs = (latents, *starts(codebook, "l2"))
    assert torch.equal(looked_up(*inputs), reference.nearest_code(*inputs))
    tiles = -(-500 // lookup.kernel_module("tiles").tiles_for(family, 6).block_k)
    assert listed.splits == 1 if processors == 1 else 1 < listed.splits <= tiles
    assert processors < 1000 or listed.splits == tiles


@runs
@pytest.mark.codes
def test_codes_do_not_depend_on_the_blocks_that_latents_are_rounded_in(monkeypatch):
    latents, codebook = KINDS["gauss"](150, 80, 6)
    inputs = (latents, *starts(codebook, "l2"))
    monkeypatch.setattr(lookup, "_OPERAND_ELEMENTS", 1)
    assert torch.equal(looked_up(*inputs), reference.nearest_code(*inputs))


@runs
@pytest.mark.codes
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_latents_that_are_not_finite_spoil_no_neighbour(bad):
    latents, codebook = KINDS["gauss"](40, 80, 6)
    inputs = starts(codebook, "l2")
    expected = reference.nearest_code(latents, *inputs)
    latents[7, 3] = bad
    codes = looked_up(latents, *inputs)
    assert 0 <= codes[7] < 80
    codes[7] = expected[7]
    assert torch.equal(codes, expected)


@runs
@pytest.mark.certificate
@pytest.mark.parametrize(
    ("kind", "most"), [("gauss", 0.02), ("unit vectors", 0.02), ("on codes", 0), ("offset 5", 0.05)]
)
@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_ordinary_latents_are_certified(listed, kind, most, metric):
    latents, codebook = KINDS[kind](100, 400, 16)
    looked_up(latents, *starts(codebook, metric))
    assert listed.rows <= most * 100


@runs
@pytest.mark.certificate
@pytest.mark.parametrize("kind", ["collapsed", "zeros", "overflowing", "denormal"])
def test_what_screening_cannot_tell_is_searched(listed, kind):
    latents, codebook = KINDS[kind](20, 100, 8)
    looked_up(latents, *starts(codebook, "l2"))
    assert listed.rows > 15


def measured(latents, codebook, half_norms, monkeypatch):
    """Float64 scores from the operands that the kernels multiplied, the exponent of their unit, and the slack."""
    seen = {}
    kernels, screened = lookup.kernel_module("nearest_code"), lookup._screened

    class Spy:
        def __getitem__(self, grid):
            def launch(*args, **kwargs):
                seen.update(operands=args[0], exponents=args[1], scales=args[2], vectors=args[3], biases=args[4])
                return kernel[grid](*args, **kwargs)

            return launch

    kernel = kernels.screen
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "screen", Spy())
        patch.setattr(lookup, "_screened", lambda *args: seen.setdefault("candidates", screened(*args)))
        patch.setattr(lookup, "_decide", lambda *args: None)
        looked_up(latents, codebook, half_norms)
    tile = lookup.kernel_module("tiles").tiles_for(*("interpreter",) if INTERPRETED else (), latents.shape[1]).block_k
    count = codebook.shape[0]
    order = torch.arange(-(-count // tile) * tile).view(-1, 4, tile // 8, 2).transpose(1, 2).reshape(-1)
    scores = seen["operands"].double() @ seen["vectors"].double().t()
    shift = seen["exponents"][0] + seen["scales"]
    if seen["biases"].numel():
        weight = torch.ldexp(
            torch.ones(len(latents), dtype=torch.float64), (shift - seen["exponents"][1]).clamp(-24, 15)
        )
        scores += weight[:, None] * seen["biases"].double().sum(dim=1)
    natural = torch.empty(len(latents), len(order), dtype=torch.float64)
    natural[:, order] = scores
    return natural[:, :count], shift, seen["candidates"].slack.double()


@pytest.mark.skipif(not INTERPRETED, reason="looks into the interpreter's tiles")
@pytest.mark.certificate
@pytest.mark.parametrize("dim", [6, 16, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_the_slack_bounds_what_a_product_can_err(kind, dim, monkeypatch):
    """The rounded operands' exact scores less the chain's are one number a row, up to the slack and its share of sums.

    What tensor cores may lose on top is not seen here: the reserve that the slack keeps for it must be left over.
    """
    latents, codebook = KINDS[kind](30, 70, dim)
    codebook, half = starts(codebook, "l2")
    scores, shift, slack = measured(latents, codebook, half, monkeypatch)
    chain = reference.score(latents[:, None], codebook, half).double()
    bounded = slack.isfinite()
    ours = torch.ldexp(chain, shift[:, None].double().int())
    error = (scores - ours)[bounded]
    spread = error.amax(dim=1) - error.amin(dim=1) if len(error) else error.new_zeros(0)
    reserve = (dim / 4 + 4) * 2.0**-22 * (scores.abs().amax(dim=1)[bounded])
    assert (spread + 2 * reserve <= slack[bounded]).all()


@runs
@pytest.mark.certificate
@pytest.mark.parametrize("term", range(6))
@pytest.mark.parametrize("dim", [5, 64])
def test_the_slack_counts_every_error(term, dim):
    """With one bound of the codebook and all others zero, the slack is at least twice what that bound can do."""
    latents, count = gauss(9, dim), 9
    bounds = torch.zeros(6)
    bounds[term] = 1e4
    exponents = torch.tensor([3, 2, -1000, 1000], dtype=torch.int32)
    operands = torch.empty(count, max(16, dim), dtype=torch.float16, device=DEVICE)
    scales = torch.empty(count, dtype=torch.int32, device=DEVICE)
    slack = torch.empty(count, device=DEVICE)
    rows = lookup.rows_of(latents.to(DEVICE))
    constants = {"D": dim, "WIDTH": max(16, dim), "BLOCK_N": 32, "BLOCK_D": 16}
    given = (torch.zeros(dim), exponents, bounds)
    lookup.kernel_module("nearest_code").measure[(1,)](
        rows.latents, *rows.walk, *(x.to(DEVICE) for x in given), operands, scales, slack, 0, count, **constants
    )
    scale = 2.0 ** scales.cpu().double()
    exact = latents.double() * scale[:, None]
    assert (exact.abs().amax(dim=1) >= 32).all()
    assert (exact.abs().amax(dim=1) < 64).all()
    length, residual = exact.norm(dim=1), (exact - operands[:, :dim].cpu().double()).norm(dim=1)
    assert (residual > 0).all()
    weight, chain, product = scale * 2.0 ** (3 - 2), dim * 2.0**-24, (dim / 4 + 4) * 2.0**-22
    least = [residual + product * length, length, chain * length, chain * scale, weight, product * weight][term] * 1e4
    assert (slack.cpu() >= 2 * least).all()
    assert (slack.cpu() <= 20 * least + 1).all()  # and not much more, or nothing would be certified


# Of a codebook that overflows float32 no bound is close; and of one "drowned", whose codes are whole numbers beyond
# 2^23, the float64 rounding that the bounds allow for is more than its errors, which are none.
@pytest.mark.certificate
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("overflowing", "huge latents", "drowned")])
def test_the_bounds_of_a_codebook_are_its_errors(kind):
    codebook, half = starts(KINDS[kind](1, 50, 7)[1], "l2")
    made = triton_codebook.screening_codebook(codebook, half, 64, 16)
    exponent, of_bias = (int(x) for x in made.exponents[:2])
    order = torch.arange(64).view(4, 8, 2).transpose(0, 1).reshape(-1)
    rows = torch.empty(64, 16, dtype=torch.float64)
    rows[order] = made.vectors.double()
    assert torch.equal(rows[50:], rows[49:50].expand(14, 16))
    vectors, biases = rows[:50, :7], rows[:50, 7:9].sum(dim=1)
    moved = (codebook.double() - codebook.double().mean(dim=0).float().double()) * 2.0**exponent
    bias = ((moved * made.centre.double()).sum(dim=1) * 2.0**-exponent - half.double()) * 2.0**of_bias
    errors = [
        vectors.norm(dim=1).amax(),
        (moved - vectors).norm(dim=1).amax(),
        codebook.double().norm(dim=1).amax() * 2.0**exponent,
        half.double().amax() * 2.0**exponent,
        (bias - bias.amax() - biases).abs().amax(),
        rows[:50, 7:9].abs().sum(dim=1).amax(),
    ]
    for bound, error in zip(made.bounds.double(), errors, strict=True):
        assert error <= bound <= 1.001 * error + 2.0**-10
    assert errors[1] <= 2.0**-11 * errors[0] + 2.0**-20
    assert errors[4] <= 2.0**-21 * errors[5]
    assert moved.abs().amax() < 64
    assert made.vectors.isfinite().all()


@runs
@pytest.mark.training
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics_are_the_references_in_every_shape_and_dtype(dtype, shape):
    rows, vocab_size, dim = shape
    latents = (gauss(rows, dim) * 10 ** gauss(rows, dim, seed=1)).clamp(-6e4, 6e4).to(dtype)
    codes = torch.randint(vocab_size, (rows,), generator=torch.Generator().manual_seed(2))
    counts, sums = triton_training.code_statistics(latents.to(DEVICE), codes.to(DEVICE), vocab_size)
    expected_counts, expected_sums = reference.code_statistics(latents, codes, vocab_size)
    assert torch.equal(counts.cpu(), expected_counts)
    assert torch.equal(sums.cpu(), expected_sums)


@runs
@pytest.mark.training
def test_the_order_of_the_rows_is_the_order_of_the_sum():
    codes = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    for rows, total in (([2.0**60, 1.0, -(2.0**60)], 0), ([2.0**60, -(2.0**60), 1.0], 1)):
        latents = torch.tensor(rows, device=DEVICE)[:, None]
        assert triton_training.code_statistics(latents, codes, 1)[1].item() == total


@runs
@pytest.mark.training
@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_and_vectors_are_read_where_they_lie(layout):
    rows, codebook = gauss(3, 5, 7, 12), gauss(9, 12, seed=1)
    codes = torch.arange(105).remainder(9).reshape(7, 5, 3).permute(2, 1, 0)
    latents = LAYOUTS[layout](rows).to(DEVICE)
    counts, sums = triton_training.code_statistics(latents, codes.to(DEVICE), 9)
    expected_counts, expected_sums = reference.code_statistics(rows, codes, 9)
    assert torch.equal(counts.cpu(), expected_counts)
    assert torch.equal(sums.cpu(), expected_sums)
    vectors, loss = triton_training.straight_through(latents, codebook.to(DEVICE), codes.to(DEVICE))
    expected, expected_loss = reference.straight_through(rows, codebook, codes)
    assert torch.equal(vectors.cpu(), expected)
    torch.testing.assert_close(loss.cpu(), expected_loss)


@runs
@pytest.mark.training
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("codebook_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vectors_are_the_references_bit_for_bit_and_the_loss_is_near(dtype, codebook_dtype, shape):
    rows, vocab_size, dim = shape
    latents, codebook = gauss(rows, dim).to(dtype), gauss(vocab_size, dim, seed=1).to(codebook_dtype)
    codes = torch.randint(vocab_size, (rows,), generator=torch.Generator().manual_seed(2))
    vectors, loss = triton_training.straight_through(*(x.to(DEVICE) for x in (latents, codebook, codes)))
    expected, expected_loss = reference.straight_through(latents, codebook, codes)
    assert torch.equal(vectors.cpu(), expected)
    assert loss.dtype == expected_loss.dtype
    # The reference adds in another order.
    torch.testing.assert_close(loss.cpu(), expected_loss, rtol=1e-6 if loss.dtype == torch.float32 else 1e-13, atol=0)


@runs
@pytest.mark.training
def test_a_code_out_of_range_reads_nothing_and_shows():
    latents, codebook = gauss(4, 3).to(DEVICE), gauss(5, 3).to(DEVICE)
    codes = torch.tensor([0, 5, -1, 4], device=DEVICE)
    vectors, loss = triton_training.straight_through(latents, codebook, codes)
    assert vectors.isnan().all(dim=1).tolist() == [False, True, True, False]
    assert loss.isnan()


EVERY_LAYOUT_AND_DTYPE = [*(("rows", dtype) for dtype in DTYPES), *((layout, torch.float32) for layout in LAYOUTS)]
INPUTS = {
    "straight_through_backward": lambda g, z, e, k, w: (g, z, e, k, w),
    "rotate_backward": lambda g, z, e, k, w: (g, z, e, k, w),
    "codebook_backward": lambda g, z, e, k, w: (z, e, k, w),
    "half_squared_norms": lambda g, z, e, k, w: (e,),
    "normalize_codebook": lambda g, z, e, k, w: (e,),
    "normalize_latents": lambda g, z, e, k, w: (z,),
    "normalize_latents_backward": lambda g, z, e, k, w: (g, z),
}
EXACT = {"straight_through_backward", "codebook_backward", "half_squared_norms", "normalize_codebook"}


@runs
@pytest.mark.training
@pytest.mark.parametrize(("layout", "dtype"), EVERY_LAYOUT_AND_DTYPE, ids=str)
@pytest.mark.parametrize(("vocab_size", "dim"), [(5, 1), (70, 12), (9, 140)])
@pytest.mark.parametrize("op", INPUTS)
def test_training_ops_give_what_the_reference_gives(op, vocab_size, dim, layout, dtype):
    if INTERPRETED and dtype == torch.bfloat16 and op.endswith("backward") and op != "codebook_backward":
        pytest.skip("the interpreter cuts bfloat16 off where a GPU rounds it")
    arrange = LAYOUTS.get(layout, lambda x: x)
    codebook = gauss(vocab_size, dim) * 10 ** gauss(vocab_size, 1, seed=1)
    codebook[0] = 0
    codes = torch.randint(vocab_size, (3, 5, 7), generator=torch.Generator().manual_seed(2))
    latents = (gauss(3, 5, 7, dim, seed=3) * 10 ** gauss(3, 5, 7, 1, seed=4)).clamp(-6e4, 6e4)
    latents[0, 0, :3] = torch.stack([latents[0, 0, 0] * 0, -codebook[codes[0, 0, 1]], codebook[codes[0, 0, 2]]])
    gradient = arrange(gauss(3, 5, 7, dim, seed=5))
    inputs = INPUTS[op](gradient, arrange(latents.to(dtype)), codebook, codes, torch.tensor(0.3))
    came = getattr(triton_training, op)(*(x.to(DEVICE) for x in inputs)).cpu()
    expected = getattr(arithmetic if op in ("half_squared_norms", "normalize_codebook") else reference, op)(*inputs)
    assert (came.dtype, came.shape, came.is_contiguous()) == (expected.dtype, expected.shape, True)
    if op in EXACT:
        assert torch.equal(came, expected)
    else:
        one_rounding = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
        torch.testing.assert_close(came, expected, rtol=one_rounding[came.dtype], atol=1e-6)


@runs
@pytest.mark.training
def test_the_gradient_that_passes_straight_is_launched_without_fusion(monkeypatch):
    """Three roundings, as torch has them; the interpreter never fuses, so only the launch shows it."""
    kernels, options = lookup.kernel_module("straight_through"), {}

    class Spy:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: options.update(kwargs)

    monkeypatch.setattr(kernels, "pass_back", Spy())
    z, e = torch.zeros(2, 3, device=DEVICE), torch.zeros(4, 3, device=DEVICE)
    codes, weight = torch.zeros(2, dtype=torch.int64, device=DEVICE), torch.tensor(0.5, device=DEVICE)
    triton_training.straight_through_backward(z, z, e, codes, weight)
    assert options["enable_fp_fusion"] is False


@runs
@pytest.mark.training
def test_ops_on_no_latents_launch_nothing():
    nothing, codes = torch.zeros(0, 3, device=DEVICE), torch.zeros(0, dtype=torch.int64, device=DEVICE)
    codebook, weight = torch.zeros(4, 3, device=DEVICE), torch.tensor(0.5, device=DEVICE)
    for op, choose in INPUTS.items():
        out = getattr(triton_training, op)(*choose(nothing, nothing, codebook, codes, weight))
        assert out.shape[1:] == (3,) or op == "half_squared_norms"


@runs
@pytest.mark.training
@pytest.mark.parametrize(("layout", "dtype"), EVERY_LAYOUT_AND_DTYPE, ids=str)
@pytest.mark.parametrize("levels", [(2,), (8, 5, 5, 5), (3, 4, 5, 8, 7), (129, 2, 64)])
def test_finite_scalars_are_the_references(levels, layout, dtype):
    rows = (gauss(3, 5, 7, len(levels)) * 2).to(dtype)
    if dtype == torch.float32:  # on thresholds and just below them
        ends = torch.tensor(level_thresholds(levels[0]))
        rows[0, 0, 0, 0], rows[0, 0, 1, 0] = ends[-1], torch.nextafter(ends[0], ends[0] - 1)
    latents = LAYOUTS.get(layout, lambda x: x)(rows)
    codes, vectors = triton_training.finite_scalar(latents.to(DEVICE), levels)
    expected_codes, expected_vectors = reference.finite_scalar(rows, levels)
    assert torch.equal(codes.cpu(), expected_codes)
    assert torch.equal(vectors.cpu(), expected_vectors)


@runs
@pytest.mark.training
def test_every_kernel_is_compared():
    tested = {"code_statistics", "straight_through", "finite_scalar", *INPUTS}
    rows = {b.function for op in OPS.values() for b in op.backends if b.name == "triton"}
    assert rows == {"vqtok.ops.triton:nearest_code", *(f"vqtok.ops.triton_training:{name}" for name in tested)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_lookup_is_captured_in_a_graph_and_never_waits_for_the_device():
    latents, codebook = (x.cuda() for x in KINDS["collapsed"](4096, 1000, 16))
    inputs = lookup.pack(*starts(codebook, "l2"))
    expected = lookup.nearest_code(latents, *inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        lookup.nearest_code(latents, *inputs)
        lookup.pack(*starts(codebook, "l2"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        codes = lookup.nearest_code(latents, *inputs)
    graph.replay()
    assert torch.equal(codes, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["gauss", "lattice", "collapsed"])
@pytest.mark.parametrize(("rows", "vocab_size", "dim"), [(70_001, 8191, 8), (20_000, 1000, 64), (3000, 16384, 256)])
def test_large_lookups_are_the_references(rows, vocab_size, dim, kind):
    latents, codebook = (x.cuda() for x in KINDS[kind](rows, vocab_size, dim))
    inputs = (latents, *starts(codebook, "l2"))
    with use_backend("triton"):
        codes = nearest_code(latents, codebook)
        assert torch.equal(codes, nearest_code(latents, codebook))
        assert torch.equal(codes, nearest_code(latents, PreparedCodebook(codebook)))
    assert torch.equal(codes, reference.nearest_code(*inputs))
