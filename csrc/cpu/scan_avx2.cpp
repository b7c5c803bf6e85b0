// AVX2 + FMA: 24 latents x 4 codes, 12 of the 16 registers accumulate.
#include "kernel.h"

#if VQTOK_X86
#include <immintrin.h>

#define VQTOK_TARGET __attribute__((target("avx2,fma")))

namespace {

struct Avx2 {
    static constexpr int lanes = 8, strips = 3, codes = 4;
    using Float = __m256;
    using Int = __m256i;

    VQTOK_TARGET static Float load(const float* p) { return _mm256_loadu_ps(p); }
    VQTOK_TARGET static Int load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const Int*>(p)); }
    VQTOK_TARGET static void store(float* p, Float x) { _mm256_storeu_ps(p, x); }
    VQTOK_TARGET static void store(int32_t* p, Int x) { _mm256_storeu_si256(reinterpret_cast<Int*>(p), x); }
    VQTOK_TARGET static Float broadcast(const float* p) { return _mm256_broadcast_ss(p); }
    VQTOK_TARGET static Int splat(int32_t x) { return _mm256_set1_epi32(x); }
    VQTOK_TARGET static Int next(Int x) { return _mm256_add_epi32(x, _mm256_set1_epi32(1)); }
    VQTOK_TARGET static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
    VQTOK_TARGET static void keep_larger(Float score, Int code, Float& top, Int& top_code) {
        const Float larger = _mm256_cmp_ps(score, top, _CMP_GT_OQ);
        top_code = _mm256_blendv_epi8(top_code, code, _mm256_castps_si256(larger));
        top = _mm256_max_ps(score, top);  // top where the score is not a number
    }
};

}  // namespace

#include "scan.h"

const vqtok::Kernel vqtok::kAvx2Kernel = kernel_of<Avx2>();
#endif
