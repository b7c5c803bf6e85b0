// code_statistics, and the codebook's gradient, which is the same sum of other terms.
#include <cstdint>
#include <new>

#include "by_code.h"
#include "kernel.h"
#include "vqtok_cpu.h"

int64_t vqtok_code_statistics(const VqtokRows* latents, const int64_t* codes, int64_t K, int64_t* counts, float* sums,
                              int32_t threads) {
    const int64_t D = latents->D;
    try {
        vqtok::sum_by_code(
            *latents, codes, K, counts, threads, [](int64_t, int64_t, float x) { return static_cast<double>(x); },
            [=](int64_t k, int64_t d, double sum) { sums[k * D + d] = static_cast<float>(sum); });
        return kDone;
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}

int64_t vqtok_codebook_backward(const VqtokRows* latents, const float* codebook, const int64_t* codes, int64_t K,
                                float weight, float* of_codebook, int32_t threads) {
    const int64_t D = latents->D;
    try {
        vqtok::sum_by_code(
            *latents, codes, K, nullptr, threads,
            [=](int64_t k, int64_t d, float x) { return static_cast<double>(codebook[k * D + d] - x); },
            [=](int64_t k, int64_t d, double sum) { of_codebook[k * D + d] = weight * static_cast<float>(sum); });
        return kDone;
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}
