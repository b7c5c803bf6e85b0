// The deciding scan, written once over a small vector type. Each scan_*.cpp defines VQTOK_TARGET (the instruction set
// this translation unit may use) and a vector type V in an unnamed namespace, then includes this file.
//
// VQTOK_TARGET stands on every function instead of a compiler flag for the whole file: a flag would also reach inline
// functions of the standard library, and the linker may keep that copy for processors that cannot run it.
//
// V has: Float, Int (register types), lanes, strips, codes (at a time; divides kPanel), load, store, broadcast, splat,
// next, fma, keep_larger.

#ifndef VQTOK_TARGET
#error "define VQTOK_TARGET and the vector type before including scan.h"
#endif

namespace {

// R strips of latents against V::codes codes, whose numbers begin with `number`.
template <class V, int R>
VQTOK_TARGET inline __attribute__((always_inline)) void scan_block(const float* latents, int64_t D, const float* panel,
                                                                  const float* start, typename V::Int number,
                                                                  float* best, int32_t* best_code) {
    constexpr int C = V::codes, L = V::lanes;
    typename V::Float score[R][C];
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) score[r][c] = V::broadcast(start + c);

    // d is never split or reordered: one rounding a step, in this order, is what a score means.
    for (int64_t d = 0; d < D; ++d, latents += R * L, panel += vqtok::kPanel) {
        typename V::Float latent[R];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) latent[r] = V::load(latents + r * L);
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) {
            const typename V::Float code = V::broadcast(panel + c);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) score[r][c] = V::fma(latent[r], code, score[r][c]);
        }
    }

    typename V::Float top[R];
    typename V::Int top_code[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        top[r] = V::load(best + r * L);
        top_code[r] = V::load(best_code + r * L);
    }
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) V::keep_larger(score[r][c], number, top[r], top_code[r]);
        number = V::next(number);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        V::store(best + r * L, top[r]);
        V::store(best_code + r * L, top_code[r]);
    }
}

template <class V, int R>
VQTOK_TARGET void scan_strips(const vqtok::Scan& work) {
    constexpr int width = R * V::lanes;
    for (int64_t p = 0; p < work.panel_count; ++p)
        for (int t = 0; t < work.tile_count; ++t)
            for (int c = 0; c < vqtok::kPanel; c += V::codes)
                scan_block<V, R>(work.tiles + t * work.D * width, work.D, work.panels + p * work.D * vqtok::kPanel + c,
                                 work.start + p * vqtok::kPanel + c, V::splat(static_cast<int32_t>(p * vqtok::kPanel + c)),
                                 work.best + t * width, work.best_code + t * width);
}

// Fewer strips than a full tile has: what is left at the end of the latents.
template <class V, int R = V::strips>
VQTOK_TARGET void scan(const vqtok::Scan& work) {
    if constexpr (R > 1)
        if (work.strips < R) return scan<V, R - 1>(work);
    scan_strips<V, R>(work);
}

template <class V>
constexpr vqtok::Kernel kernel_of() {
    static_assert(vqtok::kPanel % V::codes == 0 && V::strips <= vqtok::kMaxStrips);
    static_assert(V::strips * V::lanes <= vqtok::kMaxTile);
    return {V::lanes, V::strips, scan<V>};
}

}  // namespace
