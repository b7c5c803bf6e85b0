// What the kernels of one instruction set do for a 3 x 3 convolution by Winograd's minimal filtering F(2 x 2, 3 x 3): a
// tile of 4 x 4 input pixels and the 3 x 3 weights are each mapped to 16 numbers, whose products, summed over the input
// channels, are mapped back to 2 x 2 output pixels. 16 multiplications in the place of 36; all factors of the maps are 0,
// 1, -1 and 1/2.
//
// C: input channels, N: output channels, T: tiles of a step.
#pragma once

#include <cstdint>

#include "kernel.h"

namespace vqtok {

constexpr int kPoints = 16;        // numbers a tile or a pair of channels is mapped to
constexpr int kOutputs = 32;       // output channels that a panel of weights has
constexpr int kChannelMultiple = 16;

// Where the 2 x 2 pixels of a row of tiles go; what is added to them.
struct TileRow {
    const float* bias;     // [kOutputs] or null
    const void* residual;  // as y, or null
    void* y;               // the first pixel's first channel of the panel
    int64_t row, pixel;    // elements from one row and one pixel of y to the next
    int64_t rows, pixels;  // that y has from here on, at most 2 and at most 2 * tiles
};

// Points and weights are words of 32 bits, which hold one channel in float32 or two in bfloat16.
struct ConvKernel {
    int channels;  // in a word
    // points[p][tile][C], p_stride words apart, of `tiles` tiles in a row whose 4 pixel rows begin row_stride apart.
    void (*map_input)(const float* pixels, int64_t row_stride, int64_t tiles, int64_t C, float* points, int64_t p_stride);
    // products[T][kOutputs] = points[T][words] x weights[words][kOutputs], added word by word in float32.
    void (*multiply)(const float* points, int64_t T, int64_t words, const float* weights, float* products);
    // From products[p][tile][kOutputs], p_stride apart.
    void (*map_output_float32)(const float* products, int64_t p_stride, int64_t tiles, const TileRow& to);
    void (*map_output_bfloat16)(const float* products, int64_t p_stride, int64_t tiles, const TileRow& to);
};

#if VQTOK_X86
extern const ConvKernel kAvx2Conv;
extern const ConvKernel kAvx512Conv;
#endif
#if VQTOK_X86_BF16
extern const ConvKernel kBf16Conv;
#endif

}  // namespace vqtok
