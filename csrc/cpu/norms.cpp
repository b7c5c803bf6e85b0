// Half squared norms and unit rows of a codebook: squares are added in float64 over d = 0..D-1, results rounded once.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernel.h"
#include "parallel.h"
#include "vqtok_cpu.h"

namespace {

// Runs body(k, row, squared norm) for every row. Four rows at a time keep four sums going; each has its order.
template <class Body>
void over_rows(const float* codebook, int64_t K, int64_t D, int32_t limit, const Body& body) {
    constexpr int64_t kRows = 64;
    const int64_t tasks = (K + kRows - 1) / kRows;
    const int threads = vqtok::useful_threads(8.0 * static_cast<double>(K) * static_cast<double>(D), tasks, limit);
    vqtok::parallel(tasks, threads, [&](int64_t task, int) {
        const int64_t end = std::min(K, (task + 1) * kRows);
        int64_t k = task * kRows;
        for (; k + 4 <= end; k += 4) {
            double squared[4] = {};
            for (int64_t d = 0; d < D; ++d)
                for (int i = 0; i < 4; ++i) {
                    const double x = codebook[(k + i) * D + d];
                    squared[i] += x * x;
                }
            for (int i = 0; i < 4; ++i) body(k + i, codebook + (k + i) * D, squared[i]);
        }
        for (; k < end; ++k) {
            double squared = 0;
            for (int64_t d = 0; d < D; ++d) squared += static_cast<double>(codebook[k * D + d]) * codebook[k * D + d];
            body(k, codebook + k * D, squared);
        }
    });
}

}  // namespace

int64_t vqtok_half_squared_norms(const float* codebook, int64_t K, int64_t D, float* half_norms, int32_t threads) {
    over_rows(codebook, K, D, threads,
              [=](int64_t k, const float*, double squared) { half_norms[k] = static_cast<float>(squared / 2); });
    return kDone;
}

int64_t vqtok_normalize_codebook(const float* codebook, int64_t K, int64_t D, float* unit_rows, int32_t threads) {
    over_rows(codebook, K, D, threads, [=](int64_t k, const float* row, double squared) {
        const double length = std::sqrt(squared > 0 ? squared : 1.0);
        for (int64_t d = 0; d < D; ++d) unit_rows[k * D + d] = static_cast<float>(row[d] / length);
    });
    return kDone;
}
