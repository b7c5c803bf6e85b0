// Reading and writing floats of four dtypes, in strided rows.
#pragma once

#include "ptx.h"
#include "vqtok_cuda.h"

namespace vqtok {

// Where row n begins, in elements from data.
VQTOK_DEVICE int64_t row_offset(const VqtokCudaRows& rows, int64_t n) {
    if (rows.rank == 1) return n * rows.strides[0];
    int64_t offset = 0;
    for (int i = rows.rank - 1; i > 0; --i) {
        offset += n % rows.sizes[i] * rows.strides[i];
        n /= rows.sizes[i];
    }
    return rows.rank > 0 ? offset + n * rows.strides[0] : offset;
}

VQTOK_DEVICE float from_bfloat16(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }

// The bits of a float32 rounded to bfloat16, to nearest even.
VQTOK_DEVICE uint16_t to_bfloat16(float x) {
    const uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

VQTOK_DEVICE float load_float(const void* data, int32_t dtype, int64_t i) {
    switch (dtype) {
        case kVqtokFloat32: return static_cast<const float*>(data)[i];
        case kVqtokFloat16: return from_half(static_cast<const uint16_t*>(data)[i]);
        case kVqtokBfloat16: return from_bfloat16(static_cast<const uint16_t*>(data)[i]);
        default: return static_cast<float>(static_cast<const double*>(data)[i]);
    }
}

VQTOK_DEVICE double load_double(const void* data, int32_t dtype, int64_t i) {
    return dtype == kVqtokFloat64 ? static_cast<const double*>(data)[i] : load_float(data, dtype, i);
}

// Rounds once: `x` is a float32 or, for float64 data, a float64.
template <class Real>
VQTOK_DEVICE void store_real(void* data, int32_t dtype, int64_t i, Real x) {
    switch (dtype) {
        case kVqtokFloat32: static_cast<float*>(data)[i] = static_cast<float>(x); break;
        case kVqtokFloat16: static_cast<uint16_t*>(data)[i] = to_half(static_cast<float>(x)); break;
        case kVqtokBfloat16: static_cast<uint16_t*>(data)[i] = to_bfloat16(static_cast<float>(x)); break;
        default: static_cast<double*>(data)[i] = x;
    }
}

}  // namespace vqtok
