// AVX2 + FMA: 6 tiles x 16 outputs, 12 of the 16 registers accumulate.
#include "kernel.h"

#if VQTOK_X86
#include <immintrin.h>

#define VQTOK_TARGET __attribute__((target("avx2,fma")))
#define VQTOK_LANES 8

#include "conv3x3.h"
#include "lanes.h"

namespace {

struct Avx2 {
    static constexpr int rows = 6, channels = 1;
    using Float = __m256;

    VQTOK_TARGET static Float zero() { return _mm256_setzero_ps(); }
    VQTOK_TARGET static Float load(const float* p) { return _mm256_loadu_ps(p); }
    VQTOK_TARGET static void store(float* p, Float x) { _mm256_storeu_ps(p, x); }
    VQTOK_TARGET static Float broadcast(const float* p) { return _mm256_broadcast_ss(p); }
    VQTOK_TARGET static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
    VQTOK_TARGET static void keep(float* words, const Floats& x) { ::store(words, x); }
};

}  // namespace

#include "conv_tiles.h"

const vqtok::ConvKernel vqtok::kAvx2Conv = conv_kernel_of<Avx2>();
#endif
