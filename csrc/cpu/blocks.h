// Reading strided rows of any element type as small dense blocks of float.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "elements.h"
#include "parallel.h"
#include "rows.h"
#include "vqtok_cpu.h"

namespace vqtok {

// Rows of one block: half of a small L1. It depends on D alone, so that what is summed by blocks does too.
inline int64_t block_rows(int64_t D) { return std::clamp<int64_t>(4096 / std::max<int64_t>(D, 1), 1, 256); }

inline int64_t block_count(int64_t N, int64_t D) { return (N + block_rows(D) - 1) / block_rows(D); }

// One worker's view of rows as dense blocks; copies only what does not lie so already.
class BlockReader {
  public:
    explicit BlockReader(const VqtokRows& rows)
        : rows_(rows), in_place_(is_dense(rows)), buffer_(in_place_ ? 0 : block_rows(rows.D) * rows.D) {}

    // Returns [count][D] from row `first`, valid until the next call.
    const float* read(int64_t first, int64_t count) const {
        if (in_place_) return static_cast<const float*>(rows_.data) + first * rows_.D;
        copy_rows(rows_, first, count, buffer_.get());
        return buffer_.get();
    }

  private:
    static bool is_dense(const VqtokRows& rows) {
        const bool in_a_row = rows.rank == 0 || (rows.rank == 1 && rows.strides[0] == rows.D);
        return rows.type == kFloat32 && (rows.stride_d == 1 || rows.D == 1) && in_a_row;
    }

    const VqtokRows& rows_;
    bool in_place_;
    Buffer<float> buffer_;
};

// One reader a worker, made before the threads start: memory that is lacking is missed here and not in a thread.
inline std::vector<std::unique_ptr<BlockReader>> readers(const VqtokRows& rows, int threads) {
    std::vector<std::unique_ptr<BlockReader>> made;
    for (int i = 0; i < threads; ++i) made.push_back(std::make_unique<BlockReader>(rows));
    return made;
}

// Runs body(block, first, count, worker) over all blocks of rows.
template <class Body>
void over_blocks(int64_t N, int64_t D, int threads, const Body& body) {
    const int64_t each = block_rows(D);
    parallel(block_count(N, D), threads, [&](int64_t block, int worker) {
        body(block, block * each, std::min(each, N - block * each), worker);
    });
}

inline int threads_for(const VqtokRows& rows, int32_t limit) {
    // Reading, widening and writing an element costs about as much as this many multiply-adds of the lookup.
    return useful_threads(8.0 * static_cast<double>(rows.N) * static_cast<double>(rows.D), block_count(rows.N, rows.D), limit);
}

// A sum in float64 whose order is fixed but leaves the compiler eight lanes.
struct Sum {
    static constexpr int kLanes = 8;
    double lane[kLanes] = {};
    double total() const {
        return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
    }
};

// Sum of term(d) over d = 0..D-1.
template <class Term>
double sum_over(int64_t D, const Term& term) {
    Sum sum;
    int64_t d = 0;
    for (; d + Sum::kLanes <= D; d += Sum::kLanes)
        for (int i = 0; i < Sum::kLanes; ++i) sum.lane[i] += term(d + i);
    for (; d < D; ++d) sum.lane[d % Sum::kLanes] += term(d);
    return sum.total();
}

}  // namespace vqtok
