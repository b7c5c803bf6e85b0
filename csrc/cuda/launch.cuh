// What the kernels need of CUDA: the runtime and one way to launch, or the shim that stands in for both on a CPU.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define VQTOK_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    kernel<<<(grid), (block), (shared_bytes), static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#define VQTOK_DEVICE __device__ __forceinline__
#define VQTOK_UNROLL _Pragma("unroll")
#else
#include "cuda_on_cpu.h"
#define VQTOK_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    (static_cast<void>(stream), vqtok_shim::launch((grid), (block), (shared_bytes), [=] { kernel(__VA_ARGS__); }))
#define VQTOK_DEVICE inline
#define VQTOK_UNROLL
#endif

#if defined(__FAST_MATH__) || defined(__USE_FAST_MATH__)
#error "vqtok's codes are defined bit by bit: build without fast math"
#endif

namespace vqtok {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int64_t kMost = 0x7fffffff;

template <class T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
    return (a + b - 1) / b;
}

// All shared memory is dynamic: its size is the launcher's business, and the shim can poison it.
VQTOK_DEVICE char* shared_memory() {
#if defined(__CUDACC__)
    extern __shared__ __align__(128) char memory[];
    return memory;
#else
    return vqtok_shim::shared_memory();
#endif
}

template <class Kernel>
int32_t allow_shared(Kernel kernel, int64_t bytes) {
    if (bytes <= 48 * 1024) return 0;
    return static_cast<int32_t>(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

// Hands out aligned pieces of one workspace; with no base it only adds up.
class Pieces {
  public:
    explicit Pieces(void* base) : base_(static_cast<char*>(base)) {}
    template <class T>
    T* take(int64_t count) {
        const int64_t offset = used_, bytes = count * static_cast<int64_t>(sizeof(T));
        used_ += (bytes / 256 + 1) * 256;  // never without a gap
        if (base_ == nullptr) return nullptr;
#if !defined(__CUDACC__)
        vqtok_shim::fence(base_ + offset, bytes, used_ - offset - bytes);
#endif
        return reinterpret_cast<T*>(base_ + offset);
    }
    int64_t used() const { return used_; }

  private:
    char* base_;
    int64_t used_ = 0;
};

}  // namespace vqtok
