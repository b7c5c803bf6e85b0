"""csrc/cuda on a GPU: the same answers as on the CPU shim, which is to say the reference's."""

import pytest
import torch

from tests.parity.kinds import KINDS, ORDINARY, gauss, generator
from vqtok.ops import cuda, half_squared_norms, reference

pytestmark = pytest.mark.gpu
SHAPES = (
    *((0, 5, 3), (1, 1, 1), (129, 33, 4), (1000, 1024, 16), (700, 300, 30), (300, 1030, 64), (200, 500, 256)),
    *((70, 700, 500), (40, 600, 1024), (70, 130, 1030), (20_000, 8192, 8)),
)


@pytest.fixture(autouse=True)
def _library():
    if reason := cuda.reason_against():
        pytest.skip(f"cuda {reason}")


def assert_reference(latents, codebook):
    half_norms = half_squared_norms(codebook)
    codes = cuda.nearest_code(latents.cuda(), cuda.pack(codebook.cuda(), half_norms.cuda())).cpu()
    assert torch.equal(codes, reference.nearest_code(latents, codebook, half_norms))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(500, 1000, 12), (300, 700, 100)], ids=str)
def test_nearest_code_is_the_references_on_every_kind_of_data(kind, shape):
    assert_reference(*KINDS[kind](*shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_nearest_code_is_the_references_in_every_shape_and_dtype(dtype, shape):
    latents, codebook = KINDS["gauss"](*shape)
    assert_reference(latents.to(dtype), codebook)


@pytest.mark.parametrize("kind", ORDINARY)
def test_screening_decides_ordinary_latents(kind, monkeypatch):
    """On the device's own tensor cores."""
    latents, codebook = (x.cuda() for x in KINDS[kind](100_000, 1000, 32))
    spaces = []
    allocate = cuda._workspace
    monkeypatch.setattr(cuda, "_workspace", lambda *sizes: spaces.append(allocate(*sizes)) or spaces[-1])
    cuda.nearest_code(latents, cuda.pack(codebook, half_squared_norms(codebook)))
    assert int(spaces[-1][:4].view(torch.int32)) <= 3000


def test_strided_latents_and_more_rows_than_one_launch_takes_are_read():
    latents, codebook = gauss(2, 6, 1000, 600).permute(0, 2, 3, 1), gauss(40, 6, seed=1)
    assert_reference(latents, codebook)


def test_statistics_are_the_references():
    latents, codes = gauss(100_000, 9), torch.randint(70_000, (100_000,), generator=generator(1))
    counts, sums = cuda.code_statistics(latents.cuda(), codes.cuda(), 70_000)
    expected_counts, expected_sums = reference.code_statistics(latents, codes, 70_000)
    assert torch.equal(counts.cpu(), expected_counts)
    assert torch.equal(sums.cpu(), expected_sums)


def test_straight_through_and_its_gradient_are_the_references():
    latents, codebook = gauss(3, 9, 20, 10).permute(0, 2, 3, 1), gauss(50, 9, seed=1)
    codes = torch.randint(50, latents.shape[:-1], generator=generator(1))
    gradient, weight = gauss(*latents.shape, seed=2), torch.tensor(0.3)
    on_gpu = [x.cuda() for x in (latents, codebook, codes)]
    vectors, loss = cuda.straight_through(*on_gpu)
    expected, expected_loss = reference.straight_through(latents, codebook, codes)
    assert torch.equal(vectors.cpu(), expected)
    torch.testing.assert_close(loss.cpu(), expected_loss, rtol=1e-5, atol=0)
    came = cuda.straight_through_backward(gradient.cuda(), *on_gpu, weight.cuda())
    assert torch.equal(came.cpu(), reference.straight_through_backward(gradient, latents, codebook, codes, weight))
    came = cuda.codebook_backward(*on_gpu, weight.cuda())
    assert torch.equal(came.cpu(), reference.codebook_backward(latents, codebook, codes, weight))


def test_lookup_is_captured_in_a_graph_and_replayed_on_new_latents():
    latents, codebook = (x.cuda() for x in KINDS["near midpoints"](4096, 1024, 16))
    half_norms = half_squared_norms(codebook)
    cuda.nearest_code(latents, cuda.pack(codebook, half_norms))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        codes = cuda.nearest_code(latents, cuda.pack(codebook, half_norms))
    latents.copy_(gauss(4096, 16, seed=5))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(codes.cpu(), reference.nearest_code(latents.cpu(), codebook.cpu(), half_norms.cpu()))
