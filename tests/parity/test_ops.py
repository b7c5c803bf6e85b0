"""Every backend of every op against the reference, bit for bit, and every op in torch's own checks.

Tolerances: none. nearest_code and code_statistics are defined to the last bit (vqtok/ops/reference.py).
"""

import os
import platform
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from tests.parity.kinds import DTYPES, KINDS, SHAPES, gauss, lattice
from vqtok.errors import BackendUnavailable, ConfigError, NonFiniteLatents
from vqtok.ops import (
    PreparedCodebook,
    PreparedConv3x3,
    code_statistics,
    half_squared_norms,
    native,
    native_lookup,
    nearest_code,
    reference,
    screened,
    straight_through,
    use_backend,
)
from vqtok.ops.table import OPS

IN_EVERY_INSTRUCTION_SET = {("nearest_code", "cpu")}
ARM = platform.machine() in ("aarch64", "arm64")
HERE = [isa for isa in native.INSTRUCTION_SETS if isa == "scalar" or ARM == (isa == "neon")]


def contenders(op):
    return [
        pytest.param(backend, isa, id=f"{backend.name}-{isa}".rstrip("-"))
        for backend in OPS[op].backends[:-1]
        if backend.serves("cpu")
        for isa in (HERE if (op, backend.name) in IN_EVERY_INSTRUCTION_SET else ("",))
    ]


@pytest.fixture
def forced(monkeypatch):
    def force(backend, isa, latents):
        if isa:
            monkeypatch.setenv("VQTOK_CPU_ISA", isa)
        if reason := backend.reason_against(latents):
            pytest.skip(f"{backend.name} {reason}")
        return use_backend(backend.name)

    return force


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("backend", "isa"), contenders("nearest_code"))
def test_nearest_code_is_the_references_on_every_kind_of_data(forced, backend, isa, kind):
    latents, codebook = KINDS[kind](53, 71, 12)
    with forced(backend, isa, latents):
        codes = {metric: nearest_code(latents, codebook, metric) for metric in ("l2", "cosine", "dot")}
    with use_backend("reference"):
        for metric, came in codes.items():
            assert torch.equal(came, nearest_code(latents, codebook, metric)), metric


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("backend", "isa"), contenders("nearest_code"))
def test_nearest_code_is_the_references_in_every_shape_and_dtype(forced, backend, isa, dtype, shape):
    latents, codebook = (x.to(dtype) for x in KINDS["gauss"](*shape))
    with forced(backend, isa, latents):
        codes = nearest_code(latents, codebook)
    with use_backend("reference"):
        assert torch.equal(codes, nearest_code(latents, codebook))


SCREENS = [pytest.param(b, id=b.name) for b in OPS["nearest_code"].backends if b.name in ("cpu-int8", "cpu-bf16")]
LARGE = ((1100, 3000, 2), (600, 2000, 5), (500, 777, 16), (300, 1500, 33), (97, 513, 256), (40, 100, 1024))


@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", SCREENS)
def test_screening_gives_the_codes_of_the_float32_kernel(forced, backend, kind, shape):
    """The float32 kernel is compared with the reference above; here there are codes enough to go wrong."""
    latents, codebook = KINDS[kind](*shape)
    for metric in ("l2", "cosine", "dot"):
        with use_backend("cpu"):
            expected = nearest_code(latents, codebook, metric)
        with forced(backend, "", latents):
            assert torch.equal(nearest_code(latents, codebook, metric), expected), metric


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", SCREENS)
def test_screening_gives_the_codes_of_the_float32_kernel_in_many_shapes_and_orders(forced, backend, kind, seed):
    draw = random.Random(seed)
    shape = draw.choice((50, 1000, 3000)), draw.choice((100, 3000, 9000)), draw.choice((1, 2, 3, 4, 8, 31, 64, 200))
    torch.manual_seed(seed)
    latents, codebook = KINDS[kind](*shape)
    order = torch.randperm(shape[1])
    with use_backend("cpu"):
        expected = nearest_code(latents, codebook[order])
    with forced(backend, "", latents):
        assert torch.equal(nearest_code(latents, codebook[order]), expected)


@pytest.mark.parametrize("kind", ["gauss", "unit vectors", "little offset", "one great code"])
@pytest.mark.parametrize("backend", SCREENS)
def test_screening_decides_nearly_all_by_itself(forced, backend, kind):
    """Else it would be right, and slower than no screening. Centring and bounds a panel are what makes it so."""
    latents, codebook = KINDS[kind](400, 2000, 24)
    with forced(backend, "", latents):
        (packed,) = backend.packed(codebook, half_squared_norms(codebook))
        _, (seen, panels, undecided) = native_lookup.screened(latents, packed)
    assert seen == 400
    assert undecided <= 4
    assert panels <= 6 * 400  # of 125 for each latent


