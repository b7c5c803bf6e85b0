// A codebook packed for the kernels: one block of memory that the caller owns and may keep.
#pragma once

#include <cstdint>

#include "screening.h"

namespace vqtok {

// Where the parts of a packed codebook lie; only vqtok_pack writes to them.
struct Packed {
    Packed(const void* memory, int64_t K, int64_t D, int32_t kind);
    // Reads the sizes from a block that vqtok_pack has filled; `valid` tells whether it is one.
    explicit Packed(const void* memory);

    bool valid() const { return header != nullptr; }

    struct Header {
        uint64_t magic;
        int64_t K, D;
        int32_t kind, has_norms;
    };
    Header* header;
    int64_t K, D, panel_count, bytes;
    float* panels;              // [panel_count][D][kPanel]
    float* start;               // [panel_count][kPanel]
    ScreenedCodebook screened;  // of kind bf16 or int8
    const Screener* screener;   // null where there is no screening
};

const Screener* screener_for(int32_t kind);

}  // namespace vqtok
