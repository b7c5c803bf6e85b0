// Vectors of VQTOK_LANES floats, for code that is written once for all instruction sets. A file that includes this has
// defined that and VQTOK_TARGET (see scan.h), and VQTOK_BF16 where that has instructions for bfloat16.
#if !defined(VQTOK_TARGET) || !defined(VQTOK_LANES)
#error "define VQTOK_TARGET and VQTOK_LANES before including lanes.h"
#endif

#include <cstdint>
#include <cstring>

#include "elements.h"

#define VQTOK_INLINE VQTOK_TARGET inline __attribute__((always_inline))

namespace {

constexpr int kLanes = VQTOK_LANES;
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef uint32_t Words __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(kLanes * sizeof(uint16_t))));

// Vectors go by reference: by value they would change the calling convention with the instruction set.
VQTOK_INLINE void load(const float* p, Floats& x) { std::memcpy(&x, p, sizeof x); }
VQTOK_INLINE void store(float* p, const Floats& x) { std::memcpy(p, &x, sizeof x); }

VQTOK_INLINE void load(const uint16_t* p, Floats& x) {
    Halves halves;
    std::memcpy(&halves, p, sizeof halves);
    const Words words = __builtin_convertvector(halves, Words) << 16;
    std::memcpy(&x, &words, sizeof x);
}

VQTOK_INLINE void store(uint16_t* p, const Floats& x) {  // as BFloat16::store
#if defined(VQTOK_BF16)  // an instruction; denormal results become zero
    const __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(x));
    std::memcpy(p, &rounded, sizeof rounded);
#else
    Words bits;
    std::memcpy(&bits, &x, sizeof bits);
    Words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    rounded = x != x ? rounded * 0 + 0x7fc0 : rounded;
    const Halves halves = __builtin_convertvector(rounded, Halves);
    std::memcpy(p, &halves, sizeof halves);
#endif
}

}  // namespace
