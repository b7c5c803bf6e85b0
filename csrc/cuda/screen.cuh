// The screening pass: a CTA owns a block of latents and walks over all codes, or over its share of them.
//
// A CTA is kRowWarps x kColumnWarps warps. A warp has 32 latents and walks over its own column of tiles of 64 codes.
// Every thread keeps the largest score of 4 latents x 16 codes of a tile without a word to its neighbours, and hands it
// to the certificate every second tile. What follows the products is certificate.cuh's: another unit (wgmma) would
// replace `multiply_tile` and the ring of panels and keep the rest.
#pragma once

#include "codebook.cuh"

namespace vqtok {

constexpr int kWarpRows = 32;
constexpr int kRingSteps = 4;
constexpr int kPanelBytes = kPanelHalves * 2;

// One launch, for rows first..first+rows-1 of the latents. Column c has the spans c * spans_each and on.
struct Screening {
    VqtokCudaRows latents;
    Codebook book;
    int64_t first;
    int rows;
    int columns;
    int spans_each;
    float4* tops;  // [columns][rows] first, second and third of TopGroups, lower bound
    int2* groups;  // [columns][rows] first and second group
};

template <int kRowWarps_, int kColumnWarps_, int kResident_>
struct Shape {
    static constexpr int kRowWarps = kRowWarps_, kColumnWarps = kColumnWarps_;
    static constexpr int kResident = kResident_;  // steps of latents that fit in registers; 0: any number, in memory
    static constexpr int kThreads = 32 * kRowWarps * kColumnWarps;
    static constexpr int kRows = kWarpRows * kRowWarps;
    // A place of the ring has, of every column, both tiles of a span or four steps of one tile.
    static constexpr int kTiles = kResident > 0 ? 2 : 1;
    static constexpr int kSteps = kResident > 0 ? kResident : kRingSteps;
    static constexpr int kPanels = kTiles * kSteps;
    static constexpr int kRing = kPanels * kColumnWarps > 4 ? 2 : 3;
    static constexpr int kPlaceBytes = kColumnWarps * kPanels * kPanelBytes;
    static constexpr int kBiases = kColumnWarps * kTiles * kTile * 2;  // floats; see Feeder::finish
    static constexpr int kStagingBytes = ceil_div(kStep * (kRows + 1) * 4, 128) * 128;
    static constexpr int kRingBytes = kRing * kPlaceBytes;
    static_assert(kStagingBytes + kRows * 8 + 32 <= kRingBytes);

    static constexpr int64_t shared_bytes(int steps) {
        return kRingBytes + kRing * kBiases * 4 + kRows * 16 + int64_t{kRows} * steps * kStep * 2;
    }
};

// The pieces of shared memory. Staging, offsets and extremes are in the ring and over when it begins.
template <class S>
struct Shared {
    char* ring;         // [kRing][kColumnWarps][kPanels]
    float* staging;     // [kStep][kRows + 1]
    int64_t* offsets;   // [kRows] where a latent begins; -1: there is none
    float* extremes;    // [8]
    RowBound* bounds;   // [kRows]
    float* bias;        // [kRing][kColumnWarps][kTiles][kTile / 2][4]
    uint32_t* latents;  // [kRows / 16][steps][32 lanes][4]

