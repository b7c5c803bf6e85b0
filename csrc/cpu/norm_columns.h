// The kernels of group_norm.h, written once over the vectors of lanes.h.
#include "group_norm.h"
#include "lanes.h"

namespace {

// The same in one lane: a vector whose other lanes are idle, so that ends have the bits of what lies before them.
template <class Stored>
VQTOK_INLINE void load_one(const Stored* p, Floats& x) {
    Stored lanes[kLanes] = {};
    lanes[0] = *p;
    load(lanes, x);
}
template <class Stored>
VQTOK_INLINE void store_one(Stored* p, const Floats& x) {
    Stored lanes[kLanes];
    store(lanes, x);
    *p = lanes[0];
}

// e^x for x in -87.3 .. 88.0, within two units in the last place: 2^n p(r), |r| <= ln(2) / 2, n ln(2) taken off in two
// parts of which the first has bits to spare.
VQTOK_INLINE void exponential(const Floats& x, Floats& result) {
    constexpr float kToInteger = 0x1.8p23f;  // adding it rounds to an integer, which then stands in the lowest bits
    const Floats shifted = x * 0x1.715476p0f + kToInteger, n = shifted - kToInteger;
    const Floats r = (x - n * 0x1.62ep-1f) - n * 0x1.0bfbe8p-15f;
    Floats p = r * 0x1.6c16c2p-10f + 0x1.111112p-7f;  // Taylor's 1/720 and 1/120: the remainder is below 2^-26
    p = p * r + 0x1.555556p-5f;
    p = p * r + 0x1.555556p-3f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    Words bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000;
    Floats power;
    std::memcpy(&power, &bits, sizeof power);
    result = p * power;
}

// x / (1 + e^-x). Not a number stays one: no comparison holds for it.
VQTOK_INLINE void silu(Floats& x) {
    const Floats highest = Floats{} + 88.0f, lowest = Floats{} - 87.0f;
    Floats y = -x;
    y = y > highest ? highest : y;
    y = y < lowest ? lowest : y;
    Floats e;
    exponential(y, e);
    x = x / (e + 1.0f);
}

// Columns first .. first + V * kLanes - 1, which stay in registers while the rows go by.
template <int V, class Stored>
VQTOK_INLINE void sum_strip(const Stored* x, int64_t rows, int64_t stride, float* sum) {
    Floats total[V] = {};
    for (int64_t r = 0; r < rows; ++r, x += stride)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
            Floats value;
            load(x + v * kLanes, value);
            total[v] += value;
        }
    for (int v = 0; v < V; ++v) store(sum + v * kLanes, total[v]);
}

template <int V, class Stored>
VQTOK_INLINE void deviate_strip(const Stored* x, int64_t rows, int64_t stride, const float* centre, float* sum, float* square) {
    Floats middle[V], total[V] = {}, squares[V] = {};
    for (int v = 0; v < V; ++v) load(centre + v * kLanes, middle[v]);
    for (int64_t r = 0; r < rows; ++r, x += stride)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
            Floats value;
            load(x + v * kLanes, value);
            value -= middle[v];
            total[v] += value;
            squares[v] += value * value;
        }
    for (int v = 0; v < V; ++v) {
        store(sum + v * kLanes, total[v]);
        store(square + v * kLanes, squares[v]);
    }
}

template <class Stored>
VQTOK_TARGET void sums(const vqtok::Columns& work, float* sum) {
    const auto* x = static_cast<const Stored*>(work.x);
    const int64_t C = work.columns;
    int64_t c = 0;
    for (; c + 4 * kLanes <= C; c += 4 * kLanes) sum_strip<4>(x + c, work.rows, C, sum + c);
    for (; c + kLanes <= C; c += kLanes) sum_strip<1>(x + c, work.rows, C, sum + c);
    for (; c < C; ++c) {
        Floats total = {}, value;
        for (int64_t r = 0; r < work.rows; ++r) {
            load_one(x + r * C + c, value);
            total += value;
        }
        store_one(sum + c, total);
    }
}

template <class Stored>
VQTOK_TARGET void deviations(const vqtok::Columns& work, const float* centre, float* sum, float* square) {
    const auto* x = static_cast<const Stored*>(work.x);
    const int64_t C = work.columns;
    int64_t c = 0;
    for (; c + 4 * kLanes <= C; c += 4 * kLanes)
        deviate_strip<4>(x + c, work.rows, C, centre + c, sum + c, square + c);
    for (; c + kLanes <= C; c += kLanes) deviate_strip<1>(x + c, work.rows, C, centre + c, sum + c, square + c);
    for (; c < C; ++c) {
        Floats total = {}, squares = {}, middle, value;
        load_one(centre + c, middle);
        for (int64_t r = 0; r < work.rows; ++r) {
            load_one(x + r * C + c, value);
            value -= middle;
            total += value;
            squares += value * value;
        }
        store_one(sum + c, total);
        store_one(square + c, squares);
    }
}

template <bool kSilu>
VQTOK_INLINE void map(Floats& x, const Floats& centre, const Floats& scale, const Floats& shift) {
    x = (x - centre) * scale + shift;
    if constexpr (kSilu) silu(x);
}

template <bool kSilu, class Stored, class Result>
VQTOK_TARGET void apply_as(const vqtok::Columns& work, const vqtok::Affine& by, Result* y) {
    const auto* x = static_cast<const Stored*>(work.x);
    const int64_t C = work.columns;
    Floats value, centre, scale, shift;
    for (int64_t r = 0; r < work.rows; ++r, x += C, y += C) {
        int64_t c = 0;
        for (; c + kLanes <= C; c += kLanes) {
            load(x + c, value), load(by.centre + c, centre), load(by.scale + c, scale), load(by.shift + c, shift);
            map<kSilu>(value, centre, scale, shift);
            store(y + c, value);
        }
        for (; c < C; ++c) {
            load_one(x + c, value), load_one(by.centre + c, centre);
            load_one(by.scale + c, scale), load_one(by.shift + c, shift);
            map<kSilu>(value, centre, scale, shift);
            store_one(y + c, value);
        }
    }
}

template <class Stored, class Result>
VQTOK_TARGET void apply(const vqtok::Columns& work, const vqtok::Affine& by, void* y) {
    auto* to = static_cast<Result*>(y);
    by.silu ? apply_as<true, Stored>(work, by, to) : apply_as<false, Stored>(work, by, to);
}

template <class Stored>
VQTOK_TARGET void widen(const void* x, int64_t count, float* y) {
    const auto* from = static_cast<const Stored*>(x);
    Floats value;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) load(from + i, value), store(y + i, value);
    for (; i < count; ++i) load_one(from + i, value), store_one(y + i, value);
}

template <class Stored>
constexpr vqtok::NormKernel kKernel{sums<Stored>, deviations<Stored>, apply<Stored, Stored>, apply<Stored, float>,
                                      widen<Stored>};

}  // namespace
