// The exact scan: the deciding score of every code, for latents that the screening could not decide.
//
// A block takes 64 latents of a list and 1024 codes at a time; blocks agree on a latent's best code by the largest key.
// How many latents there are is known on the device alone, so the grid is fixed and blocks look for work.
#pragma once

#include "score.cuh"

namespace vqtok {

constexpr int kScanThreads = 256;
constexpr int kScanTile = 64;     // latents, and codes, of a tile
constexpr int kScanDepth = 16;    // dimensions in shared memory at a time
constexpr int kScanCodes = 1024;  // codes of a piece of work
constexpr int kEach = 4;          // a thread has 4 x 4 scores
constexpr int kScanBlocks = 1056;

struct Scanning {
    VqtokCudaRows latents;
    const float* vectors;     // [K, D]
    const float* half_norms;  // [K]
    int64_t K;
    int64_t first;            // row of the latents that the list's 0 means
    const int* listed;        // how many there are
    const int* list;
    int64_t* codes;           // of row `first` and on; keys while the scan runs
};

struct ScanShared {
    float latents[kScanDepth][kScanTile + 1];
    float codes[kScanDepth][kScanTile + 1];
    int64_t offsets[kScanTile];
};

VQTOK_DEVICE void stage_scan(const Scanning& task, ScanShared& shared, int64_t first_code, int64_t first_d) {
    const bool dense = task.latents.stride_d == 1;
    for (int i = threadIdx.x; i < kScanDepth * kScanTile; i += kScanThreads) {
        const int d = i % kScanDepth, k = i / kScanDepth;
        const bool inside = first_code + k < task.K && first_d + d < task.latents.D;
        shared.codes[d][k] = inside ? task.vectors[(first_code + k) * task.latents.D + first_d + d] : 0.0f;
        const int its_d = dense ? d : i / kScanTile, r = dense ? k : i % kScanTile;
        const int64_t at = first_d + its_d;
        shared.latents[its_d][r] =
            shared.offsets[r] >= 0 && at < task.latents.D
                ? load_float(task.latents.data, task.latents.dtype, shared.offsets[r] + at * task.latents.stride_d)
                : 0.0f;
    }
}

// One rounding a step, d in order: what a score means. Dimensions past D are not touched: 0 * x + s could change -0.
VQTOK_DEVICE void accumulate(const ScanShared& shared, int depth, int ty, int tx, float (&scores)[kEach][kEach]) {
    for (int d = 0; d < depth; ++d) {
        VQTOK_UNROLL
        for (int i = 0; i < kEach; ++i) {
            VQTOK_UNROLL
            for (int j = 0; j < kEach; ++j)
                scores[i][j] = fmaf(shared.latents[d][ty + 16 * i], shared.codes[d][tx + 16 * j], scores[i][j]);
        }
    }
}

VQTOK_DEVICE void scan_tile(const Scanning& task, ScanShared& shared, int64_t first_code, Best (&best)[kEach]) {
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float scores[kEach][kEach];
    VQTOK_UNROLL
    for (int j = 0; j < kEach; ++j) {
        const int64_t k = first_code + tx + 16 * j;
        const float start = k < task.K ? -task.half_norms[k] : -INFINITY;
        VQTOK_UNROLL
        for (int i = 0; i < kEach; ++i) scores[i][j] = start;
    }
    for (int64_t d = 0; d < task.latents.D; d += kScanDepth) {
        stage_scan(task, shared, first_code, d);
        __syncthreads();
        const int64_t left = task.latents.D - d;
        accumulate(shared, left < kScanDepth ? static_cast<int>(left) : kScanDepth, ty, tx, scores);
        __syncthreads();
    }
    VQTOK_UNROLL
    for (int j = 0; j < kEach; ++j) {
        const int64_t k = first_code + tx + 16 * j;
        if (k >= task.K) continue;
        VQTOK_UNROLL
        for (int i = 0; i < kEach; ++i) best[i].offer(scores[i][j], static_cast<int>(k));
    }
}

VQTOK_DEVICE void scan_piece(const Scanning& task, ScanShared& shared, int listed, int64_t first_row, int64_t first_code) {
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    __syncthreads();  // the piece before may still be read
    if (threadIdx.x < kScanTile) {
        const int64_t at = first_row + threadIdx.x;
        shared.offsets[threadIdx.x] = at < listed ? row_offset(task.latents, task.first + task.list[at]) : -1;
    }
    __syncthreads();
    Best best[kEach] = {no_best(), no_best(), no_best(), no_best()};
    for (int64_t k = first_code; k < first_code + kScanCodes && k < task.K; k += kScanTile)
        scan_tile(task, shared, k, best);
    VQTOK_UNROLL
    for (int i = 0; i < kEach; ++i) {
        const Best of_all = best_of_lanes(best[i], 16);
        const int64_t at = first_row + ty + 16 * i;
        if (tx == 0 && at < listed)
            atomicMax(reinterpret_cast<unsigned long long*>(task.codes) + task.list[at], to_key(of_all));
    }
}

__global__ void __launch_bounds__(kScanThreads) scan(Scanning task) {
    auto& shared = *reinterpret_cast<ScanShared*>(shared_memory());
    const int listed = *task.listed;
    const int64_t row_pieces = ceil_div(listed, kScanTile), code_pieces = ceil_div<int64_t>(task.K, kScanCodes);
    for (int64_t i = blockIdx.x; i < row_pieces * code_pieces; i += gridDim.x)
        scan_piece(task, shared, listed, i / code_pieces * kScanTile, i % code_pieces * kScanCodes);
}

// Keys become codes. Without any score above minus infinity the answer is code 0.
__global__ void finish_scan(Scanning task) {
    const int listed = *task.listed;
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < listed; i += int64_t{gridDim.x} * blockDim.x) {
        const int code = code_of_key(static_cast<unsigned long long>(task.codes[task.list[i]]));
        task.codes[task.list[i]] = code == kNoCode ? 0 : code;
    }
}

inline void launch_scan(const Scanning& task, int rows, void* stream) {
    const int64_t pieces = int64_t{ceil_div(rows, kScanTile)} * ceil_div<int64_t>(task.K, kScanCodes);
    const auto blocks = static_cast<unsigned>(pieces < kScanBlocks ? pieces : kScanBlocks);
    VQTOK_LAUNCH(scan, dim3(blocks), dim3(kScanThreads), sizeof(ScanShared), stream, task);
    VQTOK_LAUNCH(finish_scan, dim3(ceil_div(rows, 1024)), dim3(256), 0, stream, task);
}

}  // namespace vqtok
