// Elements of the three types that latents come in, as float and back; software, so that any processor does the same.
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

struct BFloat16 {
    using Stored = uint16_t;
    static float load(uint16_t x) { return float_of(static_cast<uint32_t>(x) << 16); }
    static uint16_t store(float x) {
        const uint32_t bits = bits_of(x);
        if (std::isnan(x)) return 0x7fc0;
        return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to nearest, ties to even
    }
};

struct Float16 {
    using Stored = uint16_t;
    static float load(uint16_t x) {
        constexpr uint32_t rebias = (127 - 15) << 23, infinite = 0x1f << 23;
        const uint32_t sign = static_cast<uint32_t>(x & 0x8000) << 16, magnitude = static_cast<uint32_t>(x & 0x7fff) << 13;
        const uint32_t exponent = magnitude & infinite;
        if (exponent == infinite) return float_of(sign | (magnitude + 2 * rebias));
        if (exponent != 0) return float_of(sign | (magnitude + rebias));
        // Denormal: as the mantissa above 2^-14, which is then taken off.
        return float_of(sign | bits_of(float_of(magnitude + rebias + (1 << 23)) - 0x1p-14f));
    }
    static uint16_t store(float x) {
        const uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffff;
        const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
        if (magnitude > 0x7f800000) return sign | 0x7e00;
        if (magnitude >= bits_of(65520.0f)) return sign | 0x7c00;
        // Denormal: an addition rounds where the last bit of the half will be, to nearest and ties to even.
        if (magnitude < bits_of(0x1p-14f)) return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
        constexpr uint32_t rebias = (127 - 15) << 23;
        return static_cast<uint16_t>(sign | (magnitude - rebias + 0xfff + (magnitude >> 13 & 1)) >> 13);
    }
};

// Calls body(Float32{}), body(BFloat16{}) or body(Float16{}), as VqtokRows::type has it.
template <class Body>
auto with_type(int64_t type, const Body& body) {
    if (type == kBFloat16) return body(BFloat16{});
    if (type == kFloat16) return body(Float16{});
    return body(Float32{});
}

}  // namespace vqtok
