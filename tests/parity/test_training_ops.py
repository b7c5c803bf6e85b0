"""Every backend of the training ops against the reference, and all of them in one compiled graph.

Tolerances: none where the last bit is defined (vectors, sums by code, norms of a codebook, averages, the gradient that
passes straight through); one rounding in float32 where it is not (losses, rotations, unit latents).
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vqtok import EmaQuantizer
from vqtok.errors import BackendUnavailable
from vqtok.ops import (
    compact,
    explain,
    finite_scalar,
    finite_scalar_vectors,
    native,
    native_training,
    nearest_code,
    normalize_latents,
    pad,
    rotate,
    use_backend,
)
from vqtok.ops.table import OPS

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((0, 5, 3), (1, 1, 1), (7, 1, 5), (6, 17, 1), (97, 61, 8), (50, 129, 31), (700, 70, 100), (9, 4, 5000))
LAYOUTS = {
    "rows": lambda x: x,
    "columns": lambda x: x.t().contiguous().t(),
    "sliced": lambda x: torch.nn.functional.pad(x, (1, 2))[:, 1:-2],
    "one column": lambda x: x[:, :1].expand_as(x),
    "crossed grid": lambda x: torch.stack([x, -x]).transpose(0, 1),
}
EXACT = {
    "code_statistics",
    "straight_through_backward",
    "codebook_backward",
    "half_squared_norms",
    "normalize_codebook",
    "finite_scalar",
    "update_averages",
}
INPUTS = {
    "code_statistics": lambda g, z, e, k, w: (z, k, len(e)),
    "straight_through": lambda g, z, e, k, w: (z, e, k),
    "rotate": lambda g, z, e, k, w: (z, e, k),
    "straight_through_backward": lambda g, z, e, k, w: (g, z, e, k, w),
    "rotate_backward": lambda g, z, e, k, w: (g, z, e, k, w),
    "codebook_backward": lambda g, z, e, k, w: (z, e, k, w),
    "half_squared_norms": lambda g, z, e, k, w: (e,),
    "normalize_codebook": lambda g, z, e, k, w: (e,),
    "normalize_latents": lambda g, z, e, k, w: (z,),
    "normalize_latents_backward": lambda g, z, e, k, w: (g, z),
    "finite_scalar": lambda g, z, e, k, w: (z[..., :7], [3 + 9 * d for d in range(min(z.shape[-1], 7))]),
    "update_averages": lambda g, z, e, k, w: (e[:, 0].abs(), e, e + 1, e[:, 0].round().abs(), e - 2, 0.9, 1e-5, True),
}


@pytest.fixture(autouse=True)
def _library():
    if reason := native.reason_against():
        pytest.skip(f"cpu {reason}")


def tensors(shape, dtype, arrange=LAYOUTS["rows"]):
    rows, vocab_size, dim = shape
    latents = arrange((torch.randn(rows, dim) * 10 ** torch.randn(rows, dim)).clamp(-6e4, 6e4).to(dtype))
    gradient, codebook = arrange(torch.randn(rows, dim)), torch.randn(vocab_size, dim)
    return gradient, latents, codebook, torch.randint(vocab_size, latents.shape[:-1]), torch.tensor(0.3)


def outcome(op, backend, inputs):
    with use_backend(backend):
        out = getattr(torch.ops.vqtok, op).default(*inputs)
    return out if isinstance(out, tuple) else (out,)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", INPUTS)
def test_the_library_gives_what_the_reference_gives(op, shape, dtype, layout):
    inputs = INPUTS[op](*tensors(shape, dtype, LAYOUTS[layout]))
    for came, expected in zip(outcome(op, "cpu", inputs), outcome(op, "reference", inputs), strict=True):
        assert (came.dtype, came.shape, came.is_contiguous()) == (expected.dtype, expected.shape, True)
        assert expected.is_contiguous()
        if op in EXACT:
            assert torch.equal(came, expected)
        else:
            one_rounding = 2.0 ** {torch.float32: -20, torch.float16: -10, torch.bfloat16: -7}[came.dtype]
            torch.testing.assert_close(came, expected, rtol=one_rounding, atol=1e-6)


def test_every_op_of_the_library_is_compared():
    assert {name for name, op in OPS.items() if "native_training" in op.backends[0].function} == set(INPUTS)


def test_halves_are_converted_as_torch_does_all_of_them():
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    zero, weight = torch.zeros(1, 1), torch.tensor(0.0)
    for dtype in (torch.float16, torch.bfloat16):
        halves = every.view(dtype)
        codes = torch.arange(len(halves))
        sums = native_training.code_statistics(halves[:, None], codes, len(codes))[1][:, 0]
        assert torch.equal(sums.nan_to_num(7.5, 3e38, -3e38), halves.float().nan_to_num(7.5, 3e38, -3e38))
        # Every half, what lies between two of them, and the neighbours of both.
        floats = halves.float().sort().values
        between = (floats[1:].double() + floats[:-1].double()).div(2).float()
        ends = torch.tensor([65519.9, 65520.0, 65535.0, 1e9, 3.4e38, 1e-8, 2.0**-25, 1e-45])
        nans = torch.tensor([0x7F800001, 0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
        some = torch.cat([floats, between, ends, nans])
        some = torch.cat([some, *(torch.nextafter(some, some.new_tensor(x)) for x in (torch.inf, -torch.inf)), -some])
        latents, codes = torch.zeros(len(some), 1, dtype=dtype), torch.zeros(len(some), dtype=torch.int64)
        out = native_training.straight_through_backward(some[:, None], latents, zero, codes, weight)
        expected = some.to(dtype)
        assert torch.equal(out[:, 0].isnan(), expected.isnan())
        same = out[:, 0].view(torch.int16) == expected.view(torch.int16)
        assert (same | expected.isnan()).all()


@pytest.mark.parametrize("op", sorted(INPUTS))
def test_no_bit_depends_on_the_threads(op):
    inputs = INPUTS[op](*tensors((20_000, 9000, 60), torch.float32))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(outcome(op, "cpu", inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_flushed_denormals_do_not_reach_the_library():
    gradient, latents, codebook, codes, weight = tensors((97, 61, 8), torch.float32)
    inputs = (gradient * 1e-39, latents * 1e-39, codebook * 1e-39, codes, weight)
    expected = {op: outcome(op, "cpu", INPUTS[op](*inputs)) for op in INPUTS}
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormals")
    try:
        came = {op: outcome(op, "cpu", INPUTS[op](*inputs)) for op in INPUTS if op != "update_averages"}
    finally:
        torch.set_flush_denormal(False)
    for op, results in came.items():
        assert all(torch.equal(a, b) for a, b in zip(results, expected[op], strict=True)), op


def test_a_codebook_that_the_library_does_not_read_goes_to_the_reference_and_explain_says_why():
    latents, codebook = torch.zeros(4, 3), torch.zeros(5, 3, dtype=torch.float16)
    for op in ("straight_through", "rotate", "rotate_backward"):
        table = explain(op, latents, codebook)
        assert "cpu        cannot run: takes codebooks of float32, this is float16" in table
        assert "reference  taken" in table
    assert torch.equal(rotate(latents, codebook, torch.zeros(4, dtype=torch.int64)).vectors, codebook[:4])
    with use_backend("cpu"), pytest.raises(BackendUnavailable, match="takes codebooks of float32, this is float16"):
        rotate(latents, codebook, torch.zeros(4, dtype=torch.int64))
    assert "cpu        cannot run: takes bfloat16, float16, float32" in explain("code_statistics", latents.double())


@pytest.mark.parametrize("op", OPS)
def test_explain_names_the_backend_that_is_taken(op):
    table = explain(op, torch.zeros(4, 3), torch.zeros(5, 3))
    taken = "reference  taken" if op == "finite_scalar_backward" else "cpu        taken"
    assert taken in table
    assert table.count("taken") == 1


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_autocast_reaches_no_code_no_statistic_and_no_gradient(metric):
    results = []
    for enabled in (False, True):
        torch.manual_seed(5)
        quantizer, latents = EmaQuantizer(dim=6, vocab_size=31, metric=metric).train(), torch.randn(50, 6)
        latents.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = quantizer(latents)
        (out.vectors.sum() + out.losses["commitment"]).backward()
        results.append((out.vectors, out.codes, latents.grad, *quantizer.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def train(latents, codebook):
    codes = nearest_code(latents, codebook)
    unit = normalize_latents(latents)
    out, levels = rotate(unit, codebook, codes), finite_scalar(latents, (3, 4, 5, 8, 7))
    loss = (out.vectors + levels.vectors).sin().sum() + out.losses["codebook"] + 0.25 * out.losses["commitment"]
    decoded = finite_scalar_vectors(levels.codes, (3, 4, 5, 8, 7))
    return {"codes": codes, "vectors": out.vectors, "levels": levels.codes, "decoded": decoded, "loss": loss}


@pytest.mark.parametrize("compiler", ["inductor", "aot_eager"])
def test_training_ops_compile_as_one_graph_and_give_the_same(compiler):
    compiled = torch.compile(train, fullgraph=True, backend=compiler)
    grid, rows, results = torch.randn(2, 5, 3, 4), torch.randn(7, 5), []
    for function in (train, compiled):
        latents, codebook = grid.permute(0, 2, 3, 1).requires_grad_(), rows.clone().requires_grad_()
        out = function(latents, codebook)
        out["loss"].backward()
        results.append((out, latents.grad, codebook.grad))
        grid = grid.detach().clone()
    (eager, *eager_grads), (graph, *graph_grads) = results
    for name in ("codes", "vectors", "levels", "decoded"):
        assert torch.equal(graph[name], eager[name]), name
    for came, expected in zip(graph_grads, eager_grads, strict=True):
        torch.testing.assert_close(came, expected)


def ragged(values, keep):
    kept, lengths = compact(values, keep)
    rows, mask = pad(kept * 2, lengths, fill=-1)
    return rows, mask


def test_dynamic_tokens_compile_as_one_graph_whatever_is_kept():
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(ragged, fullgraph=True, backend="aot_eager")
        for keep in (torch.rand(3, 6) > 0.5, torch.rand(3, 6) > 0.2, torch.zeros(3, 6).bool()):
            values = torch.randn(3, 6, 2)
            for came, expected in zip(compiled(values, keep), ragged(values, keep), strict=True):
                assert torch.equal(came, expected)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_a_quantizer_in_training_compiles_as_one_graph_and_learns_the_same(metric):
    torch.manual_seed(5)
    eager, compiled = (EmaQuantizer(dim=6, vocab_size=31, metric=metric).train() for _ in range(2))
    compiled.load_state_dict(eager.state_dict())
    graph = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        latents = torch.randn(2, 5, 6)
        ours, theirs = eager(latents), graph(latents)
        assert torch.equal(ours.codes, theirs.codes)
        assert torch.equal(ours.vectors, theirs.vectors)
    for name, expected in eager.state_dict().items():
        assert torch.equal(compiled.state_dict()[name], expected), name


STEP = """
import resource, sys, torch
import vqtok
torch.manual_seed(0)
torch.set_num_threads(2)
rows, codes, dim = (int(x) for x in sys.argv[1:4])
def step(quantizer, latents, gradient):
    out = quantizer(latents)
    torch.autograd.backward([out.vectors, out.losses["commitment"]], [gradient, None])
def problem(rows, codes):
    quantizer = vqtok.EmaQuantizer(dim=dim, vocab_size=codes, metric="cosine").train()
    latents = torch.randn(rows, dim, requires_grad=True)
    return quantizer, latents, torch.ones(rows, dim)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(*problem(64, 64))  # what is loaded on first use
inputs = problem(rows, codes)
before = peak()
step(*inputs)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted otherwise")
def test_a_training_step_needs_no_more_memory_than_latents_and_codebook_do():
    root = Path(native.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", STEP, "8192", "16384", "32"], cwd=root, capture_output=True, text=True, check=True
    )
    assert 0 <= int(done.stdout) <= 32 * 1024  # KiB; one number for every latent and code would take 512 MiB
