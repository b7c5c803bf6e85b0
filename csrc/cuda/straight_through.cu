// straight_through: gather, squared error and the gradient for the latents, each in one pass over the latents.
//
// A block takes 1024 elements at a time: some rows, up to 32 dimensions. Latents pass through shared memory, so that
// neighbouring threads read what lies together and write what lies together, whichever the layout of the latents.
#include <cmath>

#include "rows.cuh"

namespace vqtok {
namespace {

constexpr int kThreads = 256;
constexpr int kElements = 1024;

struct Passage {
    VqtokCudaRows latents;
    VqtokCudaRows codebook;    // N is K
    VqtokCudaRows of_vectors;  // backward alone
    const int64_t* codes;
    int width;                 // dimensions at a time, a power of two
    void* out;                 // forward: vectors; backward: gradient of the latents
    double* partial;           // [blocks]
    void* loss;
    const void* weight;        // backward alone, a scalar
};

template <class Real>
VQTOK_DEVICE Real load_real(const VqtokCudaRows& rows, int64_t i) {
    return static_cast<Real>(load_double(rows.data, rows.dtype, i));
}
template <>
VQTOK_DEVICE float load_real<float>(const VqtokCudaRows& rows, int64_t i) {
    return load_float(rows.data, rows.dtype, i);
}

// tile[r][d] of rows first_row..., dimensions first_d...; with a row more than `width` long against bank conflicts.
template <class Real>
VQTOK_DEVICE void stage(const Passage& task, Real* tile, int64_t first_row, int64_t first_d) {
    const bool dense = task.latents.stride_d == 1;
    const int rows = kElements / task.width;
    for (int i = threadIdx.x; i < kElements; i += kThreads) {
        const int r = dense ? i / task.width : i % rows, d = dense ? i % task.width : i / rows;
        const int64_t n = first_row + r, at = first_d + d;
        if (n < task.latents.N && at < task.latents.D)
            tile[r * (task.width + 1) + d] =
                load_real<Real>(task.latents, row_offset(task.latents, n) + at * task.latents.stride_d);
    }
}

// Where element d of a latent's code vector lies; -1 for a code that does not exist.
VQTOK_DEVICE int64_t vector_at(const Passage& task, int64_t n, int64_t d) {
    const int64_t k = task.codes[n];
    return k >= 0 && k < task.codebook.N ? row_offset(task.codebook, k) + d * task.codebook.stride_d : -1;
}

VQTOK_DEVICE void copy_element(const VqtokCudaRows& from, int64_t at, void* to, int64_t i) {
    if (at < 0)
        store_real(to, from.dtype, i, static_cast<float>(NAN));
    else if (from.dtype == kVqtokFloat64)
        static_cast<double*>(to)[i] = static_cast<const double*>(from.data)[at];
    else if (from.dtype == kVqtokFloat32)
        static_cast<uint32_t*>(to)[i] = static_cast<const uint32_t*>(from.data)[at];
    else
        static_cast<uint16_t*>(to)[i] = static_cast<const uint16_t*>(from.data)[at];
}

// Calls body(n, d, latent) for every element of this block's rows.
template <class Real, class Body>
VQTOK_DEVICE void for_each_element(const Passage& task, const Body& body) {
    auto* tile = reinterpret_cast<Real*>(shared_memory());
    const int64_t first_row = int64_t{blockIdx.x} * (kElements / task.width);
    for (int64_t first_d = 0; first_d < task.latents.D; first_d += task.width) {
        stage(task, tile, first_row, first_d);
        __syncthreads();
        for (int i = threadIdx.x; i < kElements; i += kThreads) {
            const int r = i / task.width, d = i % task.width;
            if (first_row + r < task.latents.N && first_d + d < task.latents.D)
                body(first_row + r, first_d + d, tile[r * (task.width + 1) + d]);
        }
        __syncthreads();
    }
}

// In an order that depends on nothing; thread 0 has the sum. `scratch` holds one double a warp.
VQTOK_DEVICE double block_sum(double x, double* scratch) {
    for (int bits = 16; bits > 0; bits /= 2) x += __shfl_xor_sync(kAllLanes, x, bits);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    double sum = scratch[0];
    for (int w = 1; w < kThreads / 32; ++w) sum += scratch[w];
    return sum;
}

template <class Real>
__global__ void forward(Passage task) {
    double sum = 0;
    for_each_element<Real>(task, [&](int64_t n, int64_t d, Real z) {
        const int64_t at = vector_at(task, n, d);
        copy_element(task.codebook, at, task.out, n * task.latents.D + d);
        const double error = at < 0 ? static_cast<Real>(NAN) : load_real<Real>(task.codebook, at) - z;
        sum += error * error;
    });
    sum = block_sum(sum, reinterpret_cast<double*>(shared_memory()));
    if (threadIdx.x == 0) task.partial[blockIdx.x] = sum;
}

template <class Real>
__global__ void mean_of(Passage task, int64_t blocks) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < blocks; i += kThreads) sum += task.partial[i];
    sum = block_sum(sum, reinterpret_cast<double*>(shared_memory()));
    const int64_t elements = task.latents.N * task.latents.D;
    if (threadIdx.x == 0) *static_cast<Real*>(task.loss) = static_cast<Real>(elements > 0 ? sum / elements : 0.0);
}

