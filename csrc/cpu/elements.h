// Elements of the types that latents come in, as float and back; software, so that any processor does the same.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "vqtok_cpu.h"

namespace vqtok {

inline float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

struct Float32 {
    using Stored = float;
    static float load(float x) { return x; }
    static float store(float x) { return x; }
};

struct Float64 {
    using Stored = double;
    static float load(double x) { return static_cast<float>(x); }
    static double store(float x) { return x; }
};

struct BFloat16 {
    using Stored = uint16_t;
    static float load(uint16_t x) { return float_of(static_cast<uint32_t>(x) << 16); }
    static uint16_t store(float x) {
        const uint32_t bits = bits_of(x);
        if (std::isnan(x)) return 0x7fc0;
        return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to nearest, ties to even
    }
};

// All cases are computed and one is taken: branches would keep the compiler from making vectors of it.
struct Float16 {
    using Stored = uint16_t;
    static constexpr uint32_t kRebias = (127 - 15) << 23;
    static float load(uint16_t x) {
        constexpr uint32_t infinite = 0x1f << 23;
        const uint32_t half = x, magnitude = (half & 0x7fff) << 13, exponent = magnitude & infinite;
        // A denormal is the mantissa above 2^-14, which is then taken off.
        const uint32_t small = bits_of(float_of(magnitude + kRebias + (1 << 23)) - 0x1p-14f);
        const uint32_t large = magnitude + kRebias + (exponent == infinite ? kRebias : 0);
        return float_of((half & 0x8000) << 16 | (exponent == 0 ? small : large));
    }
    static uint16_t store(float x) {
        const uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffff;
        // A denormal: an addition rounds where the last bit of the half will be, to nearest and ties to even.
        const uint32_t small = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
        const uint32_t normal = (magnitude - kRebias + 0xfff + (magnitude >> 13 & 1)) >> 13;
        const uint32_t finite = magnitude < bits_of(0x1p-14f) ? small : normal;
        const uint32_t large = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
        return static_cast<uint16_t>((bits >> 16 & 0x8000) | (magnitude < bits_of(65520.0f) ? finite : large));
    }
};

// Calls body(Float32{}), body(BFloat16{}), ... as VqtokRows::type has it.
template <class Body>
auto with_type(int64_t type, const Body& body) {
    if (type == kBFloat16) return body(BFloat16{});
    if (type == kFloat16) return body(Float16{});
    if (type == kFloat64) return body(Float64{});
    return body(Float32{});
}

}  // namespace vqtok
