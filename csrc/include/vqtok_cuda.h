// The C interface of libvqtok_cuda: pointers and sizes, nothing of torch or Python. Loaded with ctypes (vqtok/ops/cuda.py).
// csrc/shim builds the same functions for the CPU: tests execute there what a GPU executes here.
//
// N: latents, K: codes, D: dimensions of a latent. Pointers are device pointers unless they say "host"; `stream` is a
// cudaStream_t. Nothing here allocates, synchronises or reads device memory on the host, so calls can be captured in a
// CUDA graph; scratch memory is the caller's: ask for its size, hand it in (256-byte aligned), free it when the stream
// is past the call. Results do not depend on the size of the machine or on the order in which blocks run.
#pragma once

#include <cstdint>

#define VQTOK_CUDA_API extern "C" __attribute__((visibility("default")))

// Raised whenever a signature below changes; the loader refuses any other number.
constexpr int32_t kVqtokCudaAbi = 1;

// What launchers return: 0, a cudaError_t, or one of these.
constexpr int32_t kVqtokTooMany = -1;     // N or K is beyond 2^31 - 1
constexpr int32_t kVqtokNoWorkspace = -2; // the workspace is too small

constexpr int32_t kVqtokFloat32 = 0, kVqtokFloat16 = 1, kVqtokBfloat16 = 2, kVqtokFloat64 = 3;
constexpr int32_t kVqtokMaxRank = 8;

// N rows of D floats in any strided layout, so that a [B, H, W, D] view of [B, D, H, W] is read where it lies. Sizes and
// strides (in elements) describe the leading dimensions; their product is N. A structure in host memory.
struct VqtokCudaRows {
    const void* data;
    int64_t sizes[kVqtokMaxRank];
    int64_t strides[kVqtokMaxRank];
    int64_t stride_d;
    int64_t N;
    int64_t D;
    int32_t rank;
    int32_t dtype;
};

VQTOK_CUDA_API int32_t vqtok_cuda_abi();

// The name of what a launcher returned, in host memory.
VQTOK_CUDA_API const char* vqtok_cuda_error(int32_t outcome);

// A codebook, row-major [K, D], and its half norms become one piece of memory (256-byte aligned) for any number of
// lookups. It is a copy.
VQTOK_CUDA_API int64_t vqtok_cuda_packed_bytes(int64_t K, int64_t D);
VQTOK_CUDA_API int32_t vqtok_cuda_pack(const float* codebook, const float* half_norms, int64_t K, int64_t D, void* packed,
                                       int64_t packed_bytes, void* stream);

// codes[n] = the lowest k with the largest score; the score starts at -half_norms[k] and takes one float32 fused
// multiply-add over d = 0..D-1. The first int32 of the workspace counts the latents of the last 2^20 rows that the
// screening could not decide.
VQTOK_CUDA_API int64_t vqtok_cuda_nearest_code_workspace(int64_t N, int64_t K, int64_t D);
VQTOK_CUDA_API int32_t vqtok_cuda_nearest_code(const VqtokCudaRows* latents, const void* packed, int64_t K,
                                               int64_t* codes, void* workspace, int64_t workspace_bytes, void* stream);

// counts[k] = rows with codes[n] == k; sums[k] = their sum, added in float64 in row order and rounded once. Codes
// outside 0..K-1 are left out. With a codebook (else null) not the rows z are summed but codebook[k] - z, a difference
// of float64 where one of them is and else of float32.
VQTOK_CUDA_API int64_t vqtok_cuda_code_statistics_workspace(int64_t N, int64_t K, int64_t D);
VQTOK_CUDA_API int32_t vqtok_cuda_code_statistics(const VqtokCudaRows* latents, const VqtokCudaRows* codebook,
                                                  const int64_t* codes, int64_t K, int64_t* counts, float* sums,
                                                  void* workspace, int64_t workspace_bytes, void* stream);

// vectors[n] = codebook[codes[n]], bit for bit and row-major; *loss = the mean of (vectors - latents)^2, float64 where
// an input is, else float32; 0 for N = 0. Every code must lie in 0..K-1.
VQTOK_CUDA_API int64_t vqtok_cuda_straight_through_workspace(int64_t N, int64_t D);
VQTOK_CUDA_API int32_t vqtok_cuda_straight_through(const VqtokCudaRows* latents, const VqtokCudaRows* codebook,
                                                   const int64_t* codes, void* vectors, void* loss, void* workspace,
                                                   int64_t workspace_bytes, void* stream);

// gradient[n] = of_vectors[n] - *weight (codebook[codes[n]] - latents[n]), one rounding an operation in float64 where an
// input is and else in float32, then rounded to the dtype of the latents; row-major. `weight` is of the loss's dtype.
VQTOK_CUDA_API int32_t vqtok_cuda_straight_through_backward(const VqtokCudaRows* of_vectors,
                                                            const VqtokCudaRows* latents,
                                                            const VqtokCudaRows* codebook, const int64_t* codes,
                                                            const void* weight, void* gradient, void* stream);