    VQTOK_DEVICE explicit Shared(char* at)
        : ring(at),
          staging(reinterpret_cast<float*>(at)),
          offsets(reinterpret_cast<int64_t*>(at + S::kStagingBytes)),
          extremes(reinterpret_cast<float*>(offsets + S::kRows)),
          bounds(reinterpret_cast<RowBound*>(at + S::kRingBytes)),
          bias(reinterpret_cast<float*>(bounds + S::kRows)),
          latents(reinterpret_cast<uint32_t*>(bias + S::kRing * S::kBiases)) {}
};

// ---- latents, from wherever they lie to the registers of the matrix unit

template <class S>
VQTOK_DEVICE void find_offsets(const Screening& task, const Shared<S>& shared) {
    const int r = threadIdx.x;
    const int64_t n = int64_t{blockIdx.x} * S::kRows + r;
    if (r < S::kRows) shared.offsets[r] = n < task.rows ? row_offset(task.latents, task.first + n) : -1;
}

// staging[d][r] = sixteen dimensions of every latent; neighbouring threads read what lies together.
template <class S>
VQTOK_DEVICE void stage(const Screening& task, const Shared<S>& shared, int step) {
    const bool dense = task.latents.stride_d == 1;
    for (int i = threadIdx.x; i < kStep * S::kRows; i += S::kThreads) {
        const int d = dense ? i % kStep : i / S::kRows, r = dense ? i / kStep : i % S::kRows;
        const int64_t offset = shared.offsets[r], at = int64_t{step} * kStep + d;
        shared.staging[d * (S::kRows + 1) + r] =
            offset >= 0 && at < task.book.D
                ? load_float(task.latents.data, task.latents.dtype, offset + at * task.latents.stride_d)
                : 0.0f;
    }
}

// z and a = z - m of one staged element; zero where there is no latent, no dimension.
template <class S>
VQTOK_DEVICE float2 element(const Screening& task, const Shared<S>& shared, int step, int d, int r, bool present) {
    const float z = shared.staging[d * (S::kRows + 1) + r];
    return {z, present ? z - task.book.mean[step * kStep + d] : 0.0f};
}

// The largest |a| of the CTA.
template <class S>
VQTOK_DEVICE float largest_element(const Screening& task, const Shared<S>& shared) {
    const int r = threadIdx.x;
    float largest = 0;
    for (int step = 0; step < task.book.steps; ++step) {
        stage(task, shared, step);
        __syncthreads();
        for (int d = 0; d < kStep && r < S::kRows; ++d)
            largest = fmaxf(largest, fabsf(element(task, shared, step, d, r, shared.offsets[r] >= 0).y));
        __syncthreads();
    }
    largest = warp_max(largest);
    if (r % 32 == 0) shared.extremes[r / 32] = largest;
    __syncthreads();
    for (int w = 0; w < S::kThreads / 32; ++w) largest = fmaxf(largest, shared.extremes[w]);
    return largest;
}

// Sums of squares that become a RowBound.
struct RowSums {
    float error, rounded, centred, original;
};

// Two neighbouring dimensions of one latent, as the matrix unit wants them.
VQTOK_DEVICE uint32_t pack_pair(const float2 (&pair)[2], float scale, RowSums& sums) {
    uint32_t bits = 0;
    for (int i = 0; i < 2; ++i) {
        const float a = pair[i].y * scale, z = pair[i].x * scale;
        const uint16_t half = to_half(a);
        const float rounded = from_half(half), error = a - rounded;
        bits |= static_cast<uint32_t>(half) << (16 * i);
        sums.error += error * error;
        sums.rounded += rounded * rounded;
        sums.centred += a * a;
        sums.original += z * z;
    }
    return bits;
}

// Latents for which the float32 chain or the scales could overflow are left to the exact scan: their bound is infinite.
VQTOK_DEVICE RowBound to_bound(const Codebook& book, const RowSums& sums, float scale) {
    const float original = sqrtf(sums.original) * kRaise + kTiny;
    const float longest = __uint_as_float(book.header->longest), heaviest = __uint_as_float(book.header->largest_norm);
    const bool safe = original / scale * longest + heaviest < 0x1p120f &&
                      __uint_as_float(book.header->largest_bias) < 0x1p126f;
    const float error = sqrtf(sums.error) + 0x1p-24f * sqrtf(sums.centred);
    return {safe ? error * kRaise + kTiny : INFINITY, sqrtf(sums.rounded) * kRaise + kTiny, original, scale};
}

// Rounds the latents to float16 and measures what that costs each of them: one thread a latent.
template <class S>
VQTOK_DEVICE void pack_latents(const Screening& task, const Shared<S>& shared, float scale) {
    const int r = threadIdx.x, steps = task.book.steps;
    RowSums sums = {};
    for (int step = 0; step < steps; ++step) {
        stage(task, shared, step);
        __syncthreads();
        uint32_t* tile = shared.latents + (r / 16 * steps + step) * 128;
        for (int d = 0; d < kStep && r < S::kRows; d += 2) {
            const bool present = shared.offsets[r] >= 0;
            const float2 pair[2] = {element(task, shared, step, d, r, present),
                                    element(task, shared, step, d + 1, r, present)};
            const int lane = r % 8 * 4 + d % 8 / 2, which = d / 8 * 2 + r % 16 / 8;
            tile[lane * 4 + which] = pack_pair(pair, scale, sums);
        }
        __syncthreads();
    }
    if (r < S::kRows) shared.bounds[r] = to_bound(task.book, sums, scale);
}

template <class S>
VQTOK_DEVICE float take_latents(const Screening& task, const Shared<S>& shared) {
    find_offsets(task, shared);
    __syncthreads();
    const float largest = largest_element(task, shared);
    // The bias is in the same units and must not overflow.
    const int room = 100 - exponent_of(__uint_as_float(task.book.header->largest_bias));
    const float scale = scale_for(largest, room < 100 ? room : 100);
    pack_latents(task, shared, scale);
    __syncthreads();
    return scale;
}

// ---- the ring of panels

// Walks over the panels of all columns of a CTA, a place of the ring at a time; the tiles of a column follow each other
// in memory. Past the last code there is room and nothing else: what comes from there is not looked at.
template <class S>
struct Feeder {
    static constexpr int kPieces = S::kPanels * kPanelBytes / 16;  // of 16 bytes, of one column
    static constexpr int kCopies = S::kColumnWarps * kPieces / S::kThreads;
    static constexpr int kCodes = S::kTiles * kTile;
    static constexpr int kAll = S::kColumnWarps * kCodes, kEach = ceil_div(kAll, S::kThreads);
    static_assert(kPieces % S::kThreads == 0);

