// code_statistics: every thread owns a range of codes and walks all rows in order, so no sum depends on the threads.
#include <algorithm>
#include <cstdint>
#include <new>

#include "kernel.h"
#include "parallel.h"
#include "rows.h"
#include "vqtok_cpu.h"

namespace {

void add_row(const float* row, int64_t stride, int64_t D, double* sum) {
    if (stride == 1)  // the compiler makes vectors of this one; each sum still gets its rows one by one
        for (int64_t d = 0; d < D; ++d) sum[d] += row[d];
    else
        for (int64_t d = 0; d < D; ++d) sum[d] += row[d * stride];
}

}  // namespace

int64_t vqtok_code_statistics(const VqtokRows* latents, const int64_t* codes, int64_t K, int64_t* counts, float* sums,
                              int32_t threads) {
    const int64_t N = latents->N, D = latents->D;
    try {
        const vqtok::Buffer<double> exact(K * D);
        const int parts = vqtok::useful_threads(static_cast<double>(N + K) * static_cast<double>(D), K, threads);
        vqtok::parallel(parts, parts, [&](int64_t part, int) {
            const int64_t begin = K * part / parts, end = K * (part + 1) / parts;
            std::fill(counts + begin, counts + end, 0);
            std::fill(exact.get() + begin * D, exact.get() + end * D, 0.0);
            for (int64_t n = 0; n < N; ++n) {
                const int64_t k = codes[n];
                if (k < begin || k >= end) continue;
                ++counts[k];
                add_row(static_cast<const float*>(latents->data) + vqtok::row_offset(*latents, n), latents->stride_d, D, exact.get() + k * D);
            }
            for (int64_t i = begin * D; i < end * D; ++i) sums[i] = static_cast<float>(exact.get()[i]);
        });
        return kDone;
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}
