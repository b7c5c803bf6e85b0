// The codebook as the screening pass reads it: centred, scaled, float16, in the order of the registers that want it.
#pragma once

#include "certificate.cuh"
#include "score.cuh"

namespace vqtok {

constexpr int kTile = 64;                     // codes whose products a warp computes at a time
constexpr int kSpan = 2 * kTile;              // codes in which four lanes find one group each
constexpr int kStep = 16;                     // dimensions of one matrix instruction
constexpr int kPanelHalves = kTile * kStep;   // one tile, one step
constexpr int kMeanCodes = 512;
constexpr int kPrepareThreads = 256;
constexpr int kPrepareWarps = kPrepareThreads / 32;
constexpr int64_t kMeasureBlocks = 264;

// What has to be known of all codes before any can be scaled.
struct Header {
    uint32_t largest;        // bits of the largest |c_kd|
    uint32_t least_bias;     // the smallest b_k as float32, as an ordered integer
    uint32_t largest_bias;   // bits of the largest |b_k|, scaled
    uint32_t longest;        // bits of the largest |e_k|
    uint32_t largest_norm;   // bits of the largest |h_k|
};

struct Codebook {
    float* vectors;           // [K, D], as they came
    float* half_norms;        // [K]
    int64_t K, D;
    int steps;                // ceil(D / 16), at least as many as the kernel's unit
    int spans;                // ceil(K / 128)
    Header* header;
    float* mean;              // [16 steps]
    double* shift;            // [K] b_k
    float* bias;              // [128 spans] -b_k, scaled; tile by tile in column order; -infinity for no code
    GroupBound* groups;       // [4 spans]
    uint16_t* panels;         // [2 spans][steps][64 x 16]
};

constexpr int kMaxColumns = 32;     // that share the codes of one block of latents; see `decide`
constexpr int64_t kScreenedD = 1024;  // the latents of a CTA must fit in shared memory

// The pieces of a packed codebook; without a base only their size. The columns that share it are equally long, so past
// the last code there is room that is read and not looked at.
inline int64_t lay_out(Codebook& book, int64_t K, int64_t D, void* base) {
    Pieces pieces(base);
    const int64_t whole = ceil_div<int64_t>(D, kStep);
    book.K = K;
    book.D = D;
    book.steps = static_cast<int>(whole <= 2 ? whole : ceil_div<int64_t>(whole, 4) * 4);
    book.spans = static_cast<int>(ceil_div<int64_t>(K, kSpan));
    book.vectors = pieces.take<float>(K * D);
    book.half_norms = pieces.take<float>(K);
    if (D > kScreenedD) return pieces.used();
    const int64_t room = book.spans + (book.spans < kMaxColumns ? book.spans + 1 : kMaxColumns);
    book.header = pieces.take<Header>(1);
    book.mean = pieces.take<float>(int64_t{book.steps} * kStep);
    book.shift = pieces.take<double>(K);
    book.bias = pieces.take<float>(room * kSpan);
    book.groups = pieces.take<GroupBound>(book.spans * (kSpan / kGroup));
    book.panels = pieces.take<uint16_t>(room * kSpan * book.steps * kStep);
    return pieces.used();
}

// Column `n` of tile `tile` holds this code. Lane t of four sees columns 8j + 2t and 8j + 2t + 1 of both tiles of a span:
// these are one group, and the codes of a group are neighbours.
VQTOK_DEVICE int64_t code_of_column(int64_t tile, int n) {
    const int t = n % 8 / 2, place = n / 8 * 2 + n % 2;
    return tile / 2 * kSpan + t * kGroup + tile % 2 * 16 + place;
}

// The inverse: which tile and column hold a code.
VQTOK_DEVICE int64_t tile_of_code(int64_t k) { return k / kSpan * 2 + k % kGroup / 16; }
VQTOK_DEVICE int column_of_code(int64_t k) {
    const int t = static_cast<int>(k % kSpan / kGroup), place = static_cast<int>(k % 16);
    return place / 2 * 8 + 2 * t + place % 2;
}

// Where element (column n, dimension d of 16) of a panel lies: lane 4g + t reads 16 bytes for two neighbouring 8 x 16
// blocks of columns.
VQTOK_DEVICE int place_in_panel(int n, int d) {
    const int lane = n % 8 * 4 + d % 8 / 2;
    return ((n / 16 * 32 + lane) * 4 + n / 8 % 2 * 2 + d / 8) * 2 + d % 2;
}

// 2^e with the largest magnitude below 2^(e+1), for a positive float; -127 for zero and subnormals.
VQTOK_DEVICE int exponent_of(float x) { return static_cast<int>(__float_as_uint(x) >> 23) - 127; }

// A power of two that brings the largest magnitude under 2^14: float16 ends at 65504, and 28 binades lie below.
VQTOK_DEVICE float scale_for(float largest, int at_most) {
    int exponent = 13 - exponent_of(largest);
    exponent = exponent > at_most ? at_most : exponent;
    exponent = exponent < -100 ? -100 : exponent;
    return __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23);
}