template <class Real>
__global__ void backward(Passage task) {
    const Real weight = *static_cast<const Real*>(task.weight);
    for_each_element<Real>(task, [&](int64_t n, int64_t d, Real z) {
        const int64_t at = vector_at(task, n, d);
        const Real error = at < 0 ? static_cast<Real>(NAN) : load_real<Real>(task.codebook, at) - z;
        const Real of_vector =
            load_real<Real>(task.of_vectors, row_offset(task.of_vectors, n) + d * task.of_vectors.stride_d);
        const Real pull = weight * error;
        store_real(task.out, task.latents.dtype, n * task.latents.D + d, of_vector - pull);
    });
}

int width_for(int64_t D) {
    int width = 1;
    while (width < 32 && width < D) width *= 2;
    return width;
}

int64_t blocks_for(int64_t N, int64_t D) { return ceil_div<int64_t>(N, kElements / width_for(D)); }

template <class Real>
int32_t pass_forward(const Passage& task, void* stream) {
    const int64_t blocks = blocks_for(task.latents.N, task.latents.D);
    // At most one padded element a row of the tile: twice as many, where the width is 1.
    const size_t bytes = 2 * kElements * sizeof(Real);
    if (blocks > 0)
        VQTOK_LAUNCH(forward<Real>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), bytes, stream, task);
    VQTOK_LAUNCH(mean_of<Real>, dim3(1), dim3(kThreads), kThreads / 32 * sizeof(double), stream, task, blocks);
    return static_cast<int32_t>(cudaGetLastError());
}

template <class Real>
int32_t pass_backward(const Passage& task, void* stream) {
    const int64_t blocks = blocks_for(task.latents.N, task.latents.D);
    if (blocks > 0)
        VQTOK_LAUNCH(backward<Real>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 2 * kElements * sizeof(Real),
                     stream, task);
    return static_cast<int32_t>(cudaGetLastError());
}

bool in_double(const VqtokCudaRows& latents, const VqtokCudaRows& codebook) {
    return latents.dtype == kVqtokFloat64 || codebook.dtype == kVqtokFloat64;
}

}  // namespace
}  // namespace vqtok

int64_t vqtok_cuda_straight_through_workspace(int64_t N, int64_t D) {
    return vqtok::ceil_div<int64_t>(vqtok::blocks_for(N, D) * 8 + 8, 256) * 256;
}

int32_t vqtok_cuda_straight_through(const VqtokCudaRows* latents, const VqtokCudaRows* codebook, const int64_t* codes,
                                    void* vectors, void* loss, void* workspace, int64_t workspace_bytes, void* stream) {
    if (latents->N > vqtok::kMost) return kVqtokTooMany;
    if (workspace_bytes < vqtok_cuda_straight_through_workspace(latents->N, latents->D)) return kVqtokNoWorkspace;
    vqtok::Passage task{};
    task.latents = *latents;
    task.codebook = *codebook;
    task.codes = codes;
    task.width = vqtok::width_for(latents->D);
    task.out = vectors;
    task.partial = static_cast<double*>(workspace);
    task.loss = loss;
    return vqtok::in_double(*latents, *codebook) ? vqtok::pass_forward<double>(task, stream)
                                                 : vqtok::pass_forward<float>(task, stream);
}

int32_t vqtok_cuda_straight_through_backward(const VqtokCudaRows* of_vectors, const VqtokCudaRows* latents,
                                             const VqtokCudaRows* codebook, const int64_t* codes, const void* weight,
                                             void* gradient, void* stream) {
    if (latents->N > vqtok::kMost) return kVqtokTooMany;
    vqtok::Passage task{};
    task.latents = *latents;
    task.codebook = *codebook;
    task.of_vectors = *of_vectors;
    task.codes = codes;
    task.width = vqtok::width_for(latents->D);
    task.out = gradient;
    task.weight = weight;
    return vqtok::in_double(*latents, *codebook) ? vqtok::pass_backward<double>(task, stream)
                                                 : vqtok::pass_backward<float>(task, stream);
}
