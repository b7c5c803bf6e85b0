// AVX-512F: 16 floats at a time.
#include "kernel.h"

#if VQTOK_X86
#define VQTOK_TARGET __attribute__((target("avx512f")))
#define VQTOK_LANES 16
#include "norm_columns.h"

const vqtok::NormKernels vqtok::kAvx512Norm{kKernel<float>, kKernel<uint16_t>};
#endif
