"""csrc/cuda, executed on the CPU by csrc/shim: bit for bit what the reference says, whatever the schedule.

Tolerances: none, but for the loss of straight_through, whose meaning leaves the order of the sum open.
"""

import ctypes
import math
import os
import subprocess
from pathlib import Path

import pytest
import torch

from tests.parity.cuda_on_cpu import CSRC, CUT, EXACT, SOURCES, WRONG, CudaOnCpu, build, command, compiler
from tests.parity.kinds import KINDS, ORDINARY, gauss, generator
from vqtok.errors import BackendUnavailable, ResourceError
from vqtok.ops import cuda, half_squared_norms, reference

pytestmark = pytest.mark.skipif(compiler() is None, reason="no g++ to build the shim with")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FORMS = {EXACT: "exact", CUT: "cut", WRONG: "wrong"}


@pytest.fixture(scope="session")
def shim_path(tmp_path_factory) -> Path:
    # A folder of this run: test processes of one run have theirs side by side in it, and a later run must build anew.
    of_process = tmp_path_factory.getbasetemp()
    folder = (of_process.parent if "PYTEST_XDIST_WORKER" in os.environ else of_process) / "cuda-on-cpu"
    folder.mkdir(exist_ok=True)
    return build(folder)


@pytest.fixture
def shim(shim_path, monkeypatch) -> CudaOnCpu:
    shim = CudaOnCpu(shim_path)
    shim.configure()
    shim.install(monkeypatch, shim_path)
    return shim


def nearest_code(latents, codebook, half_norms=None):
    half_norms = half_squared_norms(codebook) if half_norms is None else half_norms
    return cuda.nearest_code(latents, cuda.pack(codebook, half_norms))


def assert_reference(latents, codebook, half_norms=None):
    half_norms = half_squared_norms(codebook) if half_norms is None else half_norms
    codes = nearest_code(latents, codebook, half_norms)
    expected = reference.nearest_code(latents, codebook, half_norms)
    assert (codes.dtype, codes.shape) == (torch.int64, latents.shape[:-1])
    wrong = (codes != expected).flatten().nonzero().flatten().tolist()
    assert not wrong, f"{len(wrong)} of {codes.numel()} rows differ, the first are {wrong[:5]}"


@pytest.mark.parametrize("arithmetic", FORMS, ids=FORMS.values())
@pytest.mark.parametrize("kind", KINDS)
def test_nearest_code_is_the_references_on_every_kind_of_data(shim, kind, arithmetic):
    latents, codebook = KINDS[kind](150, 333, 12)
    shim.configure(seed=arithmetic + 1, arithmetic=arithmetic)
    assert_reference(latents, codebook)
    assert_reference(latents, codebook, torch.zeros(len(codebook)))


SHAPES = (
    # One shape of the screening kernel after the other: by the steps of 16 dimensions that a latent has.
    *((0, 5, 3), (1, 1, 1), (7, 1, 5), (3, 32, 16), (129, 33, 4), (65, 128, 15), (130, 129, 17), (40, 300, 32)),
    *((31, 257, 33), (133, 140, 64), (33, 130, 65), (20, 140, 256), (65, 150, 257), (9, 270, 512), (33, 290, 513)),
    *((5, 40, 1024), (70, 130, 1030)),
)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nearest_code_is_the_references_in_every_shape_and_dtype(shim, dtype, shape):
    latents, codebook = KINDS["gauss"](*shape)
    shim.configure(arithmetic=WRONG)
    assert_reference(latents.to(dtype), codebook)


@pytest.mark.parametrize("shape", [(60, 300, 5), (33, 140, 70), (20, 260, 520)], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_no_schedule_changes_a_code(shim, seed, shape):
    for kind in ("lattice", "near copies"):
        shim.configure(seed=1000 + seed)
        assert_reference(*KINDS[kind](*shape))


@pytest.mark.parametrize("dim", [8, 40, 300])
def test_codes_are_shared_out_and_walked_over_in_many_tiles(shim, dim):
    """More tiles than the ring has places, in every one of the most columns that there can be."""
    shim.configure(arithmetic=WRONG)
    for kind in ("gauss", "lattice"):
        assert_reference(*KINDS[kind](9, 12_500 if dim < 300 else 5000, dim))


@pytest.mark.slow
@pytest.mark.parametrize("dim", [8, 64])
def test_one_block_owns_its_latents_over_all_codes(shim, dim):
    """As many latents as make 512 blocks: the codes are not shared out."""
    assert_reference(*KINDS["gauss"](65_700, 400, dim))


@pytest.mark.slow
@pytest.mark.parametrize("arithmetic", FORMS, ids=FORMS.values())
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(700, 1500, 4), (500, 1100, 32), (150, 1030, 128), (70, 700, 400)], ids=str)
def test_nearest_code_is_the_references_at_length(shim, kind, arithmetic, shape):
    shim.configure(seed=7, arithmetic=arithmetic)
    assert_reference(*KINDS[kind](*shape))