@pytest.mark.parametrize("backend", SCREENS)
def test_screening_that_cannot_decide_is_given_up(forced, backend):
    latents, codebook = gauss(5000, 4), 1 + 1e-7 * gauss(3000, 4, seed=1)
    with forced(backend, "", latents):
        (packed,) = backend.packed(codebook, half_squared_norms(codebook))
        codes, (seen, _, _) = native_lookup.screened(latents, packed)
    assert seen < 1000
    with use_backend("cpu"):
        assert torch.equal(codes, nearest_code(latents, codebook))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("backend", "isa"), contenders("code_statistics"))
def test_code_statistics_are_the_references_in_every_shape_and_dtype(forced, backend, isa, dtype, shape):
    rows, vocab_size, dim = shape
    latents = (gauss(rows, dim) * 10 ** gauss(rows, dim, seed=1)).clamp(-6e4, 6e4).to(dtype)
    codes = torch.randint(vocab_size, (rows,), generator=torch.Generator().manual_seed(2))
    with forced(backend, isa, latents):
        counts, sums = code_statistics(latents, codes, vocab_size)
    with use_backend("reference"):
        expected_counts, expected_sums = code_statistics(latents, codes, vocab_size)
    assert torch.equal(counts, expected_counts)
    assert torch.equal(sums, expected_sums)


