// Screening on AVX-512, written once over the format F of a word. screen_int8.cpp and screen_bf16.cpp define
// VQTOK_TARGET and F in an unnamed namespace, then include this file.
//
// F has: Sum (register of sums), Top (register of the largest so far), dims (in a word), load_start, multiply_add, least,
// keep_larger, value_of, roundings, scale_of, scaled, set_start, set_padding, quantise.
#include <algorithm>
#include <cmath>
#include <limits>

#include "screening.h"

#ifndef VQTOK_TARGET
#error "define VQTOK_TARGET and the word format before including screen.h"
#endif

namespace {

using vqtok::kPanel;

constexpr int kLanes = 16, kStrips = 3, kCodes = 8;
constexpr float kOutward = 1.0f + 1.0f / 1024;  // covers what measuring a norm in float32 rounds away
constexpr float kUnit = 1.0f / (1 << 24);

// Norms of a vector x, of its rounded and centred form and of what rounding took away; upper bounds all of them.
struct Norms {
    float original, quantised, residual;
    int32_t sum;  // of the integers
};

VQTOK_TARGET inline __mmask16 mask_of(int64_t remaining) {
    return remaining >= kLanes ? 0xffff : static_cast<__mmask16>((1u << remaining) - 1);
}

// Squares below the normal numbers may vanish: `lost` is what the norm of D such numbers comes to at most.
VQTOK_TARGET inline float norm_bound(__m512 squares, int64_t D) {
    const float lost = 0x1p-62f * std::sqrt(static_cast<float>(D));
    return std::sqrt(_mm512_reduce_add_ps(squares)) * kOutward + lost;
}

VQTOK_TARGET inline __m512 centred(const float* x, const float* centre, int64_t d, __mmask16 mask) {
    const __m512 value = _mm512_maskz_loadu_ps(mask, x + d);
    return centre == nullptr ? value : _mm512_sub_ps(value, _mm512_maskz_loadu_ps(mask, centre + d));
}

VQTOK_TARGET inline float largest(const float* x, const float* centre, int64_t D) {
    __m512 top = _mm512_setzero_ps();
    for (int64_t d = 0; d < D; d += kLanes)
        top = _mm512_max_ps(top, _mm512_abs_ps(centred(x, centre, d, mask_of(D - d))));
    return _mm512_reduce_max_ps(top);
}

// Writes the words of x - centre at out[step * stride].
template <class F>
VQTOK_TARGET Norms quantise(const float* x, const float* centre, int64_t D, float scale, bool latent, int32_t* out,
                            int64_t stride) {
    __m512 original = _mm512_setzero_ps(), quantised = original, residual = original, whole = original;
    __m512i sum = _mm512_setzero_si512();
    for (int64_t d = 0; d < D; d += kLanes) {
        const __mmask16 mask = mask_of(D - d);
        const __m512 raw = _mm512_maskz_loadu_ps(mask, x + d), value = centred(x, centre, d, mask);
        alignas(64) int32_t words[kLanes];
        const __m512 rounded = F::quantise(value, scale, latent, words, sum);
        const __m512 lost = _mm512_sub_ps(value, rounded);
        original = _mm512_fmadd_ps(raw, raw, original);
        whole = _mm512_fmadd_ps(value, value, whole);
        quantised = _mm512_fmadd_ps(rounded, rounded, quantised);
        residual = _mm512_fmadd_ps(lost, lost, residual);
        const int64_t first = d / F::dims, count = std::min<int64_t>(kLanes, D - d + F::dims - 1) / F::dims;
        for (int64_t w = 0; w < count; ++w) out[(first + w) * stride] = words[w];
    }
    // Centring, scaling and subtracting round as well: a few units of what they yield.
    const float slack = norm_bound(whole, D) * (8 * kUnit);
    return {norm_bound(original, D), norm_bound(quantised, D) + slack, norm_bound(residual, D) + slack,
            _mm512_reduce_add_epi32(sum)};
}

// c.(x - c) in float64.
VQTOK_TARGET inline double centre_product(const float* x, const float* centre, int64_t D) {
    __m512d dot = _mm512_setzero_pd();
    for (int64_t d = 0; d < D; d += 8) {
        const __mmask8 mask = D - d >= 8 ? 0xff : static_cast<__mmask8>((1u << (D - d)) - 1);
        const __m512d c = _mm512_cvtps_pd(_mm512_castps512_ps256(_mm512_maskz_loadu_ps(mask, centre + d)));
        const __m512d e = _mm512_cvtps_pd(_mm512_castps512_ps256(_mm512_maskz_loadu_ps(mask, x + d)));
        dot = _mm512_fmadd_pd(c, _mm512_sub_pd(e, c), dot);
    }
    return _mm512_reduce_add_pd(dot);
}

template <class F>
VQTOK_TARGET void prepare_codes(const float* codebook, const float* half_norms, int64_t K, int64_t panel,
                                const vqtok::ScreenedCodebook& out) {
    const int64_t D = out.D, first = panel * kPanel;
    const int present = static_cast<int>(std::min<int64_t>(kPanel, K - first));
    int32_t* const words = out.panels + panel * out.steps * kPanel;
    int32_t* const start = out.start + first;
    float* const bias = out.bias + first;
    std::fill_n(words, out.steps * kPanel, 0);

    float top = 0;
    for (int i = 0; i < present; ++i) top = std::max(top, largest(codebook + (first + i) * D, out.centre, D));
    vqtok::PanelBound bound{F::scale_of(top), 0, 0, 0, 0};
    float quantised = 0, heaviest = 0, greatest = 0;
    for (int i = 0; i < present; ++i) {
        const float* code = codebook + (first + i) * D;
        const Norms norms = quantise<F>(code, out.centre, D, bound.scale, false, words + i, kPanel);
        const double shift = out.has_norms ? centre_product(code, out.centre, D) : 0.0;
        const float value = static_cast<float>(shift - static_cast<double>(half_norms[first + i]));
        F::set_start(value, norms.sum, start[i], bias[i]);
        quantised = std::max(quantised, norms.quantised);
        bound.residual = std::max(bound.residual, norms.quantised + norms.residual);
        bound.quantised = std::max(bound.quantised, norms.residual);
        bound.chain = std::max(bound.chain, norms.original);
        heaviest = std::max(heaviest, half_norms[first + i]);
        greatest = std::max(greatest, std::abs(value));
    }
    for (int i = present; i < kPanel; ++i) F::set_padding(start[i], bias[i]);

    const float sums = F::roundings(out.steps) * kUnit, chain = static_cast<float>(D + 2) * kUnit;
    // The dot product with the centre was summed in float64: its rounding vanishes beside that of its result, but for
    // cancellation, which the last term covers.
    const float centre = out.has_norms ? largest(out.centre, nullptr, D) * std::sqrt(static_cast<float>(D)) : 0.0f;
    bound.constant = (chain * heaviest + sums * greatest + 0x1p-40f * centre * bound.residual + 0x1p-100f) * kOutward;
    bound.quantised = (bound.quantised + sums * quantised) * kOutward;
    bound.residual *= kOutward;
    bound.chain *= chain * kOutward;
    out.bounds[panel] = bound;
}

template <class F>
VQTOK_TARGET void prepare_latent(const float* latent, const vqtok::ScreenedCodebook& codebook,
                                 const vqtok::ScreenedTile& tile, int row) {
    const float* centre = codebook.has_norms ? codebook.centre : nullptr;
    tile.scale[row] = F::scale_of(F::scaled ? largest(latent, centre, codebook.D) : 1.0f);
    const Norms norms =
        quantise<F>(latent, centre, codebook.D, tile.scale[row], true, tile.words + row, tile.strips * kLanes);
    tile.residual[row] = norms.residual;
    tile.quantised[row] = norms.quantised;
    tile.length[row] = norms.original;
}

// A latent's list is full: what its floor has overtaken goes. If nothing goes, the float32 scan takes the latent.
inline void make_room(vqtok::Candidates& out, int row) {
    auto* const list = out.list[row];
    const auto* const end = std::remove_if(list, list + vqtok::kMaxCandidates,
                                           [&](const auto& candidate) { return candidate.upper < out.floor[row]; });
    out.count[row] = static_cast<int32_t>(end - list);
}

inline void note(vqtok::Candidates& out, int row, float upper, int64_t panel) {
    if (out.count[row] == vqtok::kMaxCandidates) make_room(out, row);
    if (out.count[row] < vqtok::kMaxCandidates)
        out.list[row][out.count[row]++] = {upper, static_cast<int32_t>(panel)};
    else
        out.count[row] = vqtok::kMaxCandidates + 1;
}

// The largest screened score of each latent over kCodes codes.
template <class F, int R>
VQTOK_TARGET inline __attribute__((always_inline)) void screen_block(const vqtok::ScreenedTile& tile,
                                                                    const vqtok::ScreenedCodebook& codebook,
                                                                    int64_t panel, int first, const __m512 (&scale)[R],
                                                                    typename F::Top (&top)[R]) {
    typename F::Sum sum[R][kCodes];
    const int32_t* start = codebook.start + panel * kPanel + first;
#pragma GCC unroll 16
    for (int c = 0; c < kCodes; ++c)
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) sum[r][c] = F::load_start(start + c);
    const int32_t* latents = tile.words;
    const int32_t* codes = codebook.panels + panel * codebook.steps * kPanel + first;
    for (int64_t s = 0; s < codebook.steps; ++s, latents += R * kLanes, codes += kPanel) {
        __m512i latent[R];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) latent[r] = _mm512_loadu_si512(latents + r * kLanes);
#pragma GCC unroll 16
        for (int c = 0; c < kCodes; ++c) {
            const __m512i code = _mm512_set1_epi32(codes[c]);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) sum[r][c] = F::multiply_add(latent[r], code, sum[r][c]);
        }
    }
    const float* bias = codebook.bias + panel * kPanel + first;