    const char* panels;
    const float* bias;
    int64_t panel_column, bias_column;  // from one column to the next
    int chunk, chunks, place;
    float scale;
    float values[kEach];

    VQTOK_DEVICE Feeder(const Screening& task, float scale_of_bias) : values{} {
        const int64_t first = int64_t{blockIdx.y} * S::kColumnWarps;
        bias_column = int64_t{task.spans_each} * kSpan;
        panel_column = bias_column * task.book.steps * (kStep * 2);
        panels = reinterpret_cast<const char*>(task.book.panels) + first * panel_column + threadIdx.x * 16;
        bias = task.book.bias + first * bias_column;
        chunk = place = 0;
        chunks = task.book.steps / S::kSteps;
        scale = scale_of_bias;
    }

    // Biases travel through registers, because they must be scaled: read before a place's products, stored after them.
    VQTOK_DEVICE void start(const Shared<S>& shared) {
        char* to = shared.ring + place * S::kPlaceBytes + threadIdx.x * 16;
        VQTOK_UNROLL
        for (int i = 0; i < kCopies; ++i)
            copy_async(to + i * S::kThreads * 16, panels + i * S::kThreads / kPieces * panel_column +
                                                      i * S::kThreads % kPieces * 16);
        VQTOK_UNROLL
        for (int i = 0; i < kEach; ++i) {
            const int n = i * S::kThreads + threadIdx.x;
            if (kAll % S::kThreads == 0 || n < kAll) values[i] = bias[n / kCodes * bias_column + n % kCodes] * scale;
        }
    }

    // Twice each: a lane of the matrix unit wants the biases of its two columns for two rows, as 16 bytes.
    VQTOK_DEVICE void finish(const Shared<S>& shared) {
        VQTOK_UNROLL
        for (int i = 0; i < kEach; ++i) {
            const int n = i * S::kThreads + threadIdx.x;
            float* to = shared.bias + place * S::kBiases + n / 2 * 4 + n % 2;
            if (kAll % S::kThreads == 0 || n < kAll) to[0] = to[2] = values[i];
        }
        panels += S::kPanels * kPanelBytes;
        place = place + 1 == S::kRing ? 0 : place + 1;
        if (++chunk < chunks) return;
        chunk = 0;
        bias += kCodes;
    }
};

// ---- products

// What a thread of warp (row_warp, column_warp) holds: rows 16m + 8h + g, columns 8j + 2t + i.
template <class S>
struct Thread {
    int lane, row_warp, column_warp;
    uint4 latents[2][S::kResident > 0 ? S::kResident : 1];
    float sums[2][8][4];
    float best[2][2];
    TopGroups tops[2][2];

