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

// Types of elements, as in vqtok_cuda.h.
constexpr int64_t kFloat32 = 0;
constexpr int64_t kFloat16 = 1;
constexpr int64_t kBFloat16 = 2;
constexpr int64_t kFloat64 = 3;

// N rows of D elements in any strided layout, so that a [B, H, W, D] view of [B, D, H, W] is read where it lies.
// Sizes and strides (in elements) describe the leading dimensions; their product is N. `data` points to elements of
// `type`; float64 is rounded to float32, and only the lookup takes it.
struct VqtokRows {
    const void* data;
    const int64_t* sizes;
    const int64_t* strides;
    int64_t rank;
    int64_t stride_d;
    int64_t N;
    int64_t D;
    int64_t type;
};

VQTOK_API int32_t vqtok_cpu_abi();

// Instruction sets from the plainest up: 0 "scalar", 1 "avx2", 2 "avx512"; 3 "neon".
// 1 when both this build and this processor have it.
VQTOK_API int32_t vqtok_cpu_has(int32_t instruction_set);

// Kinds of screening: 0 none, 1 bfloat16, 2 int8. 1 when both this build and this processor have it.
VQTOK_API int32_t vqtok_cpu_screens(int32_t kind);

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
// Latents of any type. Every code must lie in 0..K-1. The result does not depend on `threads`.
VQTOK_API int64_t vqtok_code_statistics(const VqtokRows* latents, const int64_t* codes, int64_t K, int64_t* counts,
                                        float* sums, int32_t threads);

// vectors[n] = row codes[n] of `codebook` [K, D]; *squared_error = the sum of squared differences from the latents (of
// any type), in float64 over fixed blocks of rows. The result does not depend on `threads`.
VQTOK_API int64_t vqtok_passage(const VqtokRows* latents, const float* codebook, const int64_t* codes, float* vectors,
                                double* squared_error, int32_t threads);

// of_latents [N, D], of the latents' type: what the vectors' gradient (float32) is to the latents, passed straight
// through (`rotated` 0) or rotated (1), plus weight * (latent - vector).
VQTOK_API int64_t vqtok_passage_backward(const VqtokRows* gradient, const VqtokRows* latents, const float* codebook,
                                         const int64_t* codes, float weight, int32_t rotated, void* of_latents,
                                         int32_t threads);

// of_codebook [K, D] = weight * (the sum of vector - latent over the rows of a code, as vqtok_code_statistics adds).
VQTOK_API int64_t vqtok_codebook_backward(const VqtokRows* latents, const float* codebook, const int64_t* codes,
                                          int64_t K, float weight, float* of_codebook, int32_t threads);

// half_norms[k] = half of row k's squared norm; unit_rows[k] = row k over its norm, zeros stay. Squares are added in
// float64 over d = 0..D-1; every result is rounded once.
VQTOK_API int64_t vqtok_half_squared_norms(const float* codebook, int64_t K, int64_t D, float* half_norms,
                                           int32_t threads);
VQTOK_API int64_t vqtok_normalize_codebook(const float* codebook, int64_t K, int64_t D, float* unit_rows,
                                           int32_t threads);

// unit[n] = latent n over its length, or over 1e-12 where it is shorter; and the gradient of that, of the latents' type.
VQTOK_API int64_t vqtok_unit_latents(const VqtokRows* latents, float* unit, int32_t threads);
VQTOK_API int64_t vqtok_unit_latents_backward(const VqtokRows* gradient, const VqtokRows* latents, void* of_latents,
                                              int32_t threads);

// One step of moving averages over a batch's statistics, in float32 as written:
//   new_size = decay * size + (1 - decay) * counts,  new_sum = decay * sum + (1 - decay) * sums,
//   mean = new_sum / ((new_size + epsilon) / (total + K * epsilon) * total),  total = the sum of new_size.
// Where `unit` is 1 the mean is divided by its norm as vqtok_normalize_codebook does. `codebook` [K, D] holds the old
// rows, `new_codebook` gets the means, and the old row where new_size is 0.
struct VqtokEma {
    const float* size;
    const float* sum;
    const float* codebook;
    const float* counts;
    const float* sums;
    float* new_size;
    float* new_sum;
    float* new_codebook;
    int64_t K;
    int64_t D;
    double decay;
    double epsilon;
    int64_t unit;
};
VQTOK_API int64_t vqtok_ema_update(const VqtokEma* step, int32_t threads);

