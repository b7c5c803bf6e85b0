// The instruction set that the compiler builds for: SSE2, NEON, or none.
#define VQTOK_TARGET
#define VQTOK_LANES 4
#include "norm_columns.h"

const vqtok::NormKernels vqtok::kPlainNorm{kKernel<float>, kKernel<uint16_t>};
