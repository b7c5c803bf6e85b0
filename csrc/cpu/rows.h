// Reading strided rows.
#pragma once

#include <cstdint>

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

}  // namespace vqtok
