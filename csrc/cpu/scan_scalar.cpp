// The portable kernel: std::fma on four lanes, which compilers turn into vector code where the base instruction set
// has a fused multiply-add (aarch64), and into exact library calls where it has none (plain x86-64).
#include <cmath>

#include "kernel.h"

#define VQTOK_TARGET

namespace {

struct Portable {
    static constexpr int lanes = 4, strips = 4, codes = 2;
    struct Float {
        float lane[lanes];
    };
    struct Int {
        int32_t lane[lanes];
    };

    static Float load(const float* p) { return copy<Float>(p); }
    static Int load(const int32_t* p) { return copy<Int>(p); }
    static void store(float* p, const Float& x) {
        for (int i = 0; i < lanes; ++i) p[i] = x.lane[i];
    }
    static void store(int32_t* p, const Int& x) {
        for (int i = 0; i < lanes; ++i) p[i] = x.lane[i];
    }
    static Float broadcast(const float* p) {
        Float x;
        for (int i = 0; i < lanes; ++i) x.lane[i] = *p;
        return x;
    }
    static Int splat(int32_t x) { return {{x, x, x, x}}; }
    static Int next(Int x) {
        for (int i = 0; i < lanes; ++i) ++x.lane[i];
        return x;
    }
    static Float fma(const Float& a, const Float& b, const Float& c) {
        Float x;
        for (int i = 0; i < lanes; ++i) x.lane[i] = std::fma(a.lane[i], b.lane[i], c.lane[i]);
        return x;
    }
    static void keep_larger(const Float& score, const Int& code, Float& top, Int& top_code) {
        for (int i = 0; i < lanes; ++i) {
            const bool larger = score.lane[i] > top.lane[i];
            top.lane[i] = larger ? score.lane[i] : top.lane[i];
            top_code.lane[i] = larger ? code.lane[i] : top_code.lane[i];
        }
    }

   private:
    template <class X, class T>
    static X copy(const T* p) {
        X x;
        for (int i = 0; i < lanes; ++i) x.lane[i] = p[i];
        return x;
    }
};

}  // namespace

#include "scan.h"

const vqtok::Kernel vqtok::kScalarKernel = kernel_of<Portable>();