#pragma GCC unroll 16
    for (int c = 0; c < kCodes; ++c)
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) F::keep_larger(sum[r][c], scale[r], bias + c, top[r]);
}

template <class F, int R>
VQTOK_TARGET void screen_strips(const vqtok::ScreenedTile& tile, const vqtok::ScreenedCodebook& codebook,
                                vqtok::Candidates& out) {
    for (int64_t p = 0; p < codebook.panel_count; ++p) {
        const vqtok::PanelBound& bound = codebook.bounds[p];
        __m512 scale[R];
        typename F::Top top[R];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            scale[r] = _mm512_mul_ps(_mm512_loadu_ps(tile.scale + r * kLanes), _mm512_set1_ps(bound.scale));
            top[r] = F::least();
        }
        for (int c = 0; c < kPanel; c += kCodes) screen_block<F, R>(tile, codebook, p, c, scale, top);

        for (int r = 0; r < R; ++r) {
            const int at = r * kLanes;
            __m512 error = _mm512_set1_ps(bound.constant);
            error = _mm512_fmadd_ps(_mm512_loadu_ps(tile.residual + at), _mm512_set1_ps(bound.residual), error);
            error = _mm512_fmadd_ps(_mm512_loadu_ps(tile.quantised + at), _mm512_set1_ps(bound.quantised), error);
            error = _mm512_fmadd_ps(_mm512_loadu_ps(tile.length + at), _mm512_set1_ps(bound.chain), error);
            const __m512 value = F::value_of(top[r], scale[r]), floor = _mm512_loadu_ps(out.floor + at);
            const __m512 upper = _mm512_add_ps(value, error);
            // Not "upper >= floor": what is not a number must count as a candidate.
            unsigned kept = _mm512_cmp_ps_mask(upper, floor, _CMP_NLT_UQ);
            if (kept == 0) continue;  // nor can value - error raise the floor
            _mm512_storeu_ps(out.floor + at, _mm512_max_ps(_mm512_sub_ps(value, error), floor));
            alignas(64) float uppers[kLanes];
            _mm512_store_ps(uppers, upper);
            for (; kept != 0; kept &= kept - 1) {
                const int lane = __builtin_ctz(kept);
                note(out, at + lane, uppers[lane], p);
            }
        }
    }
}

