// int8 with VNNI: four products a lane and step; sums are exact.
#include "kernel.h"

#if VQTOK_X86
#include <immintrin.h>

#define VQTOK_TARGET __attribute__((target("avx512f,avx512bw,avx512vnni")))

#include <limits>

namespace {

// A latent's integers lie 128 higher, since the instruction takes one operand without a sign; a code's sums start at
// -128 times the sum of its integers to make up for it. One scale a latent and one a panel of codes.
struct Int8 {
    using Top = __m512;
    static constexpr int dims = 4;
    static constexpr bool scaled = true;
    using Sum = __m512i;

    VQTOK_TARGET static Sum load_start(const int32_t* p) { return _mm512_set1_epi32(*p); }
    VQTOK_TARGET static Sum multiply_add(__m512i latent, __m512i code, Sum sum) {
        // Not _mm512_dpbusd_epi32: GCC 12 copies every sum before and after it, which costs a third of the speed.
        asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(latent), "v"(code));
        return sum;
    }
    VQTOK_TARGET static Top least() { return _mm512_set1_ps(-std::numeric_limits<float>::infinity()); }
    VQTOK_TARGET static void keep_larger(Sum sum, __m512 scale, const float* bias, Top& top) {
        top = _mm512_max_ps(_mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, _mm512_set1_ps(*bias)), top);
    }
    VQTOK_TARGET static __m512 value_of(Top top, __m512) { return top; }
    // Sums are exact; conversion, scale, addition of the bias and of the bound round once each.
    static float roundings(int64_t) { return 6; }
    static float scale_of(float largest) { return largest > 0x1p-100f ? largest / 127 : 1.0f; }
    static void set_start(float value, int32_t sum, int32_t& start, float& bias) {
        start = -128 * sum;
        bias = value;
    }
    // Below what any sum of up to 2^15 products comes to.
    static void set_padding(int32_t& start, float& bias) {
        start = -(1 << 30);
        bias = -std::numeric_limits<float>::infinity();
    }
    VQTOK_TARGET static __m512 quantise(__m512 value, float scale, bool latent, int32_t* words, __m512i& sum) {
        const __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(value, _mm512_set1_ps(1 / scale)));
        sum = _mm512_add_epi32(sum, integers);
        const __m128i bytes = _mm512_cvtepi32_epi8(integers);
        _mm_store_si128(reinterpret_cast<__m128i*>(words), latent ? _mm_xor_si128(bytes, _mm_set1_epi8(-128)) : bytes);
        return _mm512_mul_ps(_mm512_cvtepi32_ps(integers), _mm512_set1_ps(scale));
    }
};

// Scores without norms have no bias, and then integers compare as scores do: a third of the work a score.
struct Int8Unbiased : Int8 {
    using Top = __m512i;
    VQTOK_TARGET static Top least() { return _mm512_set1_epi32(std::numeric_limits<int32_t>::min()); }
    VQTOK_TARGET static void keep_larger(Sum sum, __m512, const float*, Top& top) { top = _mm512_max_epi32(sum, top); }
    VQTOK_TARGET static __m512 value_of(Top top, __m512 scale) { return _mm512_mul_ps(_mm512_cvtepi32_ps(top), scale); }
};

}  // namespace

#include "screen.h"

namespace {

void scan(const vqtok::ScreenedTile& tile, const vqtok::ScreenedCodebook& codebook, vqtok::Candidates& out) {
    (codebook.has_norms ? screen<Int8> : screen<Int8Unbiased>)(tile, codebook, out);
}

}  // namespace

const vqtok::Screener vqtok::kInt8Screener = screener_of<Int8>(scan);
#endif