class LargestTensor(TorchDispatchMode):
    """Notes the most elements of any tensor that an op made; views of what was there are no new tensors."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in known:
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.parametrize("kind", ["gauss", "collapsed", "lattice", "zeros"])
@pytest.mark.parametrize("backend", [screened, reference], ids=["screened", "reference"])
def test_scores_are_never_held_whole(monkeypatch, backend, kind):
    monkeypatch.setattr(screened, "_BLOCK_SCORES", 2048)
    monkeypatch.setattr(reference, "_BLOCK_SCORES", 512)
    latents, codebook = KINDS[kind](401, 103, 3)
    with LargestTensor() as largest:
        codes = backend.nearest_code(latents, codebook, codebook.square().sum(1) / 2)
    assert largest.elements <= 2048
    assert len(codes) == 401


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", [b for b in OPS["nearest_code"].backends if b.serves("cpu")], ids=lambda b: b.name)
def test_latents_are_never_copied_whole(monkeypatch, forced, backend, dtype):
    monkeypatch.setattr(screened, "_BLOCK_SCORES", 2048)
    monkeypatch.setattr(reference, "_BLOCK_SCORES", 512)
    codebook = gauss(20, 3, seed=1)
    arguments = backend.packed(codebook, half_squared_norms(codebook)) if not backend.reason_against(codebook) else ()
    for shape in ((1, 3, 41, 37), (9, 3, 1, 60), (2000, 3, 1, 1)):
        latents = gauss(*shape).to(dtype).permute(0, 2, 3, 1)  # BCHW, not contiguous as rows
        with forced(backend, "", latents), LargestTensor() as largest:
            codes = backend.load()(latents, *arguments)
        assert largest.elements <= max(2048, codes.numel())
        assert torch.equal(codes, nearest_code(latents.contiguous(), codebook))
        bad = latents.contiguous().clone()
        bad.view(-1, 3)[codes.numel() - 2, 1] = torch.nan
        with pytest.raises(NonFiniteLatents, match=f"row {codes.numel() - 2} "):
            backend.load()(bad.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1), *arguments)


def test_the_reference_gives_the_same_whatever_its_blocks(monkeypatch):
    latents, codebook = lattice(50, 2), lattice(60, 2, seed=1)
    half_norms = codebook.square().sum(1) / 2
    expected = reference.nearest_code(latents, codebook, half_norms)
    for scores in (1, 7, 100):
        monkeypatch.setattr(reference, "_BLOCK_SCORES", scores)
        assert torch.equal(reference.nearest_code(latents, codebook, half_norms), expected)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_screening_stays_exact_when_torch_may_round_products(monkeypatch, precision):
    latents, codebook = KINDS["gauss"](300, 200, 16)
    expected = nearest_code(latents, codebook)
    products = []
    product = screened._product
    monkeypatch.setattr(screened, "_product", lambda *args: products.append(product(*args)) or products[-1])
    try:
        torch.set_float32_matmul_precision(precision)
        with use_backend("screened"):
            assert torch.equal(nearest_code(latents, codebook), expected)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert {x.dtype for x in products} == {torch.float64}
    with use_backend("screened"), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_code(latents, codebook), expected)
    assert products[-1].dtype == torch.float32


@pytest.fixture
def library():
    if reason := native.reason_against():
        pytest.skip(f"cpu {reason}")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_the_library_serves_many_python_threads_at_once(library):
    latents, codebook = KINDS["gauss"](700, 130, 48)
    expected = nearest_code(latents, codebook)
    with ThreadPoolExecutor(8) as pool:
        for codes in pool.map(lambda _: nearest_code(latents, codebook), range(32)):
            assert torch.equal(codes, expected)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
@pytest.mark.parametrize("threads", [1, 3])
def test_the_library_starts_no_more_threads_than_torch_has(library, threads):
    torch.set_num_threads(threads)
    latents, codebook = KINDS["gauss"](6000, 3000, 64)
    nearest_code(latents, codebook)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        before, most = len(os.listdir("/proc/self/task")), 0
        call = pool.submit(lambda: [nearest_code(latents, codebook) for _ in range(5)])
        while not call.done():
            most = max(most, len(os.listdir("/proc/self/task")))
    assert before + (threads > 1) <= most <= before + threads - 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_library_works_in_a_forked_child(library):
    latents, codebook = KINDS["gauss"](700, 130, 48)
    expected = nearest_code(latents, codebook)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(nearest_code(latents, codebook), expected) else 1)
    for _ in range(1200):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert (pid, status) == (child, 0)


def test_the_instruction_set_is_forced_by_name(library, monkeypatch):
    assert "scalar" in native.instruction_sets()
    monkeypatch.setenv("VQTOK_CPU_ISA", "mmx")
    with use_backend("cpu"), pytest.raises(ConfigError, match="one of scalar, avx2, avx512, neon, got 'mmx'"):
        nearest_code(gauss(2, 3), gauss(4, 3))
    monkeypatch.setenv("VQTOK_CPU_ISA", "avx512")
    monkeypatch.setattr(native, "instruction_sets", lambda: ("scalar", "avx2"))
    with (
        use_backend("cpu"),
        pytest.raises(BackendUnavailable, match="VQTOK_CPU_ISA=avx512, which this processor lacks"),
    ):
        nearest_code(gauss(2, 3), gauss(4, 3))


def test_flushed_denormals_do_not_reach_the_library(library):
    latents, codebook = KINDS["denormal"](53, 71, 12)
    codebook = PreparedCodebook(codebook)
    expected = nearest_code(latents, codebook)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormals")
    try:
        assert torch.equal(nearest_code(latents, codebook), expected)
    finally:
        torch.set_flush_denormal(False)


LAYOUTS = {
    "contiguous": lambda x: x.permute(0, 2, 3, 1).contiguous(),
    "BCHW": lambda x: x.permute(0, 2, 3, 1),
    "padded": lambda x: torch.nn.functional.pad(x, (1, 2)).permute(0, 2, 3, 1)[:, :, 1:-2],
}


def _convolved(values):
    prepared = PreparedConv3x3(gauss(32, 16, 3, 3, seed=3))
    return values[:, :1].expand(2, 16, *values.shape[2:]), prepared.weight, prepared.packed


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_torch_accepts_the_op(op, layout):
    latents, codebook = LAYOUTS[layout](gauss(2, 5, 3, 4)), gauss(7, 5, seed=1)
    codes, gradient, weight = nearest_code(latents, codebook), gauss(*latents.shape, seed=2), torch.tensor(0.5)
    inputs = {
        "nearest_code": (latents, codebook, "l2"),
        "code_statistics": (latents, codes, 7),
        "straight_through": (latents, codebook, codes),
        "rotate": (latents, codebook, codes),
        "straight_through_backward": (gradient, latents, codebook, codes, weight),
        "rotate_backward": (gradient, latents, codebook, codes, weight),
        "codebook_backward": (latents, codebook, codes, weight),
        "half_squared_norms": (codebook,),
        "normalize_codebook": (codebook,),
        "normalize_latents": (latents,),
        "normalize_latents_backward": (gradient, latents),
        "update_averages": (codebook[:, 0], codebook, codebook + 1, codebook[:, 1], codebook + 2, 0.9, 1e-5, True),
        "finite_scalar": (latents, [3, 4, 5, 8, 7]),
        "finite_scalar_backward": (gradient, latents, [3, 4, 5, 8, 7]),
        "compact": (latents[0], codes[0] > 2),
        "pad": (latents[0, 0], torch.tensor([1, 0, 3]), -1),
        "spread": (latents[0, 0], torch.tensor([[True, False, True], [False, True, True]]), 0),
        "group_norm": (latents, gauss(3, seed=3), None, 1, 1e-6),
        "group_norm_silu": (latents, None, gauss(3, seed=3), 3, 1e-6),
        "group_affine": (latents, gauss(3, seed=3), None, 1, 1e-6),
        "conv3x3": (*_convolved(latents), gauss(32, seed=4), None, gauss(2, 32, 8, 10, seed=5), True),
    }
    opcheck(getattr(torch.ops.vqtok, op).default, inputs[op])


def test_torch_accepts_the_op_of_a_prepared_codebook():
    latents, codebook = gauss(2, 5, 3, 4).permute(0, 2, 3, 1), PreparedCodebook(gauss(70, 5, seed=1))
    inputs = (latents, codebook.vectors, codebook.half_norms, list(codebook.packed), codebook.backend)
    opcheck(torch.ops.vqtok.nearest_prepared_code.default, inputs)
    compiled = torch.compile(nearest_code, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(latents, codebook), nearest_code(latents, codebook.vectors))


def test_torch_accepts_straight_through_of_codes_in_any_memory_order():
    latents, codebook = gauss(3, 4, 5), gauss(7, 5, seed=1)
    codes = nearest_code(latents, codebook).t().contiguous().t()
    assert not codes.is_contiguous()
    opcheck(torch.ops.vqtok.straight_through.default, (latents, codebook, codes))
    compiled = torch.compile(straight_through, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(latents, codebook, codes).vectors, codebook[codes])


@pytest.mark.parametrize("kind", KINDS)
def test_screening_finds_the_winner_under_the_worst_products_that_its_bound_allows(kind, monkeypatch):
    """Products that lower the winner and raise all others as far as the bound lets them."""
    latents, codebook = KINDS[kind](97, 61, 8)
    half_norms = half_squared_norms(codebook)
    expected = reference.nearest_code(latents, codebook, half_norms)

    def worst(rows, codebook, half_norms):
        exact = reference.score(rows[:, None], codebook, half_norms).double()
        error = screened._error(rows, codebook.double().norm(dim=1).amax(), half_norms.double().amax())
        signs = torch.ones_like(exact).scatter_(1, exact.argmax(1, keepdim=True), -1)
        return exact + 0.999 * signs * error.clamp(max=1e300)[:, None]

    monkeypatch.setattr(screened, "_product", worst)
    assert torch.equal(screened.nearest_code(latents, codebook, half_norms), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_of_screening_holds_for_products_that_flush_denormals(kind):
    latents, codebook = KINDS[kind](97, 61, 8)
    half_norms = half_squared_norms(codebook)
    exact = reference.score(latents[:, None], codebook, half_norms).double()
    error = screened._error(latents, codebook.double().norm(dim=1).amax(), half_norms.double().amax())
    torch.set_flush_denormal(True)
    try:
        product = screened._product(latents, codebook, half_norms)
    finally:
        torch.set_flush_denormal(False)
    bounded = error.isfinite()
    assert ((product.double() - exact).abs() <= error[:, None])[bounded].all()


def quantize(latents, codebook):
    codes = nearest_code(latents, codebook)
    out = straight_through(latents, codebook, codes)
    counts, sums = code_statistics(latents, codes, codebook.shape[0])
    loss = out.vectors.sin().sum() + out.losses["codebook"] + 0.25 * out.losses["commitment"]
    return {"codes": codes, "vectors": out.vectors, "counts": counts, "sums": sums, "loss": loss}


@pytest.mark.parametrize(("codebook_learns", "compiler"), [(True, "inductor"), (False, "aot_eager")])
def test_ops_compile_as_one_graph_and_give_the_same(codebook_learns, compiler):
    compiled = torch.compile(quantize, fullgraph=True, backend=compiler)
    results = []
    for function in (quantize, compiled):
        latents = gauss(2, 5, 3, 4).permute(0, 2, 3, 1).requires_grad_()
        codebook = gauss(7, 5, seed=1).requires_grad_(codebook_learns)
        out = function(latents, codebook)
        out["loss"].backward()
        results.append((out, latents.grad, codebook.grad))
    (eager, latents_grad, codebook_grad), (graph, graph_latents_grad, graph_codebook_grad) = results
    for name in ("codes", "vectors", "counts", "sums"):
        assert torch.equal(graph[name], eager[name]), name
    torch.testing.assert_close(graph_latents_grad, latents_grad)
    assert (graph_codebook_grad is None) == (codebook_grad is None)
    if codebook_grad is not None:
        torch.testing.assert_close(graph_codebook_grad, codebook_grad)


def test_a_backend_forced_around_a_compiled_call_is_obeyed(monkeypatch):
    called = []
    monkeypatch.setattr(reference, "nearest_code", lambda *args: called.append(1) or screened.nearest_code(*args))
    monkeypatch.setattr("vqtok.ops.registry._functions", {})
    compiled = torch.compile(nearest_code, fullgraph=True, backend="eager")
    compiled(gauss(9, 5), gauss(7, 5))
    assert not called
    with use_backend("reference"):
        compiled(gauss(9, 5), gauss(7, 5))
    assert called


def test_importing_the_ops_loads_no_kernel():
    code = (
        "import sys, torch; before = set(sys.modules); import vqtok.ops, vqtok.ops.native; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "sys.exit('triton' in new or vqtok.ops.native._loaded.cache_info().currsize)"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(native.__file__)))
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, check=False)
    assert done.returncode == 0
