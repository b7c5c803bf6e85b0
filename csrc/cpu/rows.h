// Reading strided rows of any floating type as float32.
#pragma once

#include <cstdint>
#include <cstring>

#include "vqtok_cpu.h"

namespace vqtok {

// Where row n begins, in elements from data.
inline int64_t row_offset(const VqtokRows& rows, int64_t n) {
    int64_t offset = 0;
    for (int64_t i = rows.rank - 1; i > 0; --i) {
        offset += n % rows.sizes[i] * rows.strides[i];
        n /= rows.sizes[i];
    }
    return rows.rank > 0 ? offset + n * rows.strides[0] : offset;
}

struct Half {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(double x) { return static_cast<float>(x); }
inline float to_float(BFloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}
inline float to_float(Half x) {
    const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
    // Half's exponent and fraction, moved to float32's place, are the number divided by 2^112: denormals included.
    uint32_t bits = magnitude << 13;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    result *= 0x1p112f;
    std::memcpy(&bits, &result, sizeof result);
    bits |= sign | (magnitude >= 0x7c00 ? 0x7f800000 : 0);  // infinity, and what is not a number stays none
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

// Copies rows first..first+count-1 to out [count][D]; returns the first of them that is not finite, or -1.
template <class T>
int64_t load_rows_of(const VqtokRows& rows, int64_t first, int64_t count, float* out) {
    const T* const data = static_cast<const T*>(rows.data);
    int64_t bad = -1;
    for (int64_t r = count - 1; r >= 0; --r) {
        const T* source = data + row_offset(rows, first + r);
        float* target = out + r * rows.D;
        if (rows.stride_d == 1)  // the compiler makes vectors of this one
            for (int64_t d = 0; d < rows.D; ++d) target[d] = to_float(source[d]);
        else
            for (int64_t d = 0; d < rows.D; ++d) target[d] = to_float(source[d * rows.stride_d]);
        uint32_t infinite = 0;  // 1 where an exponent has all bits set
        for (int64_t d = 0; d < rows.D; ++d) {
            uint32_t bits;
            std::memcpy(&bits, target + d, sizeof bits);
            infinite |= static_cast<uint32_t>((bits & 0x7f800000) == 0x7f800000);
        }
        if (infinite != 0) bad = first + r;
    }
    return bad;
}

inline int64_t load_rows(const VqtokRows& rows, int64_t first, int64_t count, float* out) {
    switch (rows.type) {
        case kFloat16: return load_rows_of<Half>(rows, first, count, out);
        case kBFloat16: return load_rows_of<BFloat16>(rows, first, count, out);
        case kFloat64: return load_rows_of<double>(rows, first, count, out);
        default: return load_rows_of<float>(rows, first, count, out);
    }
}

}  // namespace vqtok
