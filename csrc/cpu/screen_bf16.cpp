// bfloat16: two products a lane and step, summed in float32.
#include "kernel.h"

#if VQTOK_X86_BF16
#include <immintrin.h>

#define VQTOK_TARGET __attribute__((target("avx512f,avx512bw,avx512bf16")))

#include <cstring>
#include <limits>

namespace {

struct Bf16 {
    using Top = __m512;
    static constexpr int dims = 2;
    static constexpr bool scaled = false;
    using Sum = __m512;

    VQTOK_TARGET static Sum load_start(const int32_t* p) { return _mm512_castsi512_ps(_mm512_set1_epi32(*p)); }
    VQTOK_TARGET static Sum multiply_add(__m512i latent, __m512i code, Sum sum) {
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(latent), reinterpret_cast<__m512bh>(code));
    }
    VQTOK_TARGET static Top least() { return _mm512_set1_ps(-std::numeric_limits<float>::infinity()); }
    VQTOK_TARGET static void keep_larger(Sum sum, __m512, const float*, Top& top) { top = _mm512_max_ps(sum, top); }
    VQTOK_TARGET static __m512 value_of(Top top, __m512) { return top; }
    // Two products and two sums a step at most, and the addition of the bound.
    static float roundings(int64_t steps) { return 2.0f * static_cast<float>(steps) + 6; }
    static float scale_of(float) { return 1.0f; }
    static void set_start(float value, int32_t, int32_t& start, float& bias) {
        std::memcpy(&start, &value, sizeof value);
        bias = 0;
    }
    static void set_padding(int32_t& start, float& bias) {
        set_start(-std::numeric_limits<float>::infinity(), 0, start, bias);
    }
    // Rounded to nearest even. Denormal results become zero, as the instruction would take them.
    VQTOK_TARGET static __m512 quantise(__m512 value, float, bool, int32_t* words, __m512i&) {
        const __m512i bits = _mm512_castps_si512(value), one = _mm512_set1_epi32(1);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
        __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        rounded = _mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000)));
        const __mmask16 normal = _mm512_test_epi32_mask(rounded, _mm512_set1_epi32(0x7f800000));
        rounded = _mm512_maskz_mov_epi32(normal, rounded);
        _mm256_store_si256(reinterpret_cast<__m256i*>(words), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
        return _mm512_castsi512_ps(rounded);
    }
};

}  // namespace

#include "screen.h"

const vqtok::Screener vqtok::kBf16Screener = screener_of<Bf16>(screen<Bf16>);
#endif
