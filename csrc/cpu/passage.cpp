// straight_through and rotate: one pass over latents and chosen code vectors each way, a block of rows at a time.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>

#include "blocks.h"
#include "elements.h"
#include "parallel.h"
#include "vqtok_cpu.h"

namespace vqtok {
namespace {

constexpr double kShortest = 1e-6;  // SHORTEST of vqtok/ops/reference.py

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

double dot(const float* a, const float* b, int64_t D) {
    return sum_over(D, [=](int64_t d) { return static_cast<double>(a[d]) * b[d]; });
}

// |u + v|^2 of the unit vectors u = z * to_u and v = q * to_v, when they are so opposite that 2 + 2 u.v would cancel.
double squared_bisector(const float* z, const float* q, double to_u, double to_v, int64_t D) {
    return sum_over(D, [=](int64_t d) {
        const double s = z[d] * to_u + q[d] * to_v;
        return s * s;
    });
}

// g - s (2 s.g / s.s) + u (2 v.g), scaled, with s = u + v: all of it is a sum of g, z and q with three coefficients.
template <class Type>
void pass_rotated(const float* g, const float* z, const float* q, float weight, int64_t D, typename Type::Stored* out) {
    const double length = std::sqrt(dot(z, z, D)), target = std::sqrt(dot(q, q, D));
    if (!(target > 0 && length > kShortest * target)) return pass_straight<Type>(g, z, q, weight, D, out);
    const double to_u = 1 / length, to_v = 1 / target, cosine = dot(z, q, D) * to_u * to_v;
    const double squared = cosine > -0.5 ? 2 + 2 * cosine : squared_bisector(z, q, to_u, to_v, D);
    if (!(squared > kShortest * kShortest)) return pass_straight<Type>(g, z, q, weight, D, out);
    const double along_u = dot(z, g, D) * to_u, along_v = dot(q, g, D) * to_v, scale = target / length;
    const double along_s = 2 * (along_u + along_v) / squared;
    const double of_z = scale * (2 * along_v - along_s) * to_u + weight, of_q = -scale * along_s * to_v - weight;
    for (int64_t d = 0; d < D; ++d) out[d] = Type::store(static_cast<float>(scale * g[d] + of_z * z[d] + of_q * q[d]));
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
