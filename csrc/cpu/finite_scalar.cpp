// finite_scalar: how many thresholds between levels a latent has reached, dimension by dimension.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>

#include "blocks.h"
#include "kernel.h"
#include "parallel.h"
#include "vqtok_cpu.h"

namespace vqtok {
namespace {

// Few thresholds are counted, which needs no branch; many are searched.
int64_t digit_of(float x, const float* thresholds, int64_t count) {
    if (count > 32) return std::upper_bound(thresholds, thresholds + count, x) - thresholds;
    int64_t digit = 0;
    for (int64_t i = 0; i < count; ++i) digit += x >= thresholds[i];
    return digit;
}

int64_t code_of(const float* row, const float* thresholds, const int64_t* levels, int64_t D, float* vector) {
    int64_t code = 0, place = 1;
    for (int64_t d = 0; d < D; ++d) {
        const int64_t digit = digit_of(row[d], thresholds, levels[d] - 1), half = levels[d] / 2;
        vector[d] = static_cast<float>(digit - half) / static_cast<float>(half);
        code += place * digit;
        place *= levels[d];
        thresholds += levels[d] - 1;
    }
    return code;
}

}  // namespace
}  // namespace vqtok

int64_t vqtok_finite_scalar(const VqtokRows* latents, const float* thresholds, const int64_t* levels, int64_t* codes,
                            float* vectors, int32_t limit) {
    const int64_t N = latents->N, D = latents->D;
    try {
        const int threads = vqtok::threads_for(*latents, limit);
        const auto z_of = vqtok::readers(*latents, threads);
        std::atomic<int64_t> first_bad{N};
        vqtok::over_blocks(N, D, threads, [&](int64_t, int64_t first, int64_t count, int worker) {
            const float* z = z_of[worker]->read(first, count);
            const int64_t bad = vqtok::first_infinite(z, count, D);
            if (bad >= 0) return vqtok::lower_to(first_bad, first + bad);
            for (int64_t r = 0; r < count; ++r) {
                codes[first + r] = vqtok::code_of(z + r * D, thresholds, levels, D, vectors + (first + r) * D);
            }
        });
        return first_bad < N ? first_bad.load() : kDone;
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}
