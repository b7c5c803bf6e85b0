// The score that decides, and the order of two (score, code) pairs. Meaning: vqtok/ops/reference.py.
#pragma once

#include <cmath>

#include "rows.cuh"

namespace vqtok {

constexpr int kNoCode = 0x7fffffff;

// The larger score wins; of equal ones the lower code. A score that is not a number never wins.
struct Best {
    float score;
    int code;

    VQTOK_DEVICE void offer(float other, int its_code) {
        if (other > score || (other == score && its_code < code)) {
            score = other;
            code = its_code;
        }
    }
};

VQTOK_DEVICE Best no_best() { return {-INFINITY, kNoCode}; }

// Over `lanes` neighbouring lanes, a power of two; every lane gets the answer.
VQTOK_DEVICE Best best_of_lanes(Best best, int lanes) {
    for (int bits = lanes / 2; bits > 0; bits /= 2) {
        const float score = __shfl_xor_sync(kAllLanes, best.score, bits);
        const int code = __shfl_xor_sync(kAllLanes, best.code, bits);
        best.offer(score, code);
    }
    return best;
}

// The same order as of Best in one integer, so that blocks can agree by atomicMax, whoever comes first.
VQTOK_DEVICE unsigned long long to_key(Best best) {
    const uint32_t bits = __float_as_uint(best.score + 0.0f);  // -0 and 0 are the same score
    const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (static_cast<unsigned long long>(ordered) << 32) | (0xffffffffu - static_cast<uint32_t>(best.code));
}

VQTOK_DEVICE int code_of_key(unsigned long long key) {
    return static_cast<int>(0xffffffffu - static_cast<uint32_t>(key & 0xffffffffu));
}

}  // namespace vqtok
