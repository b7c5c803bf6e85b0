// What the kernels of one instruction set work on. Latents stand in the lanes of vector registers, codes are broadcast:
// the running best of a latent stays in its lane, and no step reduces across lanes.
//
// N: latents, K: codes, D: dimensions of a latent.
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

// GCC 8 and 9 know no bfloat16 instructions.
#if VQTOK_X86 && (defined(__clang__) || __GNUC__ >= 10)
#define VQTOK_X86_BF16 1
#else
#define VQTOK_X86_BF16 0
#endif

#if defined(__aarch64__) && !defined(VQTOK_PORTABLE)
#define VQTOK_ARM64 1
#else
#define VQTOK_ARM64 0
#endif

namespace vqtok {

constexpr int kPanel = 16;      // codes in a panel
constexpr int kMaxStrips = 6;   // registers of latents in a tile, at most
constexpr int kMaxTile = 48;    // latents in a tile, at most

constexpr int kTogether = 4;    // tiles that share a panel while it lies in the first-level cache

// Tiles of latents against all panels of codes. A strip is one register of latents.
struct Scan {
    const float* tiles;   // [tile_count][D][strips * lanes]
    int tile_count, strips;
    const float* panels;  // [panel_count][D][kPanel]
    const float* start;   // [panel_count][kPanel]: -half_norms; -infinity where the last panel is padded
    int64_t panel_count;
    int64_t D;
    float* best;          // [tile_count][strips * lanes], the largest score
    int32_t* best_code;   // [tile_count][strips * lanes], the lowest code that has it
};

// The kernel that decides: float32, one fused multiply-add over d = 0..D-1.
struct Kernel {
    int lanes;
    int strips;  // of a full tile
    void (*scan)(const Scan&);
};

extern const Kernel kScalarKernel;
#if VQTOK_X86
extern const Kernel kAvx2Kernel;
extern const Kernel kAvx512Kernel;
#endif
#if VQTOK_ARM64
extern const Kernel kNeonKernel;
#endif

}  // namespace vqtok
