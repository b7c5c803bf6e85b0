// AVX-512F: 12 latents x 32 codes, 24 of the 32 registers accumulate.
#include "kernel.h"

#if VQTOK_X86
#include <immintrin.h>

#define VQTOK_TARGET __attribute__((target("avx512f")))

namespace {

struct Avx512 {
    static constexpr int lanes = 16, rows = 12, vectors = 2;
    using Float = __m512;
    using Int = __m512i;

    VQTOK_TARGET static Float load(const float* p) { return _mm512_loadu_ps(p); }
    VQTOK_TARGET static Int load(const int32_t* p) { return _mm512_loadu_si512(p); }
    VQTOK_TARGET static void store(float* p, Float x) { _mm512_storeu_ps(p, x); }
    VQTOK_TARGET static void store(int32_t* p, Int x) { _mm512_storeu_si512(p, x); }
    VQTOK_TARGET static Float broadcast(const float* p) { return _mm512_set1_ps(*p); }
    VQTOK_TARGET static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
    VQTOK_TARGET static void keep_larger(Float score, int32_t number, Float& top, Int& top_number) {
        const __mmask16 larger = _mm512_cmp_ps_mask(score, top, _CMP_GT_OQ);
        top = _mm512_mask_mov_ps(top, larger, score);
        top_number = _mm512_mask_set1_epi32(top_number, larger, number);
    }
};

}  // namespace

#include "scan.h"

const vqtok::Kernel vqtok::kAvx512Kernel = kernel_of<Avx512>();
#endif