@pytest.mark.parametrize("dim", [4, 16, 48])
@pytest.mark.parametrize("kind", ORDINARY)
def test_screening_decides_ordinary_latents(shim, kind, dim):
    """Else the exact scan would give the right codes, slowly, and no test would see it."""
    latents, codebook = KINDS[kind](200, 700, dim)
    nearest_code(latents, codebook)
    assert shim.undecided() <= 6


@pytest.mark.parametrize("kind", ["zeros", "collapsed", "overflowing"])
def test_what_float16_cannot_decide_is_left_to_the_exact_scan(shim, kind):
    latents, codebook = KINDS[kind](200, 700, 6)
    nearest_code(latents, codebook)
    assert shim.undecided() >= 180


def test_ties_are_not_decided_by_products_as_wrong_as_the_bound_allows(shim):
    """Latents and codes that float16 holds, around a mean of zero: the bound is that of products and chain alone."""
    signs = gauss(16, 16).sign()
    codebook = torch.cat([signs, -signs]).repeat(9, 1)
    for seed in range(4):
        shim.configure(seed=seed, arithmetic=WRONG)
        assert_reference(signs.repeat(5, 1), codebook, torch.zeros(len(codebook)))


def rivals(vectors, places, vocab_size):
    """A codebook of zeros but for vectors at some places and their negatives at the end, so that the mean is zero."""
    codebook = torch.zeros(vocab_size, vectors.shape[1])
    codebook[places], codebook[-len(places) :] = vectors, -vectors
    return codebook


def test_what_rounding_does_to_latents_is_in_the_bound(shim):
    """Codes that float16 holds, and latents that are nearly as near to one as to the other."""
    vectors = torch.randint(-8, 9, (2, 12), generator=generator(0)).float()
    apart = (vectors[0] - vectors[1]).double()
    latents = vectors.mean(0) + gauss(400, 12).double()
    latents -= ((latents @ apart) / apart.square().sum())[:, None] * apart
    latents += 1e-6 * gauss(400, 12, seed=1)
    assert_reference(latents.float(), rivals(vectors, [70, 5], 128), torch.zeros(128))
    assert shim.undecided() == 0


def test_what_rounding_does_to_codes_is_in_the_bound(shim):
    """Latents that float16 holds, and two codes that are nearly as near."""
    for seed in range(40):
        latent = torch.randint(-8, 9, (12,), generator=generator(seed)).double()
        vectors = gauss(2, 12, seed=seed).double() + latent / 8
        vectors[1] += ((vectors[0] - vectors[1]) @ latent / latent.square().sum() + 1e-8 * (-1) ** seed) * latent
        assert_reference(latent.float()[None], rivals(vectors.float(), [70, 5], 128), torch.zeros(128))
        assert shim.undecided() == 0


@pytest.mark.parametrize("lane", range(4))
def test_a_third_group_is_seen_wherever_it_is(shim, lane):
    """Three equal codes that one lane of a quad meets in its column, one after the other; the first must win."""
    vector = gauss(1, 8).sign()
    codebook = rivals(vector.repeat(3, 1), [128 * span + 32 * lane for span in range(3)], 8500)
    for seed in range(3):
        shim.configure(seed=seed, arithmetic=WRONG)
        assert_reference(vector.repeat(20, 1), codebook, torch.zeros(8500))
        assert shim.undecided() == 20


@pytest.mark.parametrize("seed", range(3))
def test_no_true_winner_is_screened_out(shim, seed):
    """Many latents a float16 rounding away from a tie, with the winner in any group."""
    shim.configure(seed=seed, arithmetic=WRONG)
    latents, codebook = KINDS["near midpoints"](600, 250, 6 + seed)
    assert_reference(latents, codebook)
    assert shim.undecided() < 60


def test_codes_beyond_float32_lose_and_all_of_them_give_code_zero(shim):
    codebook = torch.tensor([[1e30, 0.0], [1.0, 1.0], [-1e30, 1.0]])
    assert_reference(torch.tensor([[1e8, 1.0], [1.0, 1.0]]), codebook)
    assert_reference(torch.tensor([[1.0, 1.0]]), codebook[[0, 2]])
    assert_reference(torch.tensor([[1e38, 1e38]]), torch.tensor([[1e3, 0.0], [1e3, 1e3]]), torch.zeros(2))
    assert_reference(gauss(40, 3), torch.cat([torch.full((50, 3), 1e25), gauss(150, 3, seed=1)]))


