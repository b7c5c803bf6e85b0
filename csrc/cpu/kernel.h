// One scan kernel an instruction set; nearest_code.cpp packs the data as the kernel asks and picks the kernel.
#pragma once

#include <cstdint>

#if defined(__FAST_MATH__)
#error "vqtok's codes are defined bit by bit: build without -ffast-math"
#endif

#if defined(__x86_64__) && !defined(VQTOK_PORTABLE)
#define VQTOK_X86 1
#else
#define VQTOK_X86 0
#endif

namespace vqtok {

// A tile is `rows` latents packed as [D][rows]; a panel is `width` codes packed as [D][width], width = lanes * vectors.
// Each latent keeps, for every lane, the best score so far and the number of the code vector it came from
// (code = number * lanes + lane), so the scan has no reduction across lanes; that happens once, at the end.
struct Scan {
    const float* tiles;          // [tile_count][D][rows]
    int64_t tile_count;
    const float* panels;         // [panel_count][D][width]
    const float* start;          // [panel_count][width], -half_norms; -infinity where the panel is padded
    int64_t panel_count;
    int64_t D;
    float* best;                 // [tile_count][rows][lanes]
    int32_t* best_vector;        // [tile_count][rows][lanes]
};

struct Kernel {
    int rows;
    int width;
    int lanes;
    void (*scan)(const Scan&);
};

extern const Kernel kScalarKernel;
#if VQTOK_X86
extern const Kernel kAvx2Kernel;
extern const Kernel kAvx512Kernel;
#endif

}  // namespace vqtok
