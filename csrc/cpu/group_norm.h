// What the kernels of one instruction set do for GroupNorm: sums down the columns of a small matrix, and its values
// normalised. A matrix is a few pixels by all channels (channels_last) or a stretch of one group in lanes (contiguous).
//
// No kernel contracts a product and a sum, and columns are added row by row: every instruction set gives the same bits.
#pragma once

#include <cstdint>

#include "kernel.h"

namespace vqtok {

// rows x columns elements of x, the rows one after the other.
struct Columns {
    const void* x;
    int64_t rows, columns;
};

// What each column is mapped by: (x - centre) * scale + shift, then SiLU where `silu`.
struct Affine {
    const float *centre, *scale, *shift;
    bool silu;
};

struct NormKernel {
    // sum[c] = the sum of column c.
    void (*sums)(const Columns&, float* sum);
    // sum[c] and square[c] = the sums of (x - centre[c]) and of its square.
    void (*deviations)(const Columns&, const float* centre, float* sum, float* square);
    void (*apply)(const Columns&, const Affine&, void* y);
    void (*apply_to_float32)(const Columns&, const Affine&, void* y);
    void (*widen)(const void* x, int64_t count, float* y);
};

// For elements of float32 and of bfloat16.
struct NormKernels {
    NormKernel of_float32, of_bfloat16;
};

const NormKernel& norm_kernel_for(int64_t type, int32_t instruction_set);

extern const NormKernels kPlainNorm;
#if VQTOK_X86
extern const NormKernels kAvx2Norm;
extern const NormKernels kAvx512Norm;
#endif

}  // namespace vqtok
