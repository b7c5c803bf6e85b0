// Reading strided rows of any element type.
#pragma once

#include <algorithm>
#include <cstdint>

#include "elements.h"
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

// Calls body(row, count, offset, stride) for stretches of rows that lie in one stride, in order.
template <class Body>
void for_each_run(const VqtokRows& rows, int64_t first, int64_t count, const Body& body) {
    const int64_t inner = rows.rank > 0 ? rows.sizes[rows.rank - 1] : 1;
    const int64_t stride = rows.rank > 0 ? rows.strides[rows.rank - 1] : 0;
    for (int64_t n = first, end = first + count; n < end;) {
        const int64_t length = std::min(end - n, inner - n % inner);
        body(n, length, row_offset(rows, n), stride);
        n += length;
    }
}

// Copies rows first..first+count-1 to out [count][D], each element rounded once to float.
inline void copy_rows(const VqtokRows& rows, int64_t first, int64_t count, float* out) {
    with_type(rows.type, [&](auto type) {
        using Type = decltype(type);
        const auto* data = static_cast<const typename Type::Stored*>(rows.data);
        const int64_t D = rows.D, stride_d = rows.stride_d;
        for_each_run(rows, first, count, [&](int64_t n, int64_t length, int64_t offset, int64_t stride) {
            float* target = out + (n - first) * D;
            if (stride_d == 1)
                for (int64_t r = 0; r < length; ++r)
                    for (int64_t d = 0; d < D; ++d) target[r * D + d] = Type::load(data[offset + r * stride + d]);
            else  // the rows of a BCHW view: neighbours in memory are neighbouring rows
                for (int64_t d = 0; d < D; ++d)
                    for (int64_t r = 0; r < length; ++r)
                        target[r * D + d] = Type::load(data[offset + r * stride + d * stride_d]);
        });
    });
}

// The first of rows [count][D] that holds NaN or infinity, or -1.
inline int64_t first_infinite(const float* rows, int64_t count, int64_t D) {
    constexpr uint32_t kExponent = 0x7f800000;
    for (int64_t r = 0; r < count; ++r) {
        uint32_t infinite = 0;
        for (int64_t d = 0; d < D; ++d)
            infinite |= static_cast<uint32_t>((bits_of(rows[r * D + d]) & kExponent) == kExponent);
        if (infinite != 0) return r;
    }
    return -1;
}

}  // namespace vqtok
