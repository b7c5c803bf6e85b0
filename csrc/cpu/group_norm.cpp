// GroupNorm whose statistics survive flat images. An image is cut into pieces that stay in the second-level cache; of a
// piece each group's mean is taken first and then the deviations from it, in float32; pieces are put together in
// float64, in order. The cut depends on the shape alone, so the bits depend on neither threads nor neighbours.
//
// B: images, C: channels, P: pixels of an image, G: groups.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "elements.h"
#include "group_norm.h"
#include "parallel.h"
#include "vqtok_cpu.h"

namespace vqtok {
namespace {

constexpr int64_t kPiece = 16384;  // elements of a piece, about
constexpr int64_t kMostRows = 256;  // that are added in float32
constexpr int64_t kRun = 16;       // columns that a stretch of one channel or group is folded into

// A group's share of a piece: its mean, and the sum of squared deviations from it.
struct Moments {
    double mean, squares;
};

// What a thread works in: column sums, and what each channel is mapped by.
class Scratch {
  public:
    explicit Scratch(int64_t columns) : columns_(columns), data_(3 * columns) {}
    float* centre() const { return data_.get(); }
    float* sum() const { return data_.get() + columns_; }
    float* square() const { return data_.get() + 2 * columns_; }

  private:
    int64_t columns_;
    Buffer<float> data_;
};

// Moments of `width` neighbouring columns; scratch holds the sums of all columns' deviations from `centre`.
Moments moments_of(const float* sum, const float* square, int64_t width, int64_t rows, double centre) {
    double total = 0, squares = 0;
    for (int64_t c = 0; c < width; ++c) total += sum[c], squares += square[c];
    const double count = static_cast<double>(width * rows), off = total / count;
    return {centre + off, std::max(squares - total * off, 0.0)};  // NaN stays: it is the first argument
}

// Moments of each of `groups` groups of columns.
void measure(const NormKernel& kernel, const Columns& piece, int64_t groups, const Scratch& scratch, Moments* moments) {
    const int64_t width = piece.columns / groups;
    kernel.sums(piece, scratch.sum());
    for (int64_t g = 0; g < groups; ++g) {
        double total = 0;
        for (int64_t c = g * width; c < (g + 1) * width; ++c) total += scratch.sum()[c];
        std::fill_n(scratch.centre() + g * width, width, static_cast<float>(total / static_cast<double>(width * piece.rows)));
    }
    kernel.deviations(piece, scratch.centre(), scratch.sum(), scratch.square());
    for (int64_t g = 0; g < groups; ++g) {
        const int64_t c = g * width;
        moments[g] = moments_of(scratch.sum() + c, scratch.square() + c, width, piece.rows, scratch.centre()[c]);
    }
}

// Moments of pieces of counts[i] elements each, put together: `pieces` of them, `stride` apart.
template <class Count>
Moments together(const Moments* moments, int64_t pieces, int64_t stride, const Count& count) {
    double total = 0, mean = 0, squares = 0;
    for (int64_t i = 0; i < pieces; ++i) {
        mean += static_cast<double>(count(i)) * moments[i * stride].mean;
        total += static_cast<double>(count(i));
    }
    mean /= total;
    for (int64_t i = 0; i < pieces; ++i) {
        const double off = moments[i * stride].mean - mean;
        squares += moments[i * stride].squares + static_cast<double>(count(i)) * off * off;
    }
    return {mean, squares / total};  // the variance
}

// One call: images of one shape, by one kernel.
class GroupNorm {
  public:
    GroupNorm(const VqtokGroupNorm& work, const NormKernel& kernel, int32_t limit)
        : work_(work), kernel_(kernel), bytes_(work.type == kBFloat16 ? 2 : 4), C_(work.C), P_(work.pixels),
          G_(work.groups), own_(work.affine != nullptr ? 0 : 3 * work.B * work.C),
          affine_(work.affine != nullptr ? work.affine : own_.get()) {
        // Reading twice and writing once what comes from memory costs about as much as so many multiply-adds.
        threads_ = useful_threads(16.0 * static_cast<double>(work.B * C_) * static_cast<double>(P_), 1 << 20, limit);
    }

    void run() {
        if (work_.y != nullptr) large_pages(work_.y, work_.B * C_ * P_ * bytes_);
        work_.channels_last ? channels_last() : contiguous();
    }

  private:
    const void* x(int64_t element) const { return static_cast<const char*>(work_.x) + element * bytes_; }
    void* y(int64_t element) const { return static_cast<char*>(work_.y) + element * bytes_; }
    Affine affine(int64_t b, int64_t c) const {
        const float* p = affine_ + 3 * b * C_ + c;
        return {p, p + C_, p + 2 * C_, work_.silu != 0};
    }

    // (x - mean) r w + b, of which the float32 nearest to the mean is taken off first: of a flat image little is left.
    void set_affine(int64_t b, int64_t g, const Moments& whole) {
        const double scale = 1 / std::sqrt(whole.squares + work_.eps);
        const auto centre = static_cast<float>(whole.mean);
        float* p = affine_ + 3 * b * C_;
        for (int64_t c = g * (C_ / G_); c < (g + 1) * (C_ / G_); ++c) {
            const double by = work_.weight != nullptr ? scale * work_.weight[c] : scale;
            p[c] = centre;
            p[C_ + c] = static_cast<float>(by);
            p[2 * C_ + c] = static_cast<float>((work_.bias != nullptr ? work_.bias[c] : 0.0) - (whole.mean - centre) * by);
        }
    }

