"""The rivals of nearest_code, each in the fastest form its documentation gives; they get float32 and give codes [N]."""

# Other libraries are extras, or not there at all.
# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor

from .inputs import Lookup
from .protocol import Call, Contender

Form = Callable[[Tensor, Tensor], Tensor]


def cdist_argmin(latents: Tensor, codebook: Tensor) -> Tensor:
    """Return the codes as most people write it."""
    return torch.cdist(latents, codebook).argmin(dim=1)


def three_terms(latents: Tensor, codebook: Tensor) -> Tensor:
    """Return the codes by |z - e|^2 = |z|^2 + |e|^2 - 2 z.e, halved and without |z|^2, which no code changes."""
    return (codebook.square().sum(dim=1) / 2 - latents @ codebook.t()).argmin(dim=1)


def eager(form: Form) -> Callable[[Lookup], Call]:
    """Return a form as it stands."""
    return lambda inputs: lambda: form(inputs.latents, inputs.codebook)


def compiled(form: Form) -> Callable[[Lookup], Call]:
    """Return a form compiled for exactly the shape at hand."""

    def prepare(inputs: Lookup) -> Call:
        # A code object of its own: with a shared one torch gives up compiling after some shapes, without a word.
        fresh = FunctionType(form.__code__.replace(), form.__globals__)
        run = torch.compile(fresh, dynamic=False, fullgraph=True)
        run(inputs.latents, inputs.codebook)
        return lambda: run(inputs.latents, inputs.codebook)

    return prepare


def faiss_flat(inputs: Lookup) -> Call:
    """Prepare FAISS; without the threshold it takes a slow path for small batches of small vectors."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    faiss.cvar.distance_compute_blas_threshold = 1
    index = faiss.IndexFlatL2(inputs.codebook.shape[1])
    index.add(inputs.codebook.numpy())  # pyright: ignore[reportCallIssue]
    latents = inputs.latents.numpy()
    return lambda: torch.from_numpy(index.search(latents, 1)[1][:, 0])  # pyright: ignore[reportCallIssue]


def keops_argmin(inputs: Lookup) -> Call:
    """Prepare KeOps, which compiles C++ or CUDA for a number of dimensions when it first meets it."""
    import pykeops
    from pykeops.torch import LazyTensor

    pykeops.set_verbose(False)  # it talks on stdout

    def search(latents: Tensor, codebook: Tensor) -> Tensor:
        distances = ((LazyTensor(latents[:, None, :]) - LazyTensor(codebook[None, :, :])) ** 2).sum(-1)
        return distances.argmin(dim=1).view(-1)

    search(inputs.latents[:2], inputs.codebook[:2])
    return lambda: search(inputs.latents, inputs.codebook)


def scikit_learn(inputs: Lookup) -> Call:
    """Prepare scikit-learn, told that the numbers are finite: ours looks for itself."""
    from sklearn import config_context
    from sklearn.metrics import pairwise_distances_argmin
    from threadpoolctl import threadpool_limits

    threadpool_limits(torch.get_num_threads())
    latents, codebook = inputs.latents.numpy(), inputs.codebook.numpy()

    def run() -> Tensor:
        with config_context(assume_finite=True):
            return torch.from_numpy(pairwise_distances_argmin(latents, codebook))

    return run


def flash_kmeans(inputs: Lookup) -> Call:
    """Prepare the assignment step of flash-kmeans."""
    from flash_kmeans import FlashKMeans

    vocab_size, dim = inputs.codebook.shape
    model = FlashKMeans(d=dim, k=vocab_size, dtype=torch.float32, device=inputs.codebook.device)
    model.centroids_b, model._batch_size = inputs.codebook[None].contiguous(), None  # as after its training
    return lambda: model.predict(inputs.latents)


def cuvs_brute_force(inputs: Lookup) -> Call:
    """Prepare cuVS with its outputs made beforehand; it has a stream of its own, so a call ends with its end."""
    from cuvs.common import Resources
    from cuvs.neighbors import brute_force

    resources = Resources()
    index = brute_force.build(inputs.codebook, metric="sqeuclidean", resources=resources)
    neighbors = inputs.latents.new_empty((len(inputs.latents), 1), dtype=torch.int64)
    distances = inputs.latents.new_empty((len(inputs.latents), 1))

    def run() -> Tensor:
        brute_force.search(index, inputs.latents, 1, neighbors=neighbors, distances=distances, resources=resources)
        resources.sync()
        return neighbors[:, 0]

    return run


def faiss_gpu(inputs: Lookup) -> Call:
    """Prepare FAISS on the GPU, reading and writing torch's memory."""
    import faiss
    import faiss.contrib.torch_utils

    index = faiss.GpuIndexFlatL2(faiss.StandardGpuResources(), inputs.codebook.shape[1])  # pyright: ignore
    index.add(inputs.codebook)
    return lambda: index.search(inputs.latents, 1)[1][:, 0]


_PREPARED = "index built outside the timing"
_TORCH = [
    Contender("torch cdist+argmin", eager(cdist_argmin)),
    Contender("torch three terms", eager(three_terms)),
    Contender("torch.compile cdist+argmin", compiled(cdist_argmin), note="compiled outside the timing"),
    Contender("torch.compile three terms", compiled(three_terms), note="compiled outside the timing"),
]
_KEOPS = Contender(
    "KeOps argmin", keops_argmin, modules=("pykeops",), install="pykeops", note="compiled outside the timing"
)
_CPU = [
    Contender("FAISS IndexFlatL2", faiss_flat, modules=("faiss",), install="faiss-cpu", note=_PREPARED),
    _KEOPS,
    Contender("scikit-learn", scikit_learn, modules=("sklearn",), install="scikit-learn"),
]
_CUDA = [
    Contender("flash-kmeans", flash_kmeans, modules=("flash_kmeans",), install="flash-kmeans"),
    Contender("cuVS brute force", cuvs_brute_force, modules=("cuvs",), install="cuvs-cu13", note=_PREPARED),
    Contender("FAISS GpuIndexFlatL2", faiss_gpu, modules=("faiss",), install="faiss-gpu-cu12", note=_PREPARED),
    _KEOPS,
]


def rivals(device: str) -> list[Contender]:
    """Return the rivals on a device, the baseline first."""
    return _TORCH + (_CUDA if device == "cuda" else _CPU)
