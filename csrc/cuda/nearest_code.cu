// nearest_code: pack the codebook; screen in float16, decide in float32, scan what is left. Kernels on one stream; what one
// of them found decides on the device what the next has to do.
#include "scan.cuh"
#include "screen.cuh"

namespace vqtok {
namespace {

constexpr int64_t kRowsAtOnce = 1 << 20;  // bounds the workspace; a chunk this large fills any GPU
constexpr int64_t kWantedBlocks = 512;    // with fewer latents than that many blocks hold, codes are shared out too
constexpr int kDecideWarps = 4;

struct Deciding {
    Screening screening;
    int64_t* codes;
    int* undecided;
    int* list;
};

// The codes of one candidate group, one a lane.
VQTOK_DEVICE void rescan(const Screening& task, int64_t row_at, int group, int lane, Best& best) {
    const int64_t k = int64_t{group} * kGroup + lane, D = task.book.D;
    const bool present = k < task.book.K;
    const float* vector = task.book.vectors + (present ? k : 0) * D;
    float score = present ? -task.book.half_norms[k] : -INFINITY;
    for (int64_t first = 0; first < D; first += 32) {
        const int64_t d = first + lane;
        const float mine =
            d < D ? load_float(task.latents.data, task.latents.dtype, row_at + d * task.latents.stride_d) : 0.0f;
        const int count = D - first < 32 ? static_cast<int>(D - first) : 32;
        for (int i = 0; i < count; ++i) score = fmaf(__shfl_sync(kAllLanes, mine, i), vector[first + i], score);
    }
    if (present) best.offer(score, static_cast<int>(k));
}

// One warp a latent, one lane a column of the screening: rescan every group that may hold the winner.
__global__ void decide(Deciding task) {
    const Screening& screening = task.screening;
    const int lane = threadIdx.x % 32;
    const int64_t n = int64_t{blockIdx.x} * kDecideWarps + threadIdx.x / 32;
    if (n >= screening.rows) return;
    float4 top = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    int2 groups = {-1, -1};
    if (lane < screening.columns) {
        top = screening.tops[int64_t{lane} * screening.rows + n];
        groups = screening.groups[int64_t{lane} * screening.rows + n];
    }
    const float lower = warp_max(top.w);
    if (__ballot_sync(kAllLanes, undecided(top.z, lower))) {
        if (lane == 0) {
            task.list[atomicAdd(task.undecided, 1)] = static_cast<int>(n);
            task.codes[n] = 0;  // below every key
        }
        return;
    }
    const int64_t row_at = row_offset(screening.latents, screening.first + n);
    Best best = no_best();
    for (int which = 0; which < 2; ++which) {
        const int mine = which == 0 ? groups.x : groups.y;
        unsigned candidates = __ballot_sync(kAllLanes, mine >= 0 && (which == 0 ? top.x : top.y) >= lower);
        for (; candidates != 0; candidates &= candidates - 1) {
            const int group = __shfl_sync(kAllLanes, mine, __ffs(static_cast<int>(candidates)) - 1);
            rescan(screening, row_at, group, lane, best);
        }
    }
    best = best_of_lanes(best, 32);
    if (lane == 0) task.codes[n] = best.code == kNoCode ? 0 : best.code;
}

// Without a screening every latent is undecided.
__global__ void list_all(int rows, int* undecided, int* list, int64_t* codes) {
    const int64_t n = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (n >= rows) return;
    list[n] = static_cast<int>(n);
    codes[n] = 0;
    if (n == 0) *undecided = rows;
}

// How the work is cut. A function of the sizes alone, so that the workspace can be asked for beforehand.
struct Plan {
    Plan(int64_t N, const Codebook& book) : rows(N < kRowsAtOnce ? N : kRowsAtOnce), screened(book.D <= kScreenedD) {
        row_warps = book.steps <= 16 ? 4 : book.steps <= 32 ? 2 : 1;
        column_warps = book.steps <= 16 ? 1 : 2;
        const int64_t blocks = ceil_div<int64_t>(rows > 0 ? rows : 1, row_warps * kWarpRows);
        int64_t shares = ceil_div(kWantedBlocks, blocks);
        shares = shares < book.spans / column_warps ? shares : book.spans / column_warps;
        shares = shares < kMaxColumns / column_warps ? shares : kMaxColumns / column_warps;  // a lane of `decide` each
        columns = static_cast<int>(shares > 1 ? shares : 1) * column_warps;
        spans_each = ceil_div(book.spans, columns);
    }
    int64_t rows;
    bool screened;
    int row_warps, column_warps, columns, spans_each;
};

// The workspace, in pieces; without a base only its size.
struct Workspace {
    Workspace(const Plan& plan, void* base) {
        Pieces pieces(base);
        undecided = pieces.take<int>(1);
        list = pieces.take<int>(plan.rows);
        if (plan.screened) {
            tops = pieces.take<float4>(plan.columns * plan.rows);
            groups = pieces.take<int2>(plan.columns * plan.rows);
        }
        bytes = pieces.used();
    }
    int* undecided;  // latents on the list for the exact scan
    int* list;
    float4* tops = nullptr;
    int2* groups = nullptr;
    int64_t bytes;
};

// What every GPU since compute capability 8.0 gives a CTA; 8.6, 8.9 and 12.0 give no more.
constexpr int64_t kSharedBytes = 99 * 1024;
static_assert(Shape<4, 1, 4>::shared_bytes(4) <= kSharedBytes && Shape<4, 1, 0>::shared_bytes(16) <= kSharedBytes);
static_assert(Shape<2, 2, 0>::shared_bytes(32) <= kSharedBytes && Shape<1, 2, 0>::shared_bytes(64) <= kSharedBytes);

int32_t launch_screen(const Plan& plan, const Screening& task, void* stream) {
    if (plan.row_warps == 1) return launch_shape<Shape<1, 2, 0>>(task, stream);
    if (plan.row_warps == 2) return launch_shape<Shape<2, 2, 0>>(task, stream);
    const int steps = task.book.steps;
    if (steps == 1) return launch_shape<Shape<4, 1, 1>>(task, stream);
    if (steps == 2) return launch_shape<Shape<4, 1, 2>>(task, stream);
    if (steps == 4) return launch_shape<Shape<4, 1, 4>>(task, stream);
    return launch_shape<Shape<4, 1, 0>>(task, stream);
}

// Rows first..first+rows-1.
int32_t find(const Plan& plan, const Workspace& work, const Codebook& book, const VqtokCudaRows& latents, int64_t first,
             int rows, int64_t* codes, void* stream) {
    if (plan.screened) {
        const cudaError_t error = cudaMemsetAsync(work.undecided, 0, sizeof(int), static_cast<cudaStream_t>(stream));
        if (error != cudaSuccess) return static_cast<int32_t>(error);
        const Screening screening{latents,         book,      first,      rows, plan.columns,
                                  plan.spans_each, work.tops, work.groups};
        if (const int32_t failed = launch_screen(plan, screening, stream)) return failed;
        const Deciding deciding{screening, codes + first, work.undecided, work.list};
        VQTOK_LAUNCH(decide, dim3(ceil_div(rows, kDecideWarps)), dim3(kDecideWarps * 32), 0, stream, deciding);
    } else {
        VQTOK_LAUNCH(list_all, dim3(ceil_div(rows, 256)), dim3(256), 0, stream, rows, work.undecided, work.list,
                     codes + first);
    }
    launch_scan({latents, book.vectors, book.half_norms, book.K, first, work.undecided, work.list, codes + first}, rows,
                stream);
    return static_cast<int32_t>(cudaGetLastError());
}

cudaError_t copy_floats(float* to, const float* from, int64_t count, void* stream) {
    return cudaMemcpyAsync(to, from, static_cast<size_t>(count) * sizeof(float), cudaMemcpyDeviceToDevice,
                           static_cast<cudaStream_t>(stream));
}

}  // namespace
}  // namespace vqtok