    VQTOK_DEVICE int row(int m, int h) const { return row_warp * kWarpRows + m * 16 + h * 8 + lane / 4; }
};

template <class S>
VQTOK_DEVICE uint4 latents_of(const Screening& task, const Shared<S>& shared, const Thread<S>& thread, int m, int step) {
    const auto* tiles = reinterpret_cast<const uint4*>(shared.latents);
    return tiles[((thread.row_warp * 2 + m) * task.book.steps + step) * 32 + thread.lane];
}

template <class S>
VQTOK_DEVICE void begin(const Screening& task, const Shared<S>& shared, Thread<S>& thread) {
    thread.lane = threadIdx.x % 32;
    thread.row_warp = threadIdx.x / 32 % S::kRowWarps;
    thread.column_warp = threadIdx.x / 32 / S::kRowWarps;
    VQTOK_UNROLL
    for (int m = 0; m < 2; ++m) {
        VQTOK_UNROLL
        for (int s = 0; s < S::kResident; ++s) thread.latents[m][s] = latents_of(task, shared, thread, m, s);
        VQTOK_UNROLL
        for (int h = 0; h < 2; ++h) thread.tops[m][h] = no_groups();
    }
}

template <class S>
VQTOK_DEVICE void begin_tile(const Shared<S>& shared, Thread<S>& thread, int place, int tile) {
    const auto* bias = reinterpret_cast<const float4*>(shared.bias + place * S::kBiases) +
                       (thread.column_warp * S::kTiles + tile) * kTile / 2;
    VQTOK_UNROLL
    for (int j = 0; j < 8; ++j) {
        const float4 start = bias[j * 4 + thread.lane % 4];
        VQTOK_UNROLL
        for (int m = 0; m < 2; ++m) {
            thread.sums[m][j][0] = start.x;
            thread.sums[m][j][1] = start.y;
            thread.sums[m][j][2] = start.z;
            thread.sums[m][j][3] = start.w;
        }
    }
}

// Adds the products of the steps that a place of the ring has of a tile.
template <class S>
VQTOK_DEVICE void multiply_tile(const Screening& task, const Shared<S>& shared, Thread<S>& thread, int place, int tile,
                                int chunk) {
    const auto* panels = reinterpret_cast<const uint4*>(
        shared.ring + place * S::kPlaceBytes + (thread.column_warp * S::kPanels + tile * S::kSteps) * kPanelBytes);
    VQTOK_UNROLL
    for (int s = 0; s < S::kSteps; ++s) {
        uint4 a[2];
        VQTOK_UNROLL
        for (int m = 0; m < 2; ++m)
            a[m] = S::kResident > 0 ? thread.latents[m][S::kResident > 0 ? s : 0]
                                    : latents_of(task, shared, thread, m, chunk * S::kSteps + s);
        VQTOK_UNROLL
        for (int pair = 0; pair < 4; ++pair) {
            const uint4 b = panels[(s * 4 + pair) * 32 + thread.lane];
            VQTOK_UNROLL
            for (int m = 0; m < 2; ++m) {
                float(&left)[4] = thread.sums[m][2 * pair];
                float(&right)[4] = thread.sums[m][2 * pair + 1];
                multiply_tiles(left, a[m], b.x, b.y, left);
                multiply_tiles(right, a[m], b.z, b.w, right);
            }
        }
    }
}

VQTOK_DEVICE float largest_of(const float (&sums)[8][4], int h) {
    float best = fmaxf(sums[0][2 * h], sums[0][2 * h + 1]);
    VQTOK_UNROLL
    for (int j = 1; j < 8; ++j) best = fmaxf(best, fmaxf(sums[j][2 * h], sums[j][2 * h + 1]));
    return best;
}

template <class S>
VQTOK_DEVICE void end_first_tile(Thread<S>& thread) {
    VQTOK_UNROLL
    for (int i = 0; i < 4; ++i) thread.best[i / 2][i % 2] = largest_of(thread.sums[i / 2], i % 2);
}

// The second tile of a span completes four groups, one for each lane of a quad.
template <class S>
VQTOK_DEVICE void end_span(const Screening& task, const Shared<S>& shared, Thread<S>& thread, int span) {
    if (span >= task.book.spans) return;
    const int group = span * 4 + thread.lane % 4;
    const GroupBound its_bound = task.book.groups[group];
    VQTOK_UNROLL
    for (int m = 0; m < 2; ++m) {
        VQTOK_UNROLL
        for (int h = 0; h < 2; ++h) {
            const float best = fmaxf(thread.best[m][h], largest_of(thread.sums[m], h));
            thread.tops[m][h].insert(best + bound(shared.bounds[thread.row(m, h)], its_bound), group);
        }
    }
}

// What a place of the ring has, and what it completes. Returns the span to go on with.
template <class S>
VQTOK_DEVICE int use_place(const Screening& task, const Shared<S>& shared, Thread<S>& thread, int place, int stage,
                           int span) {
    if (S::kResident > 0) {
        begin_tile(shared, thread, place, 0);
        multiply_tile(task, shared, thread, place, 0, 0);
        end_first_tile(thread);
        begin_tile(shared, thread, place, 1);
        multiply_tile(task, shared, thread, place, 1, 0);
        end_span(task, shared, thread, span);
        return span + 1;
    }
    const int chunks = task.book.steps / S::kSteps, chunk = stage % chunks;
    if (chunk == 0) begin_tile(shared, thread, place, 0);
    multiply_tile(task, shared, thread, place, 0, chunk);
    if (chunk < chunks - 1) return span;
    const bool second = stage / chunks % 2 == 1;
    if (second)
        end_span(task, shared, thread, span);
    else
        end_first_tile(thread);
    return second ? span + 1 : span;
}

template <class S>
VQTOK_DEVICE void walk(const Screening& task, const Shared<S>& shared, Thread<S>& thread, float scale) {
    Feeder<S> feeder(task, scale);
    const int stages = task.spans_each * 2 / S::kTiles * feeder.chunks;
    for (int stage = 0; stage < S::kRing - 1; ++stage) {
        if (stage < stages) {
            feeder.start(shared);
            feeder.finish(shared);
        }
        end_copies();
    }
    int span = (static_cast<int>(blockIdx.y) * S::kColumnWarps + thread.column_warp) * task.spans_each, place = 0;
    for (int stage = 0; stage < stages; ++stage) {
        await_copies<S::kRing - 2>();
        __syncthreads();  // this stage has come for all; nobody reads the place that is filled next any more
        const bool feeding = stage + S::kRing - 1 < stages;
        if (feeding) feeder.start(shared);
        end_copies();
        span = use_place(task, shared, thread, place, stage, span);
        if (feeding) feeder.finish(shared);
        place = place + 1 == S::kRing ? 0 : place + 1;
    }
    await_copies<0>();
}

// ---- what the four lanes of a quad found

template <class S>
VQTOK_DEVICE void report(const Screening& task, const Shared<S>& shared, Thread<S>& thread) {
    const int64_t column = int64_t{blockIdx.y} * S::kColumnWarps + thread.column_warp;
    for (int i = 0; i < 4; ++i) {
        TopGroups top = thread.tops[i / 2][i % 2];
        const int r = thread.row(i / 2, i % 2);
        float lower = lower_bound(top, shared.bounds[r], task.book.groups);
        for (int bits = 1; bits < 4; bits *= 2) {
            TopGroups other;
            other.first = __shfl_xor_sync(kAllLanes, top.first, bits);
            other.second = __shfl_xor_sync(kAllLanes, top.second, bits);
            other.third = __shfl_xor_sync(kAllLanes, top.third, bits);
            other.first_group = __shfl_xor_sync(kAllLanes, top.first_group, bits);
            other.second_group = __shfl_xor_sync(kAllLanes, top.second_group, bits);
            top.merge(other);
            lower = fmaxf(lower, __shfl_xor_sync(kAllLanes, lower, bits));
        }
        const int64_t n = int64_t{blockIdx.x} * S::kRows + r, at = column * task.rows + n;
        if (thread.lane % 4 != 0 || n >= task.rows) continue;
        task.tops[at] = {top.first, top.second, top.third, lower};
        task.groups[at] = {top.first_group, top.second_group};
    }
}

template <class S>
__global__ void __launch_bounds__(S::kThreads) screen(Screening task) {
    const Shared<S> shared(shared_memory());
    const float scale = take_latents(task, shared);
    Thread<S> thread;
    begin(task, shared, thread);
    walk(task, shared, thread, scale);
    report(task, shared, thread);
}

template <class S>
int32_t launch_shape(const Screening& task, void* stream) {
    const int64_t bytes = S::shared_bytes(task.book.steps);
    if (const int32_t error = allow_shared(screen<S>, bytes)) return error;
    const dim3 grid(static_cast<unsigned>(ceil_div(task.rows, S::kRows)),
                    static_cast<unsigned>(task.columns / S::kColumnWarps));
    VQTOK_LAUNCH(screen<S>, grid, dim3(S::kThreads), bytes, stream, task);
    return 0;
}

}  // namespace vqtok
