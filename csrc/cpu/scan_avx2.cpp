// AVX2 + FMA: 6 latents x 16 codes, 12 of the 16 registers accumulate.
#include "kernel.h"

#if VQTOK_X86
#include <immintrin.h>

#define VQTOK_TARGET __attribute__((target("avx2,fma")))

namespace {

struct Avx2 {
    static constexpr int lanes = 8, rows = 6, vectors = 2;
    using Float = __m256;
    using Int = __m256i;

    VQTOK_TARGET static Float load(const float* p) { return _mm256_loadu_ps(p); }
    VQTOK_TARGET static Int load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const Int*>(p)); }
    VQTOK_TARGET static void store(float* p, Float x) { _mm256_storeu_ps(p, x); }
    VQTOK_TARGET static void store(int32_t* p, Int x) { _mm256_storeu_si256(reinterpret_cast<Int*>(p), x); }
    VQTOK_TARGET static Float broadcast(const float* p) { return _mm256_broadcast_ss(p); }
    VQTOK_TARGET static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
    VQTOK_TARGET static void keep_larger(Float score, int32_t number, Float& top, Int& top_number) {
        const Float larger = _mm256_cmp_ps(score, top, _CMP_GT_OQ);
        top = _mm256_max_ps(score, top);
        top_number = _mm256_blendv_epi8(top_number, _mm256_set1_epi32(number), _mm256_castps_si256(larger));
    }
};

}  // namespace

#include "scan.h"

const vqtok::Kernel vqtok::kAvx2Kernel = kernel_of<Avx2>();
#endif
