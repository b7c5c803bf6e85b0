// The C interface of libvqtok_cpu: pointers and sizes, nothing of torch or Python. Loaded with ctypes (vqtok/ops/native.py).
//
// N: latents, K: codes, D: dimensions of a latent.
#pragma once

#include <cstdint>

#if defined(_WIN32)
#define VQTOK_API extern "C" __declspec(dllexport)
#else
#define VQTOK_API extern "C" __attribute__((visibility("default")))
#endif

// Raised whenever a signature below changes; the loader refuses any other number.
constexpr int32_t kVqtokCpuAbi = 1;

// What the functions return. A value of 0 or more is the first row that holds NaN or infinity.
constexpr int64_t kDone = -1;
constexpr int64_t kNoMemory = -2;
constexpr int64_t kNoInstructionSet = -3;

// N rows of D floats in any strided layout, so that a [B, H, W, D] view of [B, D, H, W] is read where it lies.
// Sizes and strides (in elements) describe the leading dimensions; their product is N.
struct VqtokRows {
    const float* data;
    const int64_t* sizes;
    const int64_t* strides;
    int64_t rank;
    int64_t stride_d;
    int64_t N;
    int64_t D;
};

VQTOK_API int32_t vqtok_cpu_abi();

// Instruction sets from the plainest up: 0 "scalar", 1 "avx2", 2 "avx512".
// 1 when both this build and this processor have it.
VQTOK_API int32_t vqtok_cpu_has(int32_t instruction_set);

// codes[n] = the lowest k with the largest score; the score starts at -half_norms[k] and takes one float32 fused
// multiply-add over d = 0..D-1. `codebook` is row-major [K, D]. The result does not depend on `threads`.
VQTOK_API int64_t vqtok_nearest_code(const VqtokRows* latents, const float* codebook, const float* half_norms, int64_t K,
                                     int64_t* codes, int32_t threads, int32_t instruction_set);

// counts[k] = rows with codes[n] == k; sums[k] = their sum, added in float64 in row order and rounded once.
// Every code must lie in 0..K-1. The result does not depend on `threads`.
VQTOK_API int64_t vqtok_code_statistics(const VqtokRows* latents, const int64_t* codes, int64_t K, int64_t* counts,
                                        float* sums, int32_t threads);

// Operations a second (a multiply-add counts two) of independent float32 multiply-adds on so many threads, measured for
// so many seconds: what no kernel of this instruction set exceeds. 0 when the instruction set is missing.
VQTOK_API double vqtok_fma_peak(int32_t threads, double seconds, int32_t instruction_set);