// codes[n] and vectors[n] of finite scalar quantization: digit d is how many of the levels[d] - 1 ascending thresholds
// of dimension d (one dimension's after the other's) latent n has reached, vectors have (digit - L / 2) / (L / 2), and
// the first digit of a code is the fastest. Latents of any type.
VQTOK_API int64_t vqtok_finite_scalar(const VqtokRows* latents, const float* thresholds, const int64_t* levels,
                                      int64_t* codes, float* vectors, int32_t threads);

// [B, N] rows of D elements of `bytes` bytes each; strides in elements.
struct VqtokGrid {
    const void* data;
    int64_t B;
    int64_t N;
    int64_t D;
    int64_t stride_b;
    int64_t stride_n;
    int64_t stride_d;
    int64_t bytes;
};

// Rows whose `keep` [B, N] is true, one after the other, and how many each of the B has.
VQTOK_API int64_t vqtok_compact(const VqtokGrid* values, const bool* keep, void* compacted, int64_t* lengths,
                                int32_t threads);

// The other way: rows [B, N] of `row` bytes, in order where `mask` is true and `fill` (one row) elsewhere.
VQTOK_API int64_t vqtok_spread(const void* values, const bool* mask, const void* fill, int64_t B, int64_t N,
                               int64_t row, void* rows, int32_t threads);

// GroupNorm over images of `pixels` pixels and C channels, `groups` groups of C / groups neighbouring channels each: the
// mean and the (biased) variance of a group in one image, y = (x - mean) / sqrt(variance + eps) * weight + bias, then
// y / (1 + e^-y) where `silu` is 1. x and y are dense, [B][pixels][C] where `channels_last` is 1 and else
// [B][C][pixels], of float32 or bfloat16; weight and bias are float32 [C] or null. What an image gives depends on
// itself alone, and not on `threads` or `instruction_set`. `affine`, unless null, is given what vqtok_conv3x3 takes,
// float32 [B][3][C], and y may then be null.
struct VqtokGroupNorm {
    const void* x;
    void* y;
    const float* weight;
    const float* bias;
    float* affine;
    int64_t B;
    int64_t pixels;
    int64_t C;
    int64_t groups;
    int64_t channels_last;
    int64_t silu;
    int64_t type;
    double eps;
};
VQTOK_API int64_t vqtok_group_norm(const VqtokGroupNorm* work, int32_t threads, int32_t instruction_set);

// A 3 x 3 convolution with a border of one zero, of x [B][H][W][C] to y [B][H'][W'][N], both of `type` float32 or
// bfloat16: y = weights * f(x) + bias + residual, summed in float32 by Winograd's F(2 x 2, 3 x 3). f is the identity, or
// GroupNorm and SiLU as vqtok_group_norm's `affine` has it; or, where `doubled` is 1, it repeats each pixel twice each
// way, and H' = 2 H, W' = 2 W (else H' = H, W' = W). `residual`, null or as y, may be y itself. C is a multiple of 16 and
// N of 32. The result depends on neither `threads` nor `instruction_set` (at least "avx2").
struct VqtokConv3x3 {
    const void* x;
    void* y;
    const void* weights;   // of vqtok_pack_conv3x3
    const float* bias;     // [N] or null
    const void* residual;
    const float* affine;   // [B][3][C] or null
    int64_t B;
    int64_t H;
    int64_t W;
    int64_t C;
    int64_t N;
    int64_t doubled;
    int64_t type;
    int64_t bfloat16;      // as in vqtok_pack_conv3x3
};
VQTOK_API int64_t vqtok_conv3x3(const VqtokConv3x3* work, int32_t threads, int32_t instruction_set);

// packed, 16 C N numbers of float32, or of bfloat16 where that is 1, from weights float32 [N][C][3][3]. With the latter
// the products are of bfloat16.
VQTOK_API int64_t vqtok_pack_conv3x3(const float* weights, int64_t C, int64_t N, int32_t bfloat16, void* packed,
                                     int32_t threads);

// 1 when both this build and this processor can do that.
VQTOK_API int32_t vqtok_cpu_convolves(int32_t instruction_set, int32_t bfloat16);

// Operations a second (a multiply-add counts two) of independent float32 multiply-adds on so many threads, measured for
// so many seconds: what no kernel of this instruction set exceeds. 0 when the instruction set is missing.
VQTOK_API double vqtok_fma_peak(int32_t threads, double seconds, int32_t instruction_set);
