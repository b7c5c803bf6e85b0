// AVX2: 8 floats at a time.
#include "kernel.h"

#if VQTOK_X86
#define VQTOK_TARGET __attribute__((target("avx2")))
#define VQTOK_LANES 8
#include "norm_columns.h"

const vqtok::NormKernels vqtok::kAvx2Norm{kKernel<float>, kKernel<uint16_t>};
#endif
