// Sums over the rows of each code: in float64, in row order, rounded once, so no sum depends on the threads.
//
// Rows that lie in one piece are sorted by code (a counting sort, stable) and added code by code; threads share the
// codes. Of rows that do not, as in a BCHW view, a dimension is read along memory; threads share the dimensions.
#pragma once

#include <algorithm>
#include <cstdint>

#include "blocks.h"
#include "elements.h"
#include "parallel.h"
#include "rows.h"
#include "vqtok_cpu.h"

namespace vqtok {

// The rows of code k are rows[starts[k]] .. rows[starts[k + 1] - 1], ascending.
class RowsByCode {
  public:
    RowsByCode(const int64_t* codes, int64_t N, int64_t K, int threads)
        : starts_(K + 1), rows_(N), parts_(useful_parts(N, K, threads)), counts_(parts_ * K) {
        parallel(parts_, parts_, [&](int64_t part, int) {
            int64_t* counts = counts_.get() + part * K;
            std::fill_n(counts, K, 0);
            for (int64_t n = N * part / parts_; n < N * (part + 1) / parts_; ++n) ++counts[codes[n]];
        });
        int64_t next = 0;
        for (int64_t k = 0; k < K; ++k) {
            starts_.get()[k] = next;
            for (int64_t part = 0; part < parts_; ++part) {
                const int64_t count = counts_.get()[part * K + k];
                counts_.get()[part * K + k] = next;
                next += count;
            }
        }
        starts_.get()[K] = next;
        parallel(parts_, parts_, [&](int64_t part, int) {
            int64_t* places = counts_.get() + part * K;
            for (int64_t n = N * part / parts_; n < N * (part + 1) / parts_; ++n) rows_.get()[places[codes[n]]++] = n;
        });
    }
    const int64_t* starts() const { return starts_.get(); }
    const int64_t* rows() const { return rows_.get(); }

  private:
    // Each part has a histogram of its own; all of them together stay within N + K.
    static int useful_parts(int64_t N, int64_t K, int threads) {
        return useful_threads(16.0 * static_cast<double>(N), N / K + 1, threads);
    }
    Buffer<int64_t> starts_, rows_;
    int parts_;
    Buffer<int64_t> counts_;
};

// Code by code: term(k, d, x) is what element x adds to sum (k, d), finish(k, d, sum) takes the sum.
template <class Type, class Term, class Finish>
void sum_sorted(const VqtokRows& rows, const RowsByCode& order, int64_t K, int threads, const Term& term,
                const Finish& finish) {
    const int64_t D = rows.D, stride_d = rows.stride_d;
    const auto* data = reinterpret_cast<const typename Type::Stored*>(rows.data);
    const int64_t tasks = threads == 1 ? 1 : std::min<int64_t>(K, 16 * threads);
    const Buffer<double> sums(threads * D);
    parallel(tasks, threads, [&](int64_t task, int worker) {
        double* sum = sums.get() + worker * D;
        for (int64_t k = K * task / tasks; k < K * (task + 1) / tasks; ++k) {
            std::fill_n(sum, D, 0.0);
            for (int64_t i = order.starts()[k]; i < order.starts()[k + 1]; ++i) {
                const auto* row = data + row_offset(rows, order.rows()[i]);
                if (stride_d == 1)
                    for (int64_t d = 0; d < D; ++d) sum[d] += term(k, d, Type::load(row[d]));
                else
                    for (int64_t d = 0; d < D; ++d) sum[d] += term(k, d, Type::load(row[d * stride_d]));
            }
            for (int64_t d = 0; d < D; ++d) finish(k, d, sum[d]);
        }
    });
}

// Dimension by dimension.
template <class Type, class Term, class Finish>
void sum_columns(const VqtokRows& rows, const int64_t* codes, int64_t K, int threads, const Term& term,
                 const Finish& finish) {
    const auto* data = reinterpret_cast<const typename Type::Stored*>(rows.data);
    const Buffer<double> sums(threads * K);
    parallel(rows.D, threads, [&](int64_t d, int worker) {
        double* sum = sums.get() + worker * K;
        std::fill_n(sum, K, 0.0);
        for_each_run(rows, 0, rows.N, [&](int64_t n, int64_t length, int64_t offset, int64_t stride) {
            const auto* column = data + offset + d * rows.stride_d;
            for (int64_t r = 0; r < length; ++r) {
                const int64_t k = codes[n + r];
                sum[k] += term(k, d, Type::load(column[r * stride]));
            }
        });
        for (int64_t k = 0; k < K; ++k) finish(k, d, sum[k]);
    });
}

// Each column visits all K sums: not worth it for few rows.
inline bool reads_columns(const VqtokRows& rows, int64_t K) {
    return rows.rank > 0 && rows.strides[rows.rank - 1] < rows.stride_d && rows.N >= K / 4;
}

// `counts` may be null.
template <class Term, class Finish>
void sum_by_code(const VqtokRows& rows, const int64_t* codes, int64_t K, int64_t* counts, int32_t limit,
                 const Term& term, const Finish& finish) {
    const double work = 8.0 * static_cast<double>(rows.N + K) * static_cast<double>(rows.D);
    const bool columns = reads_columns(rows, K);
    const int threads = useful_threads(work, columns ? rows.D : K, limit);
    with_type(rows.type, [&](auto type) {
        using Type = decltype(type);
        if (columns) {
            sum_columns<Type>(rows, codes, K, threads, term, finish);
            if (counts == nullptr) return;
            std::fill_n(counts, K, 0);
            for (int64_t n = 0; n < rows.N; ++n) ++counts[codes[n]];
            return;
        }
        const RowsByCode order(codes, rows.N, K, threads);
        sum_sorted<Type>(rows, order, K, threads, term, finish);
        for (int64_t k = 0; counts != nullptr && k < K; ++k) counts[k] = order.starts()[k + 1] - order.starts()[k];
    });
}

}  // namespace vqtok
