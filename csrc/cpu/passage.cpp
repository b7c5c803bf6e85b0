// straight_through and rotate: one pass over latents and chosen code vectors each way, a block of rows at a time.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "blocks.h"
#include "elements.h"
#include "parallel.h"
#include "vqtok_cpu.h"

namespace vqtok {
namespace {

constexpr double kShortest = 1e-6;  // SHORTEST of vqtok/ops/reference.py

// One reader a worker, made before the threads start: memory that is lacking is missed here and not in a thread.
std::vector<std::unique_ptr<BlockReader>> readers(const VqtokRows& rows, int threads) {
    std::vector<std::unique_ptr<BlockReader>> made;
    for (int i = 0; i < threads; ++i) made.push_back(std::make_unique<BlockReader>(rows));
    return made;
}

// Runs body(block, first, count, worker) over all blocks of rows.
template <class Body>
void over_blocks(int64_t N, int64_t D, int threads, const Body& body) {
    const int64_t each = block_rows(D);
    parallel(block_count(N, D), threads, [&](int64_t block, int worker) {
        body(block, block * each, std::min(each, N - block * each), worker);
    });
}

int threads_for(const VqtokRows& rows, int32_t limit) {
    // A row's element costs about as much as eight multiply-adds.
    return useful_threads(8.0 * static_cast<double>(rows.N) * static_cast<double>(rows.D), block_count(rows.N, rows.D), limit);
}

double squared_distance(const float* q, const float* z, int64_t D) {
    return sum_over(D, [&](int64_t d) {
        const double error = q[d] - z[d];
        return error * error;
    });
}

void forward(const VqtokRows& latents, const float* codebook, const int64_t* codes, float* vectors, double* loss, int32_t limit) {
    const int64_t N = latents.N, D = latents.D;
    const int threads = threads_for(latents, limit);
    const auto z_of = readers(latents, threads);
    const Buffer<double> partial(block_count(N, D));
    over_blocks(N, D, threads, [&](int64_t block, int64_t first, int64_t count, int worker) {
        const float* z = z_of[worker]->read(first, count);
        double sum = 0;
        for (int64_t r = 0; r < count; ++r) {
            const float* q = codebook + codes[first + r] * D;
            std::memcpy(vectors + (first + r) * D, q, D * sizeof(float));
            sum += squared_distance(q, z + r * D, D);
        }
        partial.get()[block] = sum;
    });
    *loss = 0;
    for (int64_t block = 0; block < block_count(N, D); ++block) *loss += partial.get()[block];
}

template <class Type>
void pass_straight(const float* g, const float* z, const float* q, float weight, int64_t D, typename Type::Stored* out) {
    for (int64_t d = 0; d < D; ++d) out[d] = Type::store(g[d] - weight * (q[d] - z[d]));
}

template <class Type>
void pass_rotated(const float* g, const float* z, const float* q, float weight, int64_t D, typename Type::Stored* out) {
    const double length = std::sqrt(sum_over(D, [&](int64_t d) { return static_cast<double>(z[d]) * z[d]; }));
    const double target = std::sqrt(sum_over(D, [&](int64_t d) { return static_cast<double>(q[d]) * q[d]; }));
    if (!(target > 0 && length > kShortest * target)) return pass_straight<Type>(g, z, q, weight, D, out);
    const double to_u = 1 / length, to_v = 1 / target;
    const auto bisector = [&](int64_t d) { return z[d] * to_u + q[d] * to_v; };
    const double squared = sum_over(D, [&](int64_t d) { return bisector(d) * bisector(d); });
    if (!(squared > kShortest * kShortest)) return pass_straight<Type>(g, z, q, weight, D, out);
    const double along_s = 2 / squared * sum_over(D, [&](int64_t d) { return bisector(d) * g[d]; });
    const double along_v = 2 * to_v * sum_over(D, [&](int64_t d) { return static_cast<double>(q[d]) * g[d]; });
    const double scale = target / length;
    for (int64_t d = 0; d < D; ++d) {
        const double turned = scale * (g[d] - along_s * bisector(d) + along_v * to_u * z[d]);
        out[d] = Type::store(static_cast<float>(turned - weight * (static_cast<double>(q[d]) - z[d])));
    }
}

template <class Type>
void backward(const VqtokRows& gradient, const VqtokRows& latents, const float* codebook, const int64_t* codes,
              float weight, int32_t rotated, typename Type::Stored* out, int32_t limit) {
    const int64_t N = latents.N, D = latents.D;
    const int threads = threads_for(latents, limit);
    const auto z_of = readers(latents, threads), g_of = readers(gradient, threads);
    const auto pass = rotated ? pass_rotated<Type> : pass_straight<Type>;
    over_blocks(N, D, threads, [&](int64_t, int64_t first, int64_t count, int worker) {
        const float *z = z_of[worker]->read(first, count), *g = g_of[worker]->read(first, count);
        for (int64_t r = 0; r < count; ++r)
            pass(g + r * D, z + r * D, codebook + codes[first + r] * D, weight, D, out + (first + r) * D);
    });
}

}  // namespace
}  // namespace vqtok

int64_t vqtok_passage(const VqtokRows* latents, const float* codebook, const int64_t* codes, float* vectors,
                      double* squared_error, int32_t threads) {
    try {
        vqtok::forward(*latents, codebook, codes, vectors, squared_error, threads);
        return kDone;
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}

int64_t vqtok_passage_backward(const VqtokRows* gradient, const VqtokRows* latents, const float* codebook,
                               const int64_t* codes, float weight, int32_t rotated, void* of_latents, int32_t threads) {
    try {
        vqtok::with_type(latents->type, [&](auto type) {
            using Type = decltype(type);
            vqtok::backward<Type>(*gradient, *latents, codebook, codes, weight, rotated,
                                  static_cast<typename Type::Stored*>(of_latents), threads);
        });
        return kDone;
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}
