// compact and spread: kept rows moved together and apart, as bytes, so elements may be of any type.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>

#include "kernel.h"
#include "parallel.h"
#include "vqtok_cpu.h"

namespace vqtok {
namespace {

// Where the kept rows of each of B masks begin; begins[B] is how many there are.
void count_kept(const bool* keep, int64_t B, int64_t N, int64_t* begins) {
    begins[0] = 0;
    for (int64_t b = 0; b < B; ++b) begins[b + 1] = begins[b] + std::count(keep + b * N, keep + (b + 1) * N, true);
}

// Bytes are cheap to move: as many as this are worth one multiply-add.
int threads_for_bytes(int64_t bytes, int64_t tasks, int32_t limit) {
    return useful_threads(static_cast<double>(bytes) * 2.0, tasks, limit);
}

template <class Element>
void copy_strided(const char* from, int64_t stride, int64_t count, char* to) {
    for (int64_t i = 0; i < count; ++i) std::memcpy(to + i * sizeof(Element), from + i * stride * sizeof(Element), sizeof(Element));
}

void copy_row(const VqtokGrid& values, int64_t b, int64_t n, char* to) {
    const char* from = static_cast<const char*>(values.data) + (b * values.stride_b + n * values.stride_n) * values.bytes;
    if (values.stride_d == 1 || values.D == 1) std::memcpy(to, from, values.D * values.bytes);
    else if (values.bytes == 1) copy_strided<uint8_t>(from, values.stride_d, values.D, to);
    else if (values.bytes == 2) copy_strided<uint16_t>(from, values.stride_d, values.D, to);
    else if (values.bytes == 4) copy_strided<uint32_t>(from, values.stride_d, values.D, to);
    else if (values.bytes == 8) copy_strided<uint64_t>(from, values.stride_d, values.D, to);
    else
        for (int64_t d = 0; d < values.D; ++d)
            std::memcpy(to + d * values.bytes, from + d * values.stride_d * values.bytes, values.bytes);
}

}  // namespace
}  // namespace vqtok

int64_t vqtok_compact(const VqtokGrid* values, const bool* keep, void* compacted, int64_t* lengths, int32_t limit) {
    const int64_t B = values->B, N = values->N, row = values->D * values->bytes;
    try {
        const vqtok::Buffer<int64_t> begins(B + 1);
        vqtok::count_kept(keep, B, N, begins.get());
        vqtok::parallel(B, vqtok::threads_for_bytes(begins.get()[B] * row, B, limit), [&](int64_t b, int) {
            lengths[b] = begins.get()[b + 1] - begins.get()[b];
            auto* to = static_cast<char*>(compacted) + begins.get()[b] * row;
            for (int64_t n = 0; n < N; ++n)
                if (keep[b * N + n]) {
                    vqtok::copy_row(*values, b, n, to);
                    to += row;
                }
        });
        return kDone;
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}

int64_t vqtok_spread(const void* values, const bool* mask, const void* fill, int64_t B, int64_t N, int64_t row,
                     void* rows, int32_t limit) {
    try {
        const vqtok::Buffer<int64_t> begins(B + 1);
        vqtok::count_kept(mask, B, N, begins.get());
        vqtok::parallel(B, vqtok::threads_for_bytes(B * N * row, B, limit), [&](int64_t b, int) {
            const char* from = static_cast<const char*>(values) + begins.get()[b] * row;
            for (int64_t n = 0; n < N; ++n) {
                const bool is_value = mask[b * N + n];
                std::memcpy(static_cast<char*>(rows) + (b * N + n) * row, is_value ? from : fill, row);
                if (is_value) from += row;
            }
        });
        return kDone;
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}