VQTOK_DEVICE uint32_t to_ordered(float x) {
    const uint32_t bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
VQTOK_DEVICE float from_ordered(uint32_t bits) {
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

template <class T>
VQTOK_DEVICE T warp_sum(T x) {
    for (int bits = 16; bits > 0; bits /= 2) x += __shfl_xor_sync(kAllLanes, x, bits);
    return x;
}
VQTOK_DEVICE float warp_max(float x) {
    for (int bits = 16; bits > 0; bits /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, bits));
    return x;
}

// A code with h = infinity starts at minus infinity and stays there: it takes no part in the screening.
VQTOK_DEVICE bool takes_part(const Codebook& book, int64_t k) { return k < book.K && book.half_norms[k] < INFINITY; }

// m: the mean of a few hundred codes will do, because any vector is right. Lanes stand for dimensions.
__global__ void find_mean(Codebook book) {
    float(*partial)[32] = reinterpret_cast<float(*)[32]>(shared_memory());
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t d = int64_t{blockIdx.x} * 32 + lane;
    const int64_t taken = book.K < kMeanCodes ? book.K : kMeanCodes;
    float sum = 0;
    for (int64_t i = warp; i < taken && d < book.D; i += kPrepareWarps)
        sum += book.vectors[i * book.K / taken * book.D + d];
    partial[warp][lane] = sum;
    __syncthreads();
    if (blockIdx.x == 0 && threadIdx.x == 0) *book.header = Header{0, 0xffffffffu, 0, 0, 0};
    if (warp > 0 || d >= int64_t{book.steps} * kStep) return;
    for (int w = 1; w < kPrepareWarps; ++w) sum += partial[w][lane];
    const float mean = sum / static_cast<float>(taken);
    book.mean[d] = fabsf(mean) < 0x1p100f ? mean : 0.0f;
}

// The extremes that scales and bounds need.
struct Extremes {
    float largest, least_bias, longest, largest_norm;

    VQTOK_DEVICE void add(const Extremes& other) {
        largest = fmaxf(largest, other.largest);
        least_bias = fminf(least_bias, other.least_bias);
        longest = fmaxf(longest, other.longest);
        largest_norm = fmaxf(largest_norm, other.largest_norm);
    }
};

VQTOK_DEVICE Extremes measure_code(const Codebook& book, int64_t k, int lane) {
    float largest = 0, squares = 0;
    double product = 0;
    for (int64_t d = lane; d < book.D; d += 32) {
        const float e = book.vectors[k * book.D + d], m = book.mean[d];
        largest = fmaxf(largest, fabsf(e - m));
        squares += e * e;
        product += double{m} * (double{e} - double{m});
    }
    const float h = book.half_norms[k];
    const double shift = double{h} - warp_sum(product);
    if (lane == 0) book.shift[k] = shift;
    return {warp_max(largest), static_cast<float>(shift), sqrtf(warp_sum(squares)) * kRaise, fabsf(h)};
}

// A warp takes one code after the other; only blocks meet in global memory, where all would stand in a queue.
__global__ void measure(Codebook book) {
    auto* of_warps = reinterpret_cast<Extremes*>(shared_memory());
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Extremes mine = {0, INFINITY, 0, 0};
    for (int64_t k = int64_t{blockIdx.x} * kPrepareWarps + warp; k < book.K; k += int64_t{gridDim.x} * kPrepareWarps)
        if (takes_part(book, k)) mine.add(measure_code(book, k, lane));
    if (lane == 0) of_warps[warp] = mine;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int w = 1; w < kPrepareWarps; ++w) mine.add(of_warps[w]);
    atomicMax(&book.header->largest, __float_as_uint(mine.largest));
    atomicMin(&book.header->least_bias, to_ordered(mine.least_bias));
    atomicMax(&book.header->longest, __float_as_uint(mine.longest));
    atomicMax(&book.header->largest_norm, __float_as_uint(mine.largest_norm));
}

// What one warp measures of one code while it writes it.
struct CodeNorms {
    float length, error, rounded, original, mean_product;
};

