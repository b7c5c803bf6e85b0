// ema_update: sizes first, whose total smooths them, then sums and rows in one pass.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernel.h"
#include "parallel.h"
#include "vqtok_cpu.h"

namespace {

float mixed(float old, float fresh, float decay, float rest) { return decay * old + rest * fresh; }

// Divides by the norm: squares in float64 over d = 0..D-1, every element rounded once.
void make_unit(float* row, int64_t D) {
    double squared = 0;
    for (int64_t d = 0; d < D; ++d) squared += static_cast<double>(row[d]) * row[d];
    const double length = std::sqrt(squared > 0 ? squared : 1.0);
    for (int64_t d = 0; d < D; ++d) row[d] = static_cast<float>(row[d] / length);
}

}  // namespace

int64_t vqtok_ema_update(const VqtokEma* step, int32_t limit) {
    const VqtokEma s = *step;
    const auto decay = static_cast<float>(s.decay), rest = static_cast<float>(1 - s.decay);
    const auto epsilon = static_cast<float>(s.epsilon);
    double exact_total = 0;
    for (int64_t k = 0; k < s.K; ++k) {
        s.new_size[k] = mixed(s.size[k], s.counts[k], decay, rest);
        exact_total += s.new_size[k];
    }
    const auto total = static_cast<float>(exact_total);
    const float smoothed_total = total + static_cast<float>(static_cast<double>(s.K) * s.epsilon);

    constexpr int64_t kRows = 64;
    const int64_t tasks = (s.K + kRows - 1) / kRows;
    const int threads = vqtok::useful_threads(8.0 * static_cast<double>(s.K) * static_cast<double>(s.D), tasks, limit);
    vqtok::parallel(tasks, threads, [&](int64_t task, int) {
        for (int64_t k = task * kRows; k < std::min(s.K, (task + 1) * kRows); ++k) {
            const float* sum = s.sum + k * s.D;
            const float* sums = s.sums + k * s.D;
            float* new_sum = s.new_sum + k * s.D;
            float* row = s.new_codebook + k * s.D;
            const float size = (s.new_size[k] + epsilon) / smoothed_total * total;
            for (int64_t d = 0; d < s.D; ++d) new_sum[d] = mixed(sum[d], sums[d], decay, rest);
            if (!(s.new_size[k] > 0)) {  // no mean: the code stays where it is
                std::memcpy(row, s.codebook + k * s.D, s.D * sizeof(float));
                continue;
            }
            for (int64_t d = 0; d < s.D; ++d) row[d] = new_sum[d] / size;
            if (s.unit) make_unit(row, s.D);
        }
    });
    return kDone;
}
