// AVX-512 with products of bfloat16, summed in float32: 8 tiles x 32 outputs, 16 of the 32 registers accumulate.
#include "kernel.h"

#if VQTOK_X86_BF16
#include <immintrin.h>

#define VQTOK_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#define VQTOK_LANES 16
#define VQTOK_BF16

#include "conv3x3.h"
#include "lanes.h"

namespace {

struct Bf16 {
    static constexpr int rows = 8, channels = 2;
    using Float = __m512;

    VQTOK_TARGET static Float zero() { return _mm512_setzero_ps(); }
    VQTOK_TARGET static Float load(const float* p) { return _mm512_loadu_ps(p); }
    VQTOK_TARGET static void store(float* p, Float x) { _mm512_storeu_ps(p, x); }
    VQTOK_TARGET static Float broadcast(const float* p) { return _mm512_set1_ps(*p); }
    VQTOK_TARGET static Float fma(Float a, Float b, Float c) { 
        return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
    }
    VQTOK_TARGET static void keep(float* words, const Floats& x) { ::store(reinterpret_cast<uint16_t*>(words), x); }
};

}  // namespace

#include "conv_tiles.h"

const vqtok::ConvKernel vqtok::kBf16Conv = conv_kernel_of<Bf16>();
#endif
