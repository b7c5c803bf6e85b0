// AVX-512F: 8 tiles x 32 outputs, 16 of the 32 registers accumulate.
#include "kernel.h"

#if VQTOK_X86
#include <immintrin.h>

#define VQTOK_TARGET __attribute__((target("avx512f")))
#define VQTOK_LANES 16

#include "conv3x3.h"
#include "lanes.h"

namespace {

struct Avx512 {
    static constexpr int rows = 8, channels = 1;
    using Float = __m512;

    VQTOK_TARGET static Float zero() { return _mm512_setzero_ps(); }
    VQTOK_TARGET static Float load(const float* p) { return _mm512_loadu_ps(p); }
    VQTOK_TARGET static void store(float* p, Float x) { _mm512_storeu_ps(p, x); }
    VQTOK_TARGET static Float broadcast(const float* p) { return _mm512_set1_ps(*p); }
    VQTOK_TARGET static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
    VQTOK_TARGET static void keep(float* words, const Floats& x) { ::store(words, x); }
};

}  // namespace

#include "conv_tiles.h"

const vqtok::ConvKernel vqtok::kAvx512Conv = conv_kernel_of<Avx512>();
#endif