def test_the_deciding_score_rounds_once(shim):
    latents = torch.tensor([[1.0, 8163685.0]]).repeat(3, 1)
    codebook = torch.tensor([[1.0, 0.0], [1.0, 538733 * 2.0**-66]])
    assert nearest_code(latents, codebook, torch.zeros(2)).tolist() == [1, 1, 1]


def test_a_score_of_minus_zero_ties_with_zero_wherever_it_is_found(shim):
    """Scores of zeros in pieces of 1024 codes that different blocks scan: -h + z e is 0 for h = 0 and -0 for e < 0."""
    latents, codebook = torch.full((5, 1), 1e-30), torch.full((2100, 1), -1e-30)
    codebook[1500:] = 1e-30
    assert_reference(latents, codebook, torch.zeros(2100))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_latents_that_are_not_finite_spoil_no_others(shim, bad):
    latents, codebook = KINDS["gauss"](140, 150, 9)
    expected = reference.nearest_code(latents, codebook, half_squared_norms(codebook))
    latents[70, 3] = latents[139] = bad
    codes = nearest_code(latents, codebook)
    good = latents.isfinite().all(1)
    assert torch.equal(codes[good], expected[good])
    assert codes.min() >= 0
    assert codes.max() < 150


STRIDED = {
    "BCHW": lambda x: x.permute(0, 2, 3, 1),
    "cropped BCHW": lambda x: x[:, :, 1:4, 2:5].permute(0, 2, 3, 1),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1),
    "every second row": lambda x: x.permute(0, 2, 3, 1)[:, ::2, ::3],
    "every second dimension": lambda x: x.repeat_interleave(2, 1).permute(0, 2, 3, 1)[..., ::2],
    "expanded": lambda x: x.permute(0, 2, 3, 1)[:, :1].expand(-1, 4, -1, -1),
    "one row": lambda x: x[0, :, 0, 0],
    "odd address": lambda x: x.flatten()[1:15].view(2, 7),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("view", STRIDED)
def test_strided_views_are_read_where_they_lie(shim, view, dtype):
    latents, codebook = STRIDED[view](gauss(2, 7, 5, 6).to(dtype)), gauss(140, 7, seed=1)
    assert cuda._rows(latents).data == latents.data_ptr()
    assert_reference(latents, codebook)


def test_views_of_more_axes_than_a_launch_takes_are_copied(shim):
    latents = gauss(2**10, 3).reshape(*(2,) * 10, 3).permute(*range(9, -1, -1), 10)
    assert_reference(latents, gauss(40, 3, seed=1))


# ---- code_statistics


