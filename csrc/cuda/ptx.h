// Every instruction that CUDA C++ has no portable name for, each with its CPU branch (csrc/shim).
#pragma once

#include <cstdint>

#include "launch.cuh"

namespace vqtok {

// The bits of a float32 rounded to float16, to nearest even; subnormals are kept.
VQTOK_DEVICE uint16_t to_half(float x) {
#if defined(__CUDACC__)
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#else
    return vqtok_shim::to_half(x);
#endif
}

VQTOK_DEVICE float from_half(uint16_t bits) {
#if defined(__CUDACC__)
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
#else
    return vqtok_shim::from_half(bits);
#endif
}

// d = a b + c for one 16 x 8 x 16 tile a warp: float16 inputs, float32 sums of no promised order or rounding.
// Lane 4 g + t holds of a [16, 16]: rows g (a[0], a[2]) and g + 8 (a[1], a[3]), columns 2t, 2t+1 (a[0], a[1]) and 8 more
// (a[2], a[3]); of b [16, 8]: column g, rows 2t, 2t+1 (b[0]) and 8 more (b[1]); of c and d [16, 8]: rows g (0, 1) and
// g + 8 (2, 3), columns 2t, 2t+1.
VQTOK_DEVICE void multiply_tiles(float (&d)[4], const uint4& a, uint32_t b0, uint32_t b1, const float (&c)[4]) {
#if defined(__CUDACC__)
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#else
    vqtok_shim::multiply_tiles(d, a, b0, b1, c);
#endif
}

// Starts to copy 16 bytes from global to shared memory, both 16-byte aligned.
VQTOK_DEVICE void copy_async(void* shared, const void* global) {
#if defined(__CUDACC__)
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
#else
    vqtok_shim::copy_async(shared, global);
#endif
}

// Closes the group of copies that this thread has started since the last one.
VQTOK_DEVICE void end_copies() {
#if defined(__CUDACC__)
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    vqtok_shim::end_copies();
#endif
}

// Waits until at most the last `pending` groups of this thread are under way.
template <int pending>
VQTOK_DEVICE void await_copies() {
#if defined(__CUDACC__)
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#else
    vqtok_shim::await_copies(pending);
#endif
}

}  // namespace vqtok
