// NEON of 64-bit ARM: 24 latents x 4 codes, 24 of the 32 registers accumulate.
#include "kernel.h"

#if VQTOK_ARM64
#include <arm_neon.h>

#define VQTOK_TARGET

namespace {

struct Neon {
    static constexpr int lanes = 4, strips = 6, codes = 4;
    using Float = float32x4_t;
    using Int = int32x4_t;

    static Float load(const float* p) { return vld1q_f32(p); }
    static Int load(const int32_t* p) { return vld1q_s32(p); }
    static void store(float* p, Float x) { vst1q_f32(p, x); }
    static void store(int32_t* p, Int x) { vst1q_s32(p, x); }
    static Float broadcast(const float* p) { return vld1q_dup_f32(p); }
    static Int splat(int32_t x) { return vdupq_n_s32(x); }
    static Int next(Int x) { return vaddq_s32(x, vdupq_n_s32(1)); }
    static Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
    static void keep_larger(Float score, Int code, Float& top, Int& top_code) {
        const uint32x4_t larger = vcgtq_f32(score, top);
        top_code = vbslq_s32(larger, code, top_code);
        top = vbslq_f32(larger, score, top);
    }
};

}  // namespace

#include "scan.h"

const vqtok::Kernel vqtok::kNeonKernel = kernel_of<Neon>();
#endif
