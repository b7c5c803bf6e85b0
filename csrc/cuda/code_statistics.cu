// code_statistics: sort rows by code, then every sum has one thread that walks its rows in order. No float atomics, no
// sum that depends on how the work was cut: the float64 additions are those of a loop over all rows.
#include "rows.cuh"
#include "sort.cuh"

namespace vqtok {
namespace {

constexpr int kThreads = 256;

struct Summing {
    VqtokCudaRows latents;
    VqtokCudaRows codebook;  // without data: sum the latents, else what the code has more than they
    Pairs sorted;
    int64_t K;
    uint32_t* starts;  // [K + 1]
    int64_t* counts;   // [K]
    float* sums;       // [K, D]
};

// starts[k] = the pairs with a smaller code.
__global__ void find_starts(Summing task) {
    const int64_t k = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (k > task.K) return;
    int64_t least = 0, most = task.latents.N;
    while (least < most) {
        const int64_t middle = (least + most) / 2;
        if (task.sorted.codes[middle] < k)
            least = middle + 1;
        else
            most = middle;
    }
    task.starts[k] = static_cast<uint32_t>(least);
}

// `vector` is the code's own element, in float64.
VQTOK_DEVICE double element_of(const Summing& task, uint32_t i, int64_t d, double vector) {
    const int64_t at = row_offset(task.latents, task.sorted.rows[i]) + d * task.latents.stride_d;
    const double latent = load_double(task.latents.data, task.latents.dtype, at);
    if (task.codebook.data == nullptr) return latent;
    const bool in_double = task.latents.dtype == kVqtokFloat64 || task.codebook.dtype == kVqtokFloat64;
    return in_double ? vector - latent : static_cast<double>(static_cast<float>(vector) - static_cast<float>(latent));
}

__global__ void sum_rows(Summing task) {
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x, D = task.latents.D;
    if (i >= task.K * D) return;
    const int64_t k = i / D, d = i % D;
    const uint32_t end = task.starts[k + 1];
    const double vector = task.codebook.data == nullptr
                              ? 0.0
                              : load_double(task.codebook.data, task.codebook.dtype,
                                            row_offset(task.codebook, k) + d * task.codebook.stride_d);
    double sum = 0;
    uint32_t at = task.starts[k];
    for (; at + 4 <= end; at += 4) {  // four loads under way, four additions in order
        const double a = element_of(task, at, d, vector), b = element_of(task, at + 1, d, vector);
        const double c = element_of(task, at + 2, d, vector), e = element_of(task, at + 3, d, vector);
        sum = ((sum + a) + b) + c + e;
    }
    for (; at < end; ++at) sum += element_of(task, at, d, vector);
    task.sums[i] = static_cast<float>(sum);
    if (d == 0) task.counts[k] = end - task.starts[k];
}

struct StatisticsWorkspace {
    StatisticsWorkspace(int64_t N, int64_t K, void* base) {
        Pieces pieces(base);
        sorting.N = N;
        sorting.K = K;
        sorting.chunks = ceil_div<int64_t>(N, kChunk);
        sorting.from = {pieces.take<uint32_t>(N), pieces.take<uint32_t>(N)};
        sorting.to = {pieces.take<uint32_t>(N), pieces.take<uint32_t>(N)};
        sorting.before = pieces.take<uint32_t>(kDigits * sorting.chunks);
        sorting.totals = pieces.take<uint32_t>(kDigits);
        starts = pieces.take<uint32_t>(K + 1);
        bytes = pieces.used();
    }
    Sorting sorting{};
    uint32_t* starts = nullptr;
    int64_t bytes = 0;
};

}  // namespace
}  // namespace vqtok

int64_t vqtok_cuda_code_statistics_workspace(int64_t N, int64_t K, int64_t) {
    return vqtok::StatisticsWorkspace(N, K, nullptr).bytes;
}

int32_t vqtok_cuda_code_statistics(const VqtokCudaRows* latents, const VqtokCudaRows* codebook, const int64_t* codes,
                                   int64_t K, int64_t* counts, float* sums, void* workspace, int64_t workspace_bytes,
                                   void* stream) {
    using namespace vqtok;
    if (latents->N > kMost || K >= kMost) return kVqtokTooMany;
    StatisticsWorkspace work(latents->N, K, workspace);
    if (workspace_bytes < work.bytes) return kVqtokNoWorkspace;
    work.sorting.codes = codes;
    const Pairs sorted = latents->N > 0 ? sort_by_code(work.sorting, stream) : work.sorting.from;
    const Summing task{*latents, codebook == nullptr ? VqtokCudaRows{} : *codebook, sorted, K, work.starts, counts, sums};
    VQTOK_LAUNCH(find_starts, dim3(static_cast<unsigned>(K / kThreads + 1)), dim3(kThreads), 0, stream, task);
    VQTOK_LAUNCH(sum_rows, dim3(static_cast<unsigned>(ceil_div<int64_t>(K * latents->D, kThreads))), dim3(kThreads), 0,
                 stream, task);
    return static_cast<int32_t>(cudaGetLastError());
}