    void channels_last() {
        const int64_t each = std::clamp<int64_t>(kPiece / C_, 1, kMostRows), pieces = (P_ + each - 1) / each;
        const auto rows = [=](int64_t i) { return std::min(each, P_ - i * each); };
        const auto elements = [=](int64_t i) { return rows(i) * (C_ / G_); };
        const Buffer<Moments> moments(work_.B * pieces * G_);
        const auto scratch = scratches(C_);
        const auto piece = [&](int64_t task) {
            const int64_t i = task % pieces;
            return Columns{x((task / pieces * P_ + i * each) * C_), rows(i), C_};
        };
        parallel(work_.B * pieces, threads_, [&](int64_t task, int worker) {
            measure(kernel_, piece(task), G_, *scratch[worker], moments.get() + task * G_);
        });
        for (int64_t b = 0; b < work_.B; ++b)
            for (int64_t g = 0; g < G_; ++g)
                set_affine(b, g, together(moments.get() + b * pieces * G_ + g, pieces, G_, elements));
        if (work_.y == nullptr) return;
        parallel(work_.B * pieces, threads_, [&](int64_t task, int) {
            kernel_.apply(piece(task), affine(task / pieces, 0), y((task / pieces * P_ + task % pieces * each) * C_));
        });
    }

    // A group is one stretch of C / G x P elements, folded into rows of kRun; what is left over is a row of its own.
    void contiguous() {
        const auto scratch = scratches(kRun);
        parallel(work_.B * G_, threads_, [&](int64_t task, int worker) {
            const int64_t b = task / G_, g = task % G_, length = C_ / G_ * P_, first = task * length;
            set_affine(b, g, stretch(first, length, *scratch[worker]));
            for (int64_t c = g * (C_ / G_); work_.y != nullptr && c < (g + 1) * (C_ / G_); ++c) map_channel(b, c, *scratch[worker]);
        });
    }

    // Mean and variance of a stretch: pieces are put together as they come, by Chan, Golub and LeVeque's update.
    Moments stretch(int64_t first, int64_t length, const Scratch& scratch) const {
        Moments whole{0, 0};
        double count = 0;
        for (int64_t i = 0; i < length;) {
            const int64_t rows = std::min(kMostRows, (length - i) / kRun);
            const Columns piece{x(first + i), std::max<int64_t>(rows, 1), rows > 0 ? kRun : length - i};
            Moments part;
            measure(kernel_, piece, 1, scratch, &part);
            const double more = static_cast<double>(piece.rows * piece.columns), off = part.mean - whole.mean;
            whole.mean += off * (more / (count + more));
            whole.squares += part.squares + off * off * (count * more / (count + more));
            count += more;
            i += piece.rows * piece.columns;
        }
        return {whole.mean, whole.squares / count};
    }

    void map_channel(int64_t b, int64_t c, const Scratch& scratch) const {
        const Affine all = affine(b, c);
        std::fill_n(scratch.centre(), kRun, *all.centre);
        std::fill_n(scratch.sum(), kRun, *all.scale);
        std::fill_n(scratch.square(), kRun, *all.shift);
        const Affine by{scratch.centre(), scratch.sum(), scratch.square(), all.silu};
        const int64_t first = (b * C_ + c) * P_, rows = P_ / kRun, rest = P_ % kRun;
        kernel_.apply({x(first), rows, kRun}, by, y(first));
        if (rest > 0) kernel_.apply({x(first + rows * kRun), 1, rest}, by, y(first + rows * kRun));
    }

    std::vector<std::unique_ptr<Scratch>> scratches(int64_t columns) const {
        std::vector<std::unique_ptr<Scratch>> made;
        for (int i = 0; i < threads_; ++i) made.push_back(std::make_unique<Scratch>(columns));
        return made;
    }

    const VqtokGroupNorm& work_;
    const NormKernel& kernel_;
    const int64_t bytes_, C_, P_, G_;
    const Buffer<float> own_;
    float* const affine_;
    int threads_;
};

}  // namespace

const NormKernel& norm_kernel_for(int64_t type, int32_t instruction_set) {
    const NormKernels* kernels = &kPlainNorm;
#if VQTOK_X86
    __builtin_cpu_init();
    if (instruction_set >= 1 && __builtin_cpu_supports("avx2")) kernels = &kAvx2Norm;
    if (instruction_set == 2 && __builtin_cpu_supports("avx512f")) kernels = &kAvx512Norm;
#else
    (void)instruction_set;
#endif
    return type == kBFloat16 ? kernels->of_bfloat16 : kernels->of_float32;
}

}  // namespace vqtok

int64_t vqtok_group_norm(const VqtokGroupNorm* work, int32_t threads, int32_t instruction_set) {
    if (work->B == 0 || work->C == 0 || work->pixels == 0) return kDone;
    try {
        vqtok::GroupNorm(*work, vqtok::norm_kernel_for(work->type, instruction_set), threads).run();
        return kDone;
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}
