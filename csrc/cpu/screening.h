// Certified screening: a low-precision score proposes candidates, the float32 score of kernel.h decides.
//
// With z a latent, e_k a code, c any centre of the codebook, e'_k = e_k - c and z' = z - c (or z' = z and c absent from
// the products, where scores have no norms), the exact score is
//
//     S_k = z.e_k - h_k = z'.e'_k + b_k + z.c,    b_k = c.e'_k - h_k    (b_k = -h_k where z' = z),
//
// and z.c is the same for every code. z' and e'_k are rounded to a grid, z' = zq + dz and e'_k = eq + de, so that
//
//     |z'.e'_k - zq.eq| <= |dz| |e'_k| + |zq| |de|,
//
// with norms that are measured, not assumed (bounds after Higham, Accuracy and Stability of Numerical Algorithms, 2nd
// ed., section 3.1, for the sums). Together with the rounding of the screening's own sums and of the float32 chain that
// decides, every panel of codes has a bound E with |screened - decided| <= E, up to the common z.c. The winner w of the
// chain then satisfies screened_w + E_w >= max over all panels of (screened - E): only panels that do are scored.
#pragma once

#include <cstdint>

#include "kernel.h"

namespace vqtok {

// Candidate panels a latent may have before it is given to the float32 scan.
constexpr int kMaxCandidates = 24;

enum ScreeningKind : int32_t { kNoScreening = 0, kBf16 = 1, kInt8 = 2 };

// What bounds a panel's error: E = |dz| residual + |zq| quantised + |z| chain + constant.
struct PanelBound {
    float scale;  // of the panel's integers; 1 for bf16
    float residual, quantised, chain, constant;
};

// A codebook prepared for screening. A word is 32 bits: four int8 or two bf16.
struct ScreenedCodebook {
    float* centre;       // [D]
    int32_t has_norms;   // whether scores do; then z' = z - c
    int32_t* panels;     // words [panel_count][steps][kPanel]
    int32_t* start;      // [panel_count][kPanel]: what the sums start at, an integer or a float's bits
    float* bias;         // [panel_count][kPanel], added to int8 sums; -infinity where the last panel is padded
    PanelBound* bounds;  // [panel_count]
    int64_t panel_count, steps, D;
};

// A tile of latents prepared for screening; rows beyond the latents are zeros.
struct ScreenedTile {
    int32_t strips;
    int32_t* words;                                // [steps][strips * lanes]
    float *scale, *residual, *quantised, *length;  // [strips * lanes]
};

struct Candidate {
    float upper;  // no score of the panel lies above
    int32_t panel;
};

// Per latent the panels that may hold its code, in ascending order; more than kMaxCandidates: unknown.
struct Candidates {
    float floor[kMaxTile];  // the winner's score does not lie below
    int32_t count[kMaxTile];
    Candidate list[kMaxTile][kMaxCandidates];
};

struct PanelTask {
    const float* latent;  // [D]
    int32_t panel, row;
    float score;          // out: the panel's largest score ...
    int32_t code;         // out: ... and the lowest code that has it
};

struct Screener {
    int lanes;
    int dims;  // in a word
    void (*prepare_codes)(const float* codebook, const float* half_norms, int64_t K, int64_t panel,
                          const ScreenedCodebook& out);
    void (*prepare_latent)(const float* latent, const ScreenedCodebook& codebook, const ScreenedTile& tile, int row);
    void (*scan)(const ScreenedTile& tile, const ScreenedCodebook& codebook, Candidates& out);
    void (*decide)(PanelTask* tasks, int64_t count, const float* panels, const float* start, int64_t D);
};

#if VQTOK_X86
extern const Screener kInt8Screener;
#endif
#if VQTOK_X86_BF16
extern const Screener kBf16Screener;
#endif

}  // namespace vqtok
