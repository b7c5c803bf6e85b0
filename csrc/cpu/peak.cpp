// The float32 multiply-add peak of this machine, measured: the limit that the benchmarks hold a kernel against.
#include <atomic>
#include <chrono>
#include <cstdint>

#include "kernel.h"
#include "parallel.h"
#include "vqtok_cpu.h"

#if VQTOK_X86
#include <immintrin.h>
#endif

#if VQTOK_ARM64
#include <arm_neon.h>
#endif

namespace {

// Two multiply-add units of latency 4 or 5 want 8 to 10 chains; AVX2 has 16 registers, two of them for the operands.
// ARM has up to four units and 32 registers.
constexpr int kChains = 12, kManyChains = 24;
constexpr int64_t kStepsPerBatch = 1 << 14;  // some ten microseconds: how finely the end of the time is met

// x -> x * factor + addend stays near 1, so no value is denormal or infinite however long it runs. The chains start
// from memory and differently, or the compiler would see that all of them are one.
struct Operands {
    float factor, addend;
    float start[kManyChains];
};

struct Peak {
    int64_t operations_per_step;
    float (*batch)(const Operands&);  // runs kStepsPerBatch steps and returns what keeps them from being left out
};

float scalar_batch(const Operands& with) {
    float x[kChains];
    for (int c = 0; c < kChains; ++c) x[c] = with.start[c];
    const float factor = with.factor, addend = with.addend;
    for (int64_t step = 0; step < kStepsPerBatch; ++step)
#pragma GCC unroll 16
        for (int c = 0; c < kChains; ++c)
#ifdef __FP_FAST_FMAF
            x[c] = __builtin_fmaf(x[c], factor, addend);
#else
            x[c] = x[c] * factor + addend;
#endif
    float sum = 0;
    for (int c = 0; c < kChains; ++c) sum += x[c];
    return sum;
}

constexpr Peak kScalarPeak{2 * kChains, scalar_batch};

#if VQTOK_X86
__attribute__((target("avx2,fma"))) float avx2_batch(const Operands& with) {
    __m256 x[kChains];
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) x[c] = _mm256_set1_ps(with.start[c]);
    const __m256 factor = _mm256_set1_ps(with.factor), addend = _mm256_set1_ps(with.addend);
    for (int64_t step = 0; step < kStepsPerBatch; ++step)
#pragma GCC unroll 16
        for (int c = 0; c < kChains; ++c) x[c] = _mm256_fmadd_ps(x[c], factor, addend);
    __m256 sum = x[0];
#pragma GCC unroll 16
    for (int c = 1; c < kChains; ++c) sum = _mm256_add_ps(sum, x[c]);
    return _mm256_cvtss_f32(sum);
}

__attribute__((target("avx512f"))) float avx512_batch(const Operands& with) {
    __m512 x[kChains];
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) x[c] = _mm512_set1_ps(with.start[c]);
    const __m512 factor = _mm512_set1_ps(with.factor), addend = _mm512_set1_ps(with.addend);
    for (int64_t step = 0; step < kStepsPerBatch; ++step)
#pragma GCC unroll 16
        for (int c = 0; c < kChains; ++c) x[c] = _mm512_fmadd_ps(x[c], factor, addend);
    __m512 sum = x[0];
#pragma GCC unroll 16
    for (int c = 1; c < kChains; ++c) sum = _mm512_add_ps(sum, x[c]);
    return _mm512_cvtss_f32(sum);
}

constexpr Peak kAvx2Peak{2 * kChains * 8, avx2_batch};
constexpr Peak kAvx512Peak{2 * kChains * 16, avx512_batch};
#endif

#if VQTOK_ARM64
// The instruction adds to its own output, so x grows here until a quarter is rounded away, and stays there.
float neon_batch(const Operands& with) {
    float32x4_t x[kManyChains];
#pragma GCC unroll 32
    for (int c = 0; c < kManyChains; ++c) x[c] = vdupq_n_f32(with.start[c]);
    const float32x4_t factor = vdupq_n_f32(with.factor), other = vdupq_n_f32(with.addend);
    for (int64_t step = 0; step < kStepsPerBatch; ++step)
#pragma GCC unroll 32
        for (int c = 0; c < kManyChains; ++c) x[c] = vfmaq_f32(x[c], factor, other);
    float32x4_t sum = x[0];
#pragma GCC unroll 32
    for (int c = 1; c < kManyChains; ++c) sum = vaddq_f32(sum, x[c]);
    return vgetq_lane_f32(sum, 0);
}

constexpr Peak kNeonPeak{2 * kManyChains * 4, neon_batch};
#endif

const Peak& peak_of(int32_t instruction_set) {
#if VQTOK_X86
    if (instruction_set == 1) return kAvx2Peak;
    if (instruction_set == 2) return kAvx512Peak;
#endif
#if VQTOK_ARM64
    if (instruction_set == 3) return kNeonPeak;
#endif
    static_cast<void>(instruction_set);
    return kScalarPeak;
}

}  // namespace

double vqtok_fma_peak(int32_t threads, double seconds, int32_t instruction_set) {
    if (threads < 1 || !vqtok_cpu_has(instruction_set)) return 0;
    const Peak& peak = peak_of(instruction_set);
    Operands operands{0.5f, 0.5f, {}};
    for (int c = 0; c < kManyChains; ++c) operands.start[c] = 1.0f + 0.01f * static_cast<float>(c);

    using Clock = std::chrono::steady_clock;
    const auto begin = Clock::now();
    const auto end = begin + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    std::atomic<int64_t> batches{0};
    vqtok::parallel(threads, threads, [&](int64_t, int) {
        int64_t done = 0;
        volatile float kept;
        do {
            kept = peak.batch(operands);
            ++done;
        } while (Clock::now() < end);
        static_cast<void>(kept);
        batches.fetch_add(done);
    });
    const double took = std::chrono::duration<double>(Clock::now() - begin).count();
    return static_cast<double>(batches.load()) * kStepsPerBatch * static_cast<double>(peak.operations_per_step) / took;
}
