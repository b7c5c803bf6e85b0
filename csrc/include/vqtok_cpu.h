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
constexpr int32_t kVqtokCpuAbi = 2;

// What the functions return. A value of 0 or more is the first row that holds NaN or infinity.
constexpr int64_t kDone = -1;
constexpr int64_t kNoMemory = -2;
constexpr int64_t kNoInstructionSet = -3;
constexpr int64_t kNotPacked = -4;

// What rows hold.
constexpr int32_t kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat64 = 3;

// N rows of D numbers in any strided layout, so that a [B, H, W, D] view of [B, D, H, W] is read where it lies.
// Sizes and strides (in elements) describe the leading dimensions; their product is N.
struct VqtokRows {
    const void* data;
    const int64_t* sizes;
    const int64_t* strides;
    int64_t rank;
    int64_t stride_d;
    int64_t N;
    int64_t D;
    int32_t type;
};

VQTOK_API int32_t vqtok_cpu_abi();

// Instruction sets from the plainest up: 0 "scalar", 1 "avx2", 2 "avx512"; 3 "neon".
// 1 when both this build and this processor have it.
VQTOK_API int32_t vqtok_cpu_has(int32_t instruction_set);

// Kinds of screening: 0 none, 1 bfloat16, 2 int8. 1 when both this build and this processor have it.
VQTOK_API int32_t vqtok_cpu_screens(int32_t kind);

// half_norms[k] = half of row k's squared norm, summed in float64 over d = 0..D-1 and rounded once to float32.
VQTOK_API int64_t vqtok_half_squared_norms(const float* codebook, int64_t K, int64_t D, float* half_norms,
                                           int32_t threads);

// vectors[k] = row k divided by its length, in float64, rounded once to float32; rows of zeros stay zero.
VQTOK_API int64_t vqtok_normalize_codebook(const float* codebook, int64_t K, int64_t D, float* vectors, int32_t threads);

// Packs a codebook [K, D] and its half norms [K] for vqtok_nearest_code, into vqtok_packed_bytes bytes that the caller
// owns. They hold no pointers: they may be copied and kept.
VQTOK_API int64_t vqtok_packed_bytes(int64_t K, int64_t D, int32_t kind);
VQTOK_API int64_t vqtok_pack(const float* codebook, const float* half_norms, int64_t K, int64_t D, int32_t kind,
                             void* packed, int32_t threads);

// codes[n] = the lowest k with the largest score; the score starts at -half_norms[k] and takes one float32 fused
// multiply-add over d = 0..D-1. The codes depend neither on `threads` nor on how the codebook is screened.
// statistics: null, or int64 [3]: latents screened, panels of 16 codes scored for them, latents that screening could
// not decide.
VQTOK_API int64_t vqtok_nearest_code(const VqtokRows* latents, const void* packed, int64_t* codes, int32_t threads,
                                     int32_t instruction_set, int64_t* statistics);

// counts[k] = rows with codes[n] == k; sums[k] = their sum, added in float64 in row order and rounded once.
// Every code must lie in 0..K-1. The result does not depend on `threads`.
VQTOK_API int64_t vqtok_code_statistics(const VqtokRows* latents, const int64_t* codes, int64_t K, int64_t* counts,
                                        float* sums, int32_t threads);
