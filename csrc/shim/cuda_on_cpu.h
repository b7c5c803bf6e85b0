// CUDA on a CPU, as far as csrc/cuda needs it: blocks run one after the other, every thread of a block is a fiber, and
// fibers change places only where threads meet (__syncthreads, warp collectives). The order in which fibers and blocks
// run is shuffled by a seed, shared memory is full of NaN when a block begins, and an asynchronous copy arrives only
// when it is awaited: what a forgotten barrier or wait would read is then wrong, not right by luck.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __restrict__

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 8;

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(8) float2 {
    float x, y;
};

namespace vqtok_shim {

// What the launch is and which thread of it runs; only the scheduler writes here.
extern dim3 grid_dim, block_dim, block_idx, thread_idx;

void run(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(const void*), const void* context);

template <class Body>
void launch(dim3 grid, dim3 block, size_t shared_bytes, const Body& body) {
    run(grid, block, shared_bytes, [](const void* context) { (*static_cast<const Body*>(context))(); }, &body);
}

char* shared_memory();
void sync_threads(int line);
cudaError_t take_error();

// Of a piece of a workspace: the gap that follows it is nobody's, and the address sanitizer sees who reads there.
void fence(const void* piece, int64_t bytes, int64_t gap);

// Every lane of the warp hands in `bytes` bytes at `mine`; each gets all 32 lanes' at the returned place, valid until
// its next collective but one. `line` tells collectives apart: all lanes must stand at the same one.
const char* exchange(const void* mine, size_t bytes, int line);
constexpr size_t kLaneBytes = 48;

template <class T>
T shuffle(T mine, int source, int line) {
    T theirs;
    std::memcpy(&theirs, exchange(&mine, sizeof(T), line) + (source & 31) * kLaneBytes, sizeof(T));
    return theirs;
}
unsigned ballot(bool mine, int line);
int lane();

uint16_t to_half(float x);
float from_half(uint16_t bits);
void multiply_tiles(float (&d)[4], const uint4& a, uint32_t b0, uint32_t b1, const float (&c)[4]);
void copy_async(void* shared, const void* global);
void end_copies();
void await_copies(int pending);

}  // namespace vqtok_shim

#define gridDim vqtok_shim::grid_dim
#define blockDim vqtok_shim::block_dim
#define blockIdx vqtok_shim::block_idx
#define threadIdx vqtok_shim::thread_idx
#define __syncthreads() vqtok_shim::sync_threads(__LINE__)
#define __shfl_sync(mask, value, source) vqtok_shim::shuffle(value, source, __LINE__)
#define __shfl_xor_sync(mask, value, bits) vqtok_shim::shuffle(value, vqtok_shim::lane() ^ (bits), __LINE__)
#define __ballot_sync(mask, predicate) vqtok_shim::ballot(predicate, __LINE__)
#define __syncwarp() vqtok_shim::ballot(true, __LINE__)

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
template <class T>
T __ldg(const T* address) {
    return *address;
}
// Blocks run one after the other and fibers do not change places here, so these are atomic as they stand.
template <class T>
T atomicMax(T* address, T value) {
    const T before = *address;
    if (value > before) *address = value;
    return before;
}
template <class T>
T atomicMin(T* address, T value) {
    const T before = *address;
    if (value < before) *address = value;
    return before;
}
template <class T>
T atomicAdd(T* address, T value) {
    const T before = *address;
    *address = before + value;
    return before;
}

inline cudaError_t cudaGetLastError() { return vqtok_shim::take_error(); }
inline const char* cudaGetErrorName(cudaError_t) { return "cudaErrorLaunchFailure (the shim wrote why to stderr)"; }
inline cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t) {
    std::memset(address, value, bytes);
    return cudaSuccess;
}
constexpr int cudaMemcpyDeviceToDevice = 3;
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, cudaStream_t) {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int) {
    return cudaSuccess;
}

// Chooses the schedule and the arithmetic of multiply_tiles: 0 nearly exact; 1 every four products and the sum so far
// are cut to the grid of the largest of them, as tensor cores do; 2 besides, wrong by nearly as much as the certificate
// allows, up or down by the seed.
extern "C" __attribute__((visibility("default"))) void vqtok_shim_configure(uint64_t seed, int32_t arithmetic);
