// nearest_code: packs codebook and latents, shares blocks of latents among threads, reduces the lanes.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <new>

#include "kernel.h"
#include "parallel.h"
#include "rows.h"
#include "vqtok_cpu.h"

namespace vqtok {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr int64_t kBlockBytes = 192 * 1024;  // packed latents of one block: under half of a small L2
constexpr int64_t kBlockRows = 192;
constexpr int kMaxRows = 16;

const Kernel* kernel_for(int32_t instruction_set) {
    if (instruction_set == 0) return &kScalarKernel;
#if VQTOK_X86
    // The system must save the wide registers too; __builtin_cpu_supports asks both it and the processor.
    __builtin_cpu_init();
    if (instruction_set == 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kAvx2Kernel;
    if (instruction_set == 2 && __builtin_cpu_supports("avx512f")) return &kAvx512Kernel;
#endif
    return nullptr;
}

void pack_panel(const float* codebook, const float* half_norms, int64_t K, int64_t D, int width, int64_t p,
                float* panel, float* start) {
    for (int w = 0; w < width; ++w) {
        const int64_t k = p * width + w;
        start[w] = k < K ? -half_norms[k] : kNever;
        for (int64_t d = 0; d < D; ++d) panel[d * width + w] = k < K ? codebook[k * D + d] : 0.0f;
    }
}

// Packs `rows` latents from row `first`; returns the first of them that is not finite, or -1.
int64_t pack_tile(const VqtokRows& latents, int64_t first, int rows, float* tile) {
    const int present = static_cast<int>(std::min<int64_t>(rows, latents.N - first));
    const float* source[kMaxRows];
    float poison[kMaxRows] = {};  // 0 * x is 0 for every finite x and NaN for all others
    for (int r = 0; r < present; ++r) source[r] = latents.data + row_offset(latents, first + r);
    for (int64_t d = 0; d < latents.D; ++d) {
        for (int r = 0; r < present; ++r) {
            const float x = source[r][d * latents.stride_d];
            tile[d * rows + r] = x;
            poison[r] += 0.0f * x;
        }
        for (int r = present; r < rows; ++r) tile[d * rows + r] = 0.0f;
    }
    for (int r = 0; r < present; ++r)
        if (poison[r] != 0.0f) return first + r;
    return -1;
}

// The largest score over the lanes, ties to the lowest code.
int64_t winner(const float* best, const int32_t* best_vector, int lanes) {
    float top = best[0];
    int64_t code = static_cast<int64_t>(best_vector[0]) * lanes;
    for (int lane = 1; lane < lanes; ++lane) {
        const int64_t other = static_cast<int64_t>(best_vector[lane]) * lanes + lane;
        if (best[lane] > top || (best[lane] == top && other < code)) {
            top = best[lane];
            code = other;
        }
    }
    return code;
}

void lower_to(std::atomic<int64_t>& target, int64_t value) {
    int64_t seen = target.load();
    while (value < seen && !target.compare_exchange_weak(seen, value)) {
    }
}

// One call's shape: how many tiles make a block, and what a worker needs for it.
struct Plan {
    Plan(const Kernel& kernel, int64_t N, int64_t K, int64_t D, int limit) : panels((K + kernel.width - 1) / kernel.width) {
        const int64_t tiles = (N + kernel.rows - 1) / kernel.rows;
        threads = useful_threads(static_cast<double>(N) * static_cast<double>(K) * static_cast<double>(D), tiles, limit);
        const int64_t fitting = std::min(kBlockBytes / (D * 4), kBlockRows) / kernel.rows;
        block_tiles = std::clamp<int64_t>((tiles + threads - 1) / threads, 1, std::max<int64_t>(fitting, 1));
        block_rows = block_tiles * kernel.rows;
        blocks = (N + block_rows - 1) / block_rows;
    }
    int64_t panels, block_tiles, block_rows, blocks;
    int threads;
};

int64_t nearest_code(const Kernel& kernel, const VqtokRows& latents, const float* codebook, const float* half_norms,
                     int64_t K, int64_t* codes, int32_t limit) {
    const int64_t N = latents.N, D = latents.D;
    const Plan plan(kernel, N, K, D, limit);
    const int64_t tile_floats = plan.block_rows * D, state = plan.block_rows * kernel.lanes;
    const Buffer<float> panels(plan.panels * D * kernel.width), start(plan.panels * kernel.width);
    const Buffer<float> tiles(plan.threads * tile_floats), best(plan.threads * state);
    const Buffer<int32_t> best_vector(plan.threads * state);

    const int packers = useful_threads(static_cast<double>(K) * static_cast<double>(D), plan.panels, plan.threads);
    parallel(plan.panels, packers, [&](int64_t p, int) {
        pack_panel(codebook, half_norms, K, D, kernel.width, p, panels.get() + p * D * kernel.width,
                   start.get() + p * kernel.width);
    });

    std::atomic<int64_t> first_bad{N};
    parallel(plan.blocks, plan.threads, [&](int64_t block, int worker) {
        const int64_t first = block * plan.block_rows, count = std::min(plan.block_rows, N - first);
        if (first > first_bad.load(std::memory_order_relaxed)) return;
        const Scan work{tiles.get() + worker * tile_floats, (count + kernel.rows - 1) / kernel.rows,
                        panels.get(), start.get(), plan.panels, D,
                        best.get() + worker * state, best_vector.get() + worker * state};
        for (int64_t t = 0; t < work.tile_count; ++t) {
            const int64_t bad = pack_tile(latents, first + t * kernel.rows, kernel.rows,
                                          tiles.get() + worker * tile_floats + t * kernel.rows * D);
            if (bad >= 0) return lower_to(first_bad, bad);
        }
        std::fill_n(work.best, state, kNever);
        std::fill_n(work.best_vector, state, 0);
        kernel.scan(work);
        for (int64_t n = 0; n < count; ++n)
            codes[first + n] = winner(work.best + n * kernel.lanes, work.best_vector + n * kernel.lanes, kernel.lanes);
    });
    return first_bad < N ? first_bad.load() : kDone;
}

}  // namespace
}  // namespace vqtok

int32_t vqtok_cpu_abi() { return kVqtokCpuAbi; }

int32_t vqtok_cpu_has(int32_t instruction_set) { return vqtok::kernel_for(instruction_set) != nullptr; }

int64_t vqtok_nearest_code(const VqtokRows* latents, const float* codebook, const float* half_norms, int64_t K,
                           int64_t* codes, int32_t threads, int32_t instruction_set) {
    const vqtok::Kernel* kernel = vqtok::kernel_for(instruction_set);
    if (kernel == nullptr) return kNoInstructionSet;
    try {
        return vqtok::nearest_code(*kernel, *latents, codebook, half_norms, K, codes, threads);
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}