VQTOK_DEVICE CodeNorms pack_code(const Codebook& book, int64_t k, float scale, int lane) {
    uint16_t* panel = book.panels + tile_of_code(k) * book.steps * kPanelHalves;
    const int n = column_of_code(k);
    const bool present = takes_part(book, k);
    CodeNorms sums = {};
    for (int64_t d = lane; d < int64_t{book.steps} * kStep; d += 32) {
        const bool inside = present && d < book.D;
        const float e = inside ? book.vectors[k * book.D + d] : 0.0f, m = inside ? book.mean[d] : 0.0f;
        const float c = (e - m) * scale, original = e * scale;
        const uint16_t half = to_half(c);
        const float rounded = from_half(half), error = c - rounded;
        panel[d / kStep * kPanelHalves + place_in_panel(n, static_cast<int>(d % kStep))] = half;
        sums.length += c * c;
        sums.error += error * error;
        sums.rounded += rounded * rounded;
        sums.original += original * original;
        sums.mean_product += fabsf(m * c);
    }
    return {sqrtf(warp_sum(sums.length)) * kRaise + kTiny, sqrtf(warp_sum(sums.error)) * kRaise + kTiny,
            sqrtf(warp_sum(sums.rounded)) * kRaise + kTiny, sqrtf(warp_sum(sums.original)) * kRaise + kTiny,
            warp_sum(sums.mean_product) * kRaise + kTiny};
}

// What does not depend on the latent: `bias` is -b_k, scaled; b_k itself was summed in float64.
VQTOK_DEVICE float fixed_bound(const Codebook& book, int64_t k, float scale, float bias, const CodeNorms& norms,
                               float reference) {
    const float h = fabsf(book.half_norms[k]) * scale, D = static_cast<float>(book.D);
    const float in_double = (D + 4) * 0x1p-51f * (norms.mean_product + h + fabsf(reference) * scale);
    const float underflow = D * 0x1p-149f * scale;
    return (gamma_bound(int64_t{book.steps} * kStep) * fabsf(bias) + kappa_bound(book.D) * h + in_double + underflow) *
           kRaise;
}

// -b_k, scaled, from the least of them on.
VQTOK_DEVICE float bias_of(const Codebook& book, int64_t k, float scale, float reference) {
    return takes_part(book, k) ? static_cast<float>(-(book.shift[k] - double{reference}) * double{scale}) : -INFINITY;
}

// The bounds of one code as if it were alone in its group.
VQTOK_DEVICE GroupBound bounds_of(const Codebook& book, int64_t k, float scale, float reference,
                                  const CodeNorms& norms) {
    if (!takes_part(book, k)) return {};
    const float bias = bias_of(book, k, scale, reference);
    return {norms.length * (1 + 0x1p-22f),
            (norms.error + 0x1p-24f * norms.length + gamma_bound(int64_t{book.steps} * kStep) * norms.rounded) * kRaise,
            kappa_bound(book.D) * norms.original * kRaise,
            fixed_bound(book, k, scale, bias, norms, reference)};
}

// One block a group: a warp writes four codes, then the first warp takes the largest of 32 bounds, a lane a code.
__global__ void pack(Codebook book) {
    GroupBound* bounds = reinterpret_cast<GroupBound*>(shared_memory());
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t first = int64_t{blockIdx.x} * kGroup;
    // Codes that are all alike have tiny differences from their mean: |e| in the same units must not overflow.
    const int room = 60 - exponent_of(__uint_as_float(book.header->longest));
    const float scale = scale_for(__uint_as_float(book.header->largest), room < 100 ? room : 100);
    const float reference = from_ordered(book.header->least_bias);
    for (int i = warp; i < kGroup; i += kPrepareWarps) {
        const CodeNorms norms = pack_code(book, first + i, scale, lane);
        if (lane == 0) bounds[i] = bounds_of(book, first + i, scale, reference, norms);
    }
    __syncthreads();
    if (warp > 0) return;
    const GroupBound mine = bounds[lane];
    const GroupBound most = {warp_max(mine.code_length), warp_max(mine.code_error), warp_max(mine.chain),
                             warp_max(mine.fixed)};
    const float bias = bias_of(book, first + lane, scale, reference);
    book.bias[tile_of_code(first + lane) * kTile + column_of_code(first + lane)] = bias;
    const float largest_bias = warp_max(takes_part(book, first + lane) ? fabsf(bias) : 0.0f);
    if (lane > 0) return;
    book.groups[blockIdx.x] = most;
    atomicMax(&book.header->largest_bias, __float_as_uint(largest_bias));
}

inline void prepare(const Codebook& book, void* stream) {
    const auto blocks = [](int64_t n) { return dim3(static_cast<unsigned>(n)); };
    VQTOK_LAUNCH(find_mean, blocks(ceil_div<int64_t>(int64_t{book.steps} * kStep, 32)), dim3(kPrepareThreads),
                 kPrepareWarps * 32 * sizeof(float), stream, book);
    const int64_t of_codes = ceil_div<int64_t>(book.K, kPrepareWarps);
    VQTOK_LAUNCH(measure, blocks(of_codes < kMeasureBlocks ? of_codes : kMeasureBlocks), dim3(kPrepareThreads),
                 kPrepareWarps * sizeof(Extremes), stream, book);
    VQTOK_LAUNCH(pack, blocks(int64_t{book.spans} * (kSpan / kGroup)), dim3(kPrepareThreads),
                 kGroup * sizeof(GroupBound), stream, book);
}

}  // namespace vqtok