@pytest.mark.parametrize("shape", [(0, 5, 3), (1, 4, 3), (33, 1, 19), (64, 200, 1), (1500, 7, 5), (700, 70_000, 2)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_code_statistics_are_the_references_in_every_shape_and_dtype(shim, dtype, shape):
    rows, vocab_size, dim = shape
    latents = (gauss(rows, dim) * 10 ** gauss(rows, dim, seed=1)).clamp(-6e4, 6e4).to(dtype)
    codes = torch.randint(vocab_size, (rows,), generator=generator(2))
    for seed in (1, 2):
        shim.configure(seed)
        counts, sums = cuda.code_statistics(latents, codes, vocab_size)
        expected_counts, expected_sums = reference.code_statistics(latents, codes, vocab_size)
        assert torch.equal(counts, expected_counts)
        assert torch.equal(sums, expected_sums)


def test_the_order_of_the_rows_is_the_order_of_the_sum(shim):
    sums = []
    for values in ([2.0**60, 1.0, -(2.0**60)], [2.0**60, -(2.0**60), 1.0]):
        rows = torch.zeros(1600)
        rows[[3, 700, 1590]] = torch.tensor(values)
        codes = torch.arange(1600).remainder(300)
        codes[[3, 700, 1590]] = 0
        sums.append(cuda.code_statistics(rows[:, None], codes, 300)[1][0].item())
    assert sums == [0.0, 1.0]


@pytest.mark.parametrize("view", STRIDED)
def test_statistics_of_strided_views_are_those_of_their_copies(shim, view):
    latents = STRIDED[view](gauss(2, 7, 5, 6))
    codes = torch.randint(9, latents.shape[:-1], generator=generator(1))
    codes = codes.t().contiguous().t() if codes.dim() == 2 else codes
    counts, sums = cuda.code_statistics(latents, codes, 9)
    expected_counts, expected_sums = reference.code_statistics(latents.contiguous(), codes, 9)
    assert torch.equal(counts, expected_counts)
    assert torch.equal(sums, expected_sums)


def test_codes_that_do_not_exist_are_left_out_of_the_statistics(shim):
    codes = torch.tensor([0, 5, -1, 2, 1 << 40, 2, 3])
    counts, sums = cuda.code_statistics(torch.ones(7, 2), codes, 3)
    assert counts.tolist() == [1, 0, 2]
    assert sums[:, 0].tolist() == [1.0, 0.0, 2.0]


@pytest.mark.parametrize("codebook_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", ["BCHW", "expanded", "every second dimension"])
def test_the_gradient_of_the_codebook_is_the_references(shim, view, dtype, codebook_dtype):
    latents, codebook = STRIDED[view](gauss(2, 7, 5, 6).to(dtype)), gauss(7, 9, seed=1).to(codebook_dtype).t()
    codes = torch.randint(8, latents.shape[:-1], generator=generator(2))
    weight = torch.tensor(0.3, dtype=reference.common_dtype(codebook, latents))
    came = cuda.codebook_backward(latents, codebook, codes, weight)
    assert torch.equal(came, reference.codebook_backward(latents, codebook, codes, weight))


# ---- straight_through


@pytest.mark.parametrize("codebook_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 5, 3), (1, 1, 1), (1030, 9, 1), (70, 9, 7), (65, 40, 33), (40, 3, 100)], ids=str)
def test_straight_through_is_the_references(shim, shape, dtype, codebook_dtype):
    rows, vocab_size, dim = shape
    latents, codebook = gauss(rows, dim).to(dtype), gauss(dim, vocab_size, seed=1).to(codebook_dtype).t()
    codes = torch.randint(vocab_size, (rows,), generator=generator(2))
    vectors, loss = cuda.straight_through(latents, codebook, codes)
    expected, expected_loss = reference.straight_through(latents, codebook, codes)
    assert torch.equal(vectors, expected)
    assert vectors.dtype == codebook_dtype
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5 if loss.dtype == torch.float32 else 1e-13, atol=0)
    shim.configure(seed=5)
    assert torch.equal(cuda.straight_through(latents, codebook, codes)[1], loss)


@pytest.mark.parametrize("codebook_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", ["BCHW", "expanded", "every second dimension"])
def test_the_gradient_of_the_latents_rounds_as_torch_does(shim, view, dtype, codebook_dtype):
    latents, codebook = STRIDED[view](gauss(2, 7, 5, 6).to(dtype)), gauss(9, 7, seed=1).to(codebook_dtype)
    codes = torch.randint(9, latents.shape[:-1], generator=generator(2))
    weight = torch.tensor(0.3, dtype=reference.difference(codebook, latents[..., :1, :]).dtype)
    for gradient in (
        gauss(*latents.shape, seed=3).to(codebook_dtype),
        gauss(1).to(codebook_dtype).expand(latents.shape),
    ):
        came = cuda.straight_through_backward(gradient, latents, codebook, codes, weight)
        expected = reference.straight_through_backward(gradient, latents, codebook, codes, weight)
        assert torch.equal(came, expected)
        assert came.is_contiguous()


def test_a_code_that_does_not_exist_gives_no_number_and_reads_nothing(shim):
    latents, codebook, codes = gauss(3, 2), gauss(4, 2), torch.tensor([0, 4, -1])
    vectors, loss = cuda.straight_through(latents, codebook, codes)
    assert vectors.isnan().all(1).tolist() == [False, True, True]
    assert loss.isnan()


# ---- the library and its shim


def test_a_workspace_that_is_too_small_is_refused(shim, monkeypatch):
    packed = cuda.pack(gauss(1, 2), torch.zeros(1))
    monkeypatch.setattr(cuda, "_workspace", lambda size, device: torch.empty(size - 1, dtype=torch.uint8))
    with pytest.raises(ResourceError, match="a workspace smaller than it asked for"):
        cuda.nearest_code(gauss(3, 2), packed)
    with pytest.raises(ResourceError, match="a workspace smaller than it asked for"):
        cuda.pack(gauss(1, 2), torch.zeros(1))


def test_extra_memory_is_linear_in_latents_and_codebook(shim):
    size = cuda.library().vqtok_cuda_nearest_code_workspace
    assert size(1 << 20, 1 << 14, 32) < 30 * (1 << 20)
    assert size(1 << 26, 1 << 14, 32) == size(1 << 20, 1 << 14, 32)
    assert cuda.library().vqtok_cuda_packed_bytes(1 << 14, 32) < 8 * (1 << 14) * 32


def test_a_library_of_another_version_is_not_used(tmp_path, monkeypatch):
    source = tmp_path / "other.cpp"
    source.write_text('extern "C" int vqtok_cuda_abi() { return 99; }')
    library = tmp_path / "libvqtok_cuda.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-o", library, source], check=True)
    monkeypatch.setattr(cuda, "LIBRARY", library)
    assert "with ABI 1, found 99; reinstall vqtok" in cuda.reason_against()


