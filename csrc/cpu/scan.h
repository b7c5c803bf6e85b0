// The micro-kernel, written once over a small vector type. Each scan_*.cpp defines VQTOK_TARGET (the instruction set
// this translation unit may use) and a vector type V in an unnamed namespace, then includes this file.
//
// VQTOK_TARGET stands on every function instead of a compiler flag for the whole file: a flag would also reach inline
// functions of the standard library, and the linker may keep that copy for processors that cannot run it.
//
// V has: Float, Int (register types), lanes, rows, vectors, load, store, broadcast, splat, fma, keep_larger.

#ifndef VQTOK_TARGET
#error "define VQTOK_TARGET and the vector type before including scan.h"
#endif

namespace {

template <class V>
VQTOK_TARGET inline __attribute__((always_inline)) void scan_tile(const float* tile, const float* panel,
                                                                  const float* start, int64_t D, int32_t first_vector,
                                                                  float* best, int32_t* best_vector) {
    constexpr int R = V::rows, C = V::vectors, L = V::lanes;
    typename V::Float score[R][C];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) score[r][c] = V::load(start + c * L);

    // d is never split or reordered: one rounding a step, in this order, is what a score means.
    for (int64_t d = 0; d < D; ++d) {
        typename V::Float code[C];
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) code[c] = V::load(panel + d * (C * L) + c * L);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const typename V::Float latent = V::broadcast(tile + d * R + r);
#pragma GCC unroll 16
            for (int c = 0; c < C; ++c) score[r][c] = V::fma(latent, code[c], score[r][c]);
        }
    }

#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        typename V::Float top = V::load(best + r * L);
        typename V::Int top_vector = V::load(best_vector + r * L);
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) V::keep_larger(score[r][c], first_vector + c, top, top_vector);
        V::store(best + r * L, top);
        V::store(best_vector + r * L, top_vector);
    }
}

// Panels outside, tiles inside: a panel stays in L1 while the block of tiles, sized to L2 by the caller, passes by.
template <class V>
VQTOK_TARGET void scan(const vqtok::Scan& work) {
    constexpr int64_t width = V::vectors * V::lanes, state = V::rows * V::lanes;
    for (int64_t p = 0; p < work.panel_count; ++p)
        for (int64_t t = 0; t < work.tile_count; ++t)
            scan_tile<V>(work.tiles + t * work.D * V::rows, work.panels + p * work.D * width, work.start + p * width,
                         work.D, static_cast<int32_t>(p * V::vectors), work.best + t * state,
                         work.best_vector + t * state);
}

template <class V>
constexpr vqtok::Kernel kernel_of() {
    return {V::rows, V::vectors * V::lanes, V::lanes, scan<V>};
}

}  // namespace
