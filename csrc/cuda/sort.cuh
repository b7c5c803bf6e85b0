// A stable sort of (code, row) by code, so that every code's rows stand together and in order: radix sort, eight bits a
// pass from the lowest on. A warp owns a chunk of pairs, so that within it the order of lanes is the order of rows.
#pragma once

#include "launch.cuh"

namespace vqtok {

constexpr int kDigits = 256;
constexpr int kChunk = 512;  // pairs a warp
constexpr int kSortWarps = 8;

struct Pairs {
    uint32_t* codes;
    uint32_t* rows;
};

struct Sorting {
    const int64_t* codes;  // of the first pass; null: take `from`
    Pairs from, to;
    int64_t N, K;
    int64_t chunks;
    int shift;
    uint32_t* before;  // [256][chunks] pairs of this digit in this chunk, then in all chunks before it
    uint32_t* totals;  // [256]
};

// A code that does not exist comes after all others.
VQTOK_DEVICE uint32_t code_at(const Sorting& task, int64_t i) {
    if (task.codes == nullptr) return task.from.codes[i];
    const int64_t code = task.codes[i];
    return static_cast<uint32_t>(code >= 0 && code < task.K ? code : task.K);
}

VQTOK_DEVICE int digit_of(const Sorting& task, uint32_t code) { return static_cast<int>(code >> task.shift) % kDigits; }

VQTOK_DEVICE int64_t chunk_of_warp() { return int64_t{blockIdx.x} * kSortWarps + threadIdx.x / 32; }

__global__ void count_digits(Sorting task) {
    auto* counts = reinterpret_cast<unsigned*>(shared_memory()) + threadIdx.x / 32 * kDigits;
    const int lane = threadIdx.x % 32;
    const int64_t chunk = chunk_of_warp();
    for (int digit = lane; digit < kDigits; digit += 32) counts[digit] = 0;
    __syncwarp();
    for (int64_t i = chunk * kChunk + lane; i < (chunk + 1) * kChunk && i < task.N; i += 32)
        atomicAdd(&counts[digit_of(task, code_at(task, i))], 1u);
    __syncwarp();
    if (chunk >= task.chunks) return;
    for (int digit = lane; digit < kDigits; digit += 32) task.before[digit * task.chunks + chunk] = counts[digit];
}

// The sum of the lanes before this one; `total` becomes that of all.
VQTOK_DEVICE uint32_t sum_before(uint32_t mine, int lane, uint32_t& total) {
    uint32_t sum = mine;
    for (int step = 1; step < 32; step *= 2) {
        const uint32_t other = __shfl_sync(kAllLanes, sum, lane - step < 0 ? lane : lane - step);
        sum += lane >= step ? other : 0;
    }
    total = __shfl_sync(kAllLanes, sum, 31);
    return sum - mine;
}

// One warp a digit.
__global__ void sum_chunks(Sorting task) {
    const int lane = threadIdx.x % 32, digit = blockIdx.x * kSortWarps + threadIdx.x / 32;
    uint32_t* before = task.before + digit * task.chunks;
    uint32_t sum = 0;
    for (int64_t first = 0; first < task.chunks; first += 32) {
        const int64_t chunk = first + lane;
        uint32_t total = 0;
        const uint32_t earlier = sum_before(chunk < task.chunks ? before[chunk] : 0, lane, total);
        if (chunk < task.chunks) before[chunk] = sum + earlier;
        sum += total;
    }
    if (lane == 0) task.totals[digit] = sum;
}

// Where this chunk's first pair of every digit goes.
VQTOK_DEVICE void find_places(const Sorting& task, int64_t chunk, int lane, uint32_t* places) {
    uint32_t sum = 0;
    for (int first = 0; first < kDigits; first += 32) {
        uint32_t total = 0;
        const uint32_t smaller = sum_before(task.totals[first + lane], lane, total);
        places[first + lane] = sum + smaller + task.before[(first + lane) * task.chunks + chunk];
        sum += total;
    }
    __syncwarp();
}

// The lanes whose digit is this lane's, absent ones apart.
VQTOK_DEVICE unsigned lanes_alike(int digit, bool present) {
    unsigned alike = __ballot_sync(kAllLanes, present);
    for (int bit = 0; bit < 8; ++bit) {
        const unsigned set = __ballot_sync(kAllLanes, digit >> bit & 1);
        alike &= digit >> bit & 1 ? set : ~set;
    }
    return alike;
}

__global__ void scatter(Sorting task) {
    auto* places = reinterpret_cast<uint32_t*>(shared_memory()) + threadIdx.x / 32 * kDigits;
    const int lane = threadIdx.x % 32;
    const int64_t chunk = chunk_of_warp();
    if (chunk >= task.chunks) return;
    find_places(task, chunk, lane, places);
    for (int64_t first = chunk * kChunk; first < (chunk + 1) * kChunk && first < task.N; first += 32) {
        const int64_t i = first + lane;
        const bool present = i < task.N;
        const uint32_t code = present ? code_at(task, i) : 0;
        const int digit = digit_of(task, code);
        const unsigned alike = lanes_alike(digit, present), earlier = alike & ((1u << lane) - 1u);
        const uint32_t place = places[digit] + __popc(earlier);
        __syncwarp();
        if (present && earlier == 0) places[digit] += __popc(alike);
        __syncwarp();
        if (!present) continue;
        task.to.codes[place] = code;
        task.to.rows[place] = task.codes == nullptr ? task.from.rows[i] : static_cast<uint32_t>(i);
    }
}

// Sorts by the bits that codes 0..K have; returns where the result is: `task.to` or `task.from`.
inline Pairs sort_by_code(Sorting task, void* stream) {
    const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(task.chunks, kSortWarps));
    const dim3 threads(kSortWarps * 32);
    constexpr size_t bytes = kSortWarps * kDigits * sizeof(uint32_t);
    for (task.shift = 0; task.shift < 32 && task.K >> task.shift > 0; task.shift += 8) {
        VQTOK_LAUNCH(count_digits, dim3(blocks), threads, bytes, stream, task);
        VQTOK_LAUNCH(sum_chunks, dim3(kDigits / kSortWarps), threads, 0, stream, task);
        VQTOK_LAUNCH(scatter, dim3(blocks), threads, bytes, stream, task);
        const Pairs sorted = task.to;
        task.to = task.from;
        task.from = sorted;
        task.codes = nullptr;
    }
    return task.from;
}

}  // namespace vqtok
