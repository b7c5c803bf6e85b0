// AVX-512F: 48 latents x 8 codes, 24 of the 32 registers accumulate.
#include "kernel.h"

#if VQTOK_X86
#include <immintrin.h>

#define VQTOK_TARGET __attribute__((target("avx512f")))

namespace {

struct Avx512 {
    static constexpr int lanes = 16, strips = 3, codes = 8;
    using Float = __m512;
    using Int = __m512i;

    VQTOK_TARGET static Float load(const float* p) { return _mm512_loadu_ps(p); }
    VQTOK_TARGET static Int load(const int32_t* p) { return _mm512_loadu_si512(p); }
    VQTOK_TARGET static void store(float* p, Float x) { _mm512_storeu_ps(p, x); }
    VQTOK_TARGET static void store(int32_t* p, Int x) { _mm512_storeu_si512(p, x); }
    VQTOK_TARGET static Float broadcast(const float* p) { return _mm512_set1_ps(*p); }
    VQTOK_TARGET static Int splat(int32_t x) { return _mm512_set1_epi32(x); }
    VQTOK_TARGET static Int next(Int x) { return _mm512_add_epi32(x, _mm512_set1_epi32(1)); }
    VQTOK_TARGET static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
    VQTOK_TARGET static void keep_larger(Float score, Int code, Float& top, Int& top_code) {
        top_code = _mm512_mask_mov_epi32(top_code, _mm512_cmp_ps_mask(score, top, _CMP_GT_OQ), code);
        top = _mm512_max_ps(score, top);  // top where the score is not a number
    }
};

}  // namespace

#include "scan.h"

const vqtok::Kernel vqtok::kAvx512Kernel = kernel_of<Avx512>();
#endif