int32_t vqtok_cuda_abi() { return kVqtokCudaAbi; }

const char* vqtok_cuda_error(int32_t outcome) {
    if (outcome == kVqtokTooMany) return "more than 2^31 - 1 latents or codes";
    if (outcome == kVqtokNoWorkspace) return "a workspace smaller than it asked for";
    return cudaGetErrorName(static_cast<cudaError_t>(outcome));
}

int64_t vqtok_cuda_packed_bytes(int64_t K, int64_t D) {
    vqtok::Codebook book{};
    return vqtok::lay_out(book, K, D, nullptr);
}

int32_t vqtok_cuda_pack(const float* codebook, const float* half_norms, int64_t K, int64_t D, void* packed,
                        int64_t packed_bytes, void* stream) {
    if (K > vqtok::kMost - vqtok::kSpan) return kVqtokTooMany;
    if (packed_bytes < vqtok_cuda_packed_bytes(K, D)) return kVqtokNoWorkspace;
    vqtok::Codebook book{};
    vqtok::lay_out(book, K, D, packed);
    const cudaError_t vectors = vqtok::copy_floats(book.vectors, codebook, K * D, stream);
    if (vectors != cudaSuccess) return static_cast<int32_t>(vectors);
    const cudaError_t norms = vqtok::copy_floats(book.half_norms, half_norms, K, stream);
    if (norms != cudaSuccess) return static_cast<int32_t>(norms);
    if (D <= vqtok::kScreenedD) vqtok::prepare(book, stream);
    return static_cast<int32_t>(cudaGetLastError());
}

int64_t vqtok_cuda_nearest_code_workspace(int64_t N, int64_t K, int64_t D) {
    vqtok::Codebook book{};
    vqtok::lay_out(book, K, D, nullptr);
    return vqtok::Workspace(vqtok::Plan(N, book), nullptr).bytes;
}

int32_t vqtok_cuda_nearest_code(const VqtokCudaRows* latents, const void* packed, int64_t K, int64_t* codes,
                                void* workspace, int64_t workspace_bytes, void* stream) {
    const int64_t N = latents->N;
    if (N > vqtok::kMost || K > vqtok::kMost - vqtok::kSpan) return kVqtokTooMany;
    if (N == 0) return 0;
    vqtok::Codebook book{};
    vqtok::lay_out(book, K, latents->D, const_cast<void*>(packed));
    const vqtok::Plan plan(N, book);
    const vqtok::Workspace work(plan, workspace);
    if (workspace_bytes < work.bytes) return kVqtokNoWorkspace;
    for (int64_t first = 0; first < N; first += plan.rows) {
        const int64_t left = N - first;
        const int rows = static_cast<int>(left < plan.rows ? left : plan.rows);
        if (const int32_t error = vqtok::find(plan, work, book, *latents, first, rows, codes, stream)) return error;
    }
    return 0;
}
