// What low precision may say about a latent, and what it may not: the epilogue of the screening pass, whatever unit of
// the device made the products.
//
// Let z be a latent, e_k a code, h_k its half norm, m any vector (here: about the mean code), a = z - m, c_k = e_k - m:
//
//     z e_k - h_k  =  a c_k - b_k + (a term without k),     b_k = h_k - m c_k.
//
// The screening pass computes S_k ~ a c_k - b_k from float16 a' ~ a and c'_k ~ c_k. The score that decides is the float32
// chain C_k on z, e_k and h_k as they came. Then |S_k - C_k| (without the term that all k share) is at most
//
//     |a - a'| |c_k|  +  |a'| (|c_k - c'_k| + gamma |c'_k|)  +  |z| kappa |e_k|  +  fixed_k
//
// by Cauchy-Schwarz, where the residuals |a - a'| and |c_k - c'_k| are measured, not assumed, and
//   gamma    bounds a tensor core that cuts every product and the running sum to the grid of the largest of them:
//            for blocks of 4 or more products that is under 1.5 D 2^-23 (cf. Fasi et al., "Numerical behavior of NVIDIA
//            tensor cores", 2021); 2 D 2^-23 + 2^-19 is taken,
//   kappa    = D 2^-24 (1 + 2^-10), the chain's own D roundings (its underflows are in fixed_k),
//   fixed_k  has the roundings of b_k and the shares of gamma and kappa that fall on b_k and h_k.
// All is in units of the CTA's power-of-two scale; float32 norms are raised by 2^-10 and 2^-40, which covers their own
// rounding and underflow.
//
// Codes come in groups of 32. With M the largest S_k of a group and E its bound, no C_k of it is above M + E and one is
// at least M - E. Hence the winner, and whoever ties with it, is in a group with M + E >= L, where L is any M - E.
#pragma once

#include <cmath>

#include "launch.cuh"

namespace vqtok {

constexpr int kGroup = 32;  // codes
constexpr float kRaise = 1.0f + 0x1p-10f;
constexpr float kTiny = 0x1p-40f;

// D is what the products run over, zeros included.
VQTOK_DEVICE float gamma_bound(int64_t padded_D) { return static_cast<float>(padded_D + 8) * 0x1p-22f; }

VQTOK_DEVICE float kappa_bound(int64_t D) { return static_cast<float>(D) * 0x1p-24f * kRaise; }

// What a group adds to the bound; the largest of its codes in each.
struct alignas(16) GroupBound {
    float code_length;  // |c|
    float code_error;   // |c - c'| + gamma |c'|
    float chain;        // kappa |e|
    float fixed;        // before the CTA's scale
};

// What a latent adds to it.
struct alignas(16) RowBound {
    float latent_error;     // |a - a'|
    float latent_length;    // |a'|
    float original_length;  // |z|
    float scale;            // the CTA's
};

VQTOK_DEVICE float bound(const RowBound& row, const GroupBound& group) {
    return fmaf(row.latent_error, group.code_length,
                fmaf(row.latent_length, group.code_error,
                     fmaf(row.original_length, group.chain, row.scale * group.fixed)));
}

// The two groups with the largest M + E, and the third largest value.
struct TopGroups {
    float first, second, third;
    int first_group, second_group;

    VQTOK_DEVICE void insert(float upper, int group) {
        const bool leads = upper > first, enters = upper > second;
        const int displaced = leads ? first_group : group;
        third = fmaxf(third, fminf(second, upper));
        second_group = enters ? displaced : second_group;
        second = fmaxf(second, fminf(first, upper));
        first_group = leads ? group : first_group;
        first = fmaxf(first, upper);
    }

    VQTOK_DEVICE void merge(const TopGroups& other) {
        insert(other.first, other.first_group);
        insert(other.second, other.second_group);
        third = fmaxf(third, other.third);
    }
};

VQTOK_DEVICE TopGroups no_groups() { return {-INFINITY, -INFINITY, -INFINITY, -1, -1}; }

// L: a score that the winner reaches for certain.
VQTOK_DEVICE float lower_bound(const TopGroups& top, const RowBound& row, const GroupBound* groups) {
    float lower = -INFINITY;
    if (top.first_group >= 0) lower = fmaxf(lower, top.first - 2 * bound(row, groups[top.first_group]));
    if (top.second_group >= 0) lower = fmaxf(lower, top.second - 2 * bound(row, groups[top.second_group]));
    return lower;
}

// Not decided by two groups: a third might win, or nothing is known. Written so that NaN is not decided either.
VQTOK_DEVICE bool undecided(float third, float lower) { return !(third < lower); }

}  // namespace vqtok