template <class F, int R = kStrips>
VQTOK_TARGET void screen(const vqtok::ScreenedTile& tile, const vqtok::ScreenedCodebook& codebook,
                         vqtok::Candidates& out) {
    if constexpr (R > 1)
        if (tile.strips < R) return screen<F, R - 1>(tile, codebook, out);
    std::fill_n(out.floor, R * kLanes, -std::numeric_limits<float>::infinity());
    std::fill_n(out.count, R * kLanes, 0);
    screen_strips<F, R>(tile, codebook, out);
}

// W tasks at a time: one chain of fused multiply-adds would wait for its own results.
template <int W>
VQTOK_TARGET inline __attribute__((always_inline)) void decide_some(vqtok::PanelTask* tasks, const float* panels,
                                                                   const float* start, int64_t D) {
    __m512 score[W];
    const float* codes[W];
#pragma GCC unroll 16
    for (int w = 0; w < W; ++w) {
        codes[w] = panels + tasks[w].panel * D * kPanel;
        score[w] = _mm512_loadu_ps(start + static_cast<int64_t>(tasks[w].panel) * kPanel);
    }
    for (int64_t d = 0; d < D; ++d)
#pragma GCC unroll 16
        for (int w = 0; w < W; ++w)
            score[w] = _mm512_fmadd_ps(_mm512_set1_ps(tasks[w].latent[d]), _mm512_loadu_ps(codes[w] + d * kPanel), score[w]);
#pragma GCC unroll 16
    for (int w = 0; w < W; ++w) {
        // What is not a number never wins.
        const __mmask16 ordered = _mm512_cmp_ps_mask(score[w], score[w], _CMP_ORD_Q);
        score[w] = _mm512_mask_mov_ps(_mm512_set1_ps(-std::numeric_limits<float>::infinity()), ordered, score[w]);
        tasks[w].score = _mm512_reduce_max_ps(score[w]);
        const unsigned largest = _mm512_cmp_ps_mask(score[w], _mm512_set1_ps(tasks[w].score), _CMP_EQ_OQ);
        tasks[w].code = tasks[w].panel * kPanel + __builtin_ctz(largest);
    }
}

VQTOK_TARGET void decide(vqtok::PanelTask* tasks, int64_t count, const float* panels, const float* start, int64_t D) {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) decide_some<4>(tasks + i, panels, start, D);
    for (; i < count; ++i) decide_some<1>(tasks + i, panels, start, D);
}

template <class F>
constexpr vqtok::Screener screener_of(void (*scan)(const vqtok::ScreenedTile&, const vqtok::ScreenedCodebook&,
                                                   vqtok::Candidates&)) {
    return {kLanes, F::dims, prepare_codes<F>, prepare_latent<F>, scan, decide};
}

}  // namespace