def test_without_a_library_or_a_gpu_there_is_a_reason(tmp_path, monkeypatch, shim_path):
    monkeypatch.setattr(cuda, "LIBRARY", tmp_path / "libvqtok_cuda.so")
    assert cuda.reason_against() == (
        "needs libvqtok_cuda.so, which was not built; install nvcc and reinstall vqtok with VQTOK_CUDA=1"
    )
    (tmp_path / "libvqtok_cuda.so").write_bytes(b"not a library")
    with pytest.raises(BackendUnavailable, match="cannot be loaded"):
        cuda.library()
    monkeypatch.setattr(cuda, "LIBRARY", shim_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.reason_against() == "needs a GPU that torch's CUDA can use"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert cuda.reason_against() == "needs a GPU of compute capability 8.0 or more, this one has 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert cuda.reason_against() == ""


def drive(folder, *options):
    """Build cuda_driver.cpp and the kernels, and run it."""
    driver = Path(__file__).with_name("cuda_driver.cpp")
    building = command(folder / "driver", "-g", *options, sources=[*SOURCES, driver])
    built = subprocess.run(building, capture_output=True, text=True, check=False)
    if "cannot find" in built.stderr:
        pytest.skip(f"this compiler has no library for {options}")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([folder / "driver"], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "all as expected"


def test_no_kernel_oversteps_its_memory_or_leaves_the_language(tmp_path):
    """Every launcher under the address and undefined-behaviour sanitizers, in buffers of exactly the size asked for."""
    drive(tmp_path, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.mark.slow
def test_the_systems_own_fibers_do_as_well(tmp_path):
    drive(tmp_path, "-O2", "-DVQTOK_SHIM_UCONTEXT")


# ---- does the shim see what goes wrong?

FAULTY = """
#include "launch.cuh"
#include "ptx.h"
using namespace vqtok;
__global__ void faulty(int fault, float* out) {
    auto* shared = reinterpret_cast<float*>(shared_memory());
    const unsigned i = threadIdx.x;
    if (fault == 1 && i % 2 == 0) __syncthreads();
    if (fault == 2 && i < 16) __syncwarp();
    if (fault == 2 && i >= 16) __shfl_sync(kAllLanes, 1, 0);
    if (fault == 3 && i == 0) copy_async(shared + 1, out);
    if (fault == 4 && i == 0) return;
    if (fault == 4) __syncwarp();
    if (fault == 1 && i % 2 == 1) __syncthreads();
    if (fault != 5) shared[i] = 1.0f;
    if (fault != 6) __syncthreads();
    out[i] = shared[63 - i];
}
extern "C" __attribute__((visibility("default"))) int run_faulty(int fault, float* out) {
    VQTOK_LAUNCH(faulty, dim3(1), dim3(64), 64 * sizeof(float), nullptr, fault, out);
    return cudaGetLastError();
}
"""


def test_the_shim_sees_faults_of_synchronisation(tmp_path, capfd):
    (tmp_path / "faulty.cu").write_text(FAULTY)
    sources = [tmp_path / "faulty.cu", CSRC / "shim/cuda_on_cpu.cpp"]
    subprocess.run(command(tmp_path / "faulty.so", "-O1", "-fPIC", "-shared", sources=sources), check=True)
    faulty = ctypes.CDLL(str(tmp_path / "faulty.so")).run_faulty
    faulty.argtypes = (ctypes.c_int, ctypes.c_void_p)
    out = torch.zeros(64)
    messages = ("", "different lines", "different lines", "not aligned to 16", "wait for threads that never come")
    for fault, message in enumerate(messages):
        assert (faulty(fault, out.data_ptr()) != 0) == bool(message), fault
        assert message in capfd.readouterr().err
    assert faulty(0, out.data_ptr()) == 0
    assert out.eq(1).all()
    for fault in (5, 6):  # nothing written; read before it was written
        assert faulty(fault, out.data_ptr()) == 0
        assert out.isnan().any(), fault
