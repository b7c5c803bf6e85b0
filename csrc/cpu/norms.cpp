// Half squared norms and unit rows of a codebook: squares are added in float64 over d = 0..D-1, results rounded once.
// Unit latents, whose bits no code depends on, are added in lanes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <new>

#include "blocks.h"
#include "elements.h"
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

constexpr double kLeastLength = 1e-12;  // LEAST_LENGTH of vqtok/ops/reference.py

double length_of(const float* row, int64_t D) {
    return std::sqrt(vqtok::sum_over(D, [=](int64_t d) { return static_cast<double>(row[d]) * row[d]; }));
}

// What the unit vector's gradient g is to the latent z: without its part along z, over the length. A latent shorter
// than the least length was divided by that, so its gradient is too.
template <class Type>
void latent_gradient(const float* g, const float* z, int64_t D, typename Type::Stored* out) {
    const double length = length_of(z, D), by = 1 / std::max(length, kLeastLength);
    const double along = vqtok::sum_over(D, [=](int64_t d) { return static_cast<double>(g[d]) * z[d]; });
    const double of_z = length > kLeastLength ? along * by * by : 0.0;
    for (int64_t d = 0; d < D; ++d) out[d] = Type::store(static_cast<float>(by * (g[d] - of_z * z[d])));
}

void unit_latents(const VqtokRows& latents, float* unit, int32_t limit) {
    const int64_t D = latents.D;
    const int threads = vqtok::threads_for(latents, limit);
    const auto z_of = vqtok::readers(latents, threads);
    vqtok::over_blocks(latents.N, D, threads, [&](int64_t, int64_t first, int64_t count, int worker) {
        const float* z = z_of[worker]->read(first, count);
        for (int64_t r = 0; r < count; ++r) {
            const double by = 1 / std::max(length_of(z + r * D, D), kLeastLength);
            for (int64_t d = 0; d < D; ++d) unit[(first + r) * D + d] = static_cast<float>(z[r * D + d] * by);
        }
    });
}

template <class Type>
void unit_latents_backward(const VqtokRows& gradient, const VqtokRows& latents, typename Type::Stored* out, int32_t limit) {
    const int64_t D = latents.D;
    const int threads = vqtok::threads_for(latents, limit);
    const auto z_of = vqtok::readers(latents, threads), g_of = vqtok::readers(gradient, threads);
    vqtok::over_blocks(latents.N, D, threads, [&](int64_t, int64_t first, int64_t count, int worker) {
        const float *z = z_of[worker]->read(first, count), *g = g_of[worker]->read(first, count);
        for (int64_t r = 0; r < count; ++r) latent_gradient<Type>(g + r * D, z + r * D, D, out + (first + r) * D);
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

int64_t vqtok_unit_latents(const VqtokRows* latents, float* unit, int32_t threads) {
    try {
        unit_latents(*latents, unit, threads);
        return kDone;
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}

int64_t vqtok_unit_latents_backward(const VqtokRows* gradient, const VqtokRows* latents, void* of_latents,
                                    int32_t threads) {
    try {
        vqtok::with_type(latents->type, [&](auto type) {
            using Type = decltype(type);
            unit_latents_backward<Type>(*gradient, *latents, static_cast<typename Type::Stored*>(of_latents), threads);
        });
        return kDone;
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}
