// 3 x 3 convolutions by Winograd's F(2 x 2, 3 x 3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
// 2015, section 4.1), with what stands before and after them in a residual block: GroupNorm's map and SiLU on the way
// in, bias and residual on the way out, so that no map of an image is written twice.
//
// A task is a strip of columns and a stretch of rows of one image. It goes down row of tiles by row of tiles: the pixels
// under them (a border around, two rows kept from the step before) are brought into float32, mapped to 16 points a tile,
// multiplied with the weights panel by panel of outputs, and mapped back.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "conv3x3.h"
#include "elements.h"
#include "group_norm.h"
#include "parallel.h"
#include "vqtok_cpu.h"

namespace vqtok {
namespace {

constexpr int64_t kPointsHeld = 8192;  // tiles of a step x C: with the 16 points of each, half of a second-level cache
constexpr int64_t kMostTiles = 32;
constexpr int64_t kTasks = 64;         // at least, where there are tiles enough
constexpr int64_t kApart = 16;         // words between points, which would all lie in one set of the cache without

const ConvKernel* conv_kernel_for(int32_t instruction_set, bool bfloat16) {
#if VQTOK_X86
    __builtin_cpu_init();
#if VQTOK_X86_BF16
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    if (bfloat16) return wide && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16") ? &kBf16Conv : nullptr;
#endif
    if (bfloat16) return nullptr;
    if (instruction_set == 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kAvx2Conv;
    if (instruction_set == 2 && __builtin_cpu_supports("avx512f")) return &kAvx512Conv;
#else
    (void)instruction_set, (void)bfloat16;
#endif
    return nullptr;
}

int64_t ratio_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How an image is cut. It depends on the shape alone, and no sum depends on it.
struct Cut {
    int64_t tiles_high, tiles_wide;  // of the image
    int64_t high, wide;              // of a step
    int64_t strips, stretches, steps;  // strips of columns; stretches of rows and steps in each

    Cut(int64_t B, int64_t height, int64_t width, int64_t C) {
        tiles_high = ratio_up(height, 2), tiles_wide = ratio_up(width, 2);
        const int64_t most = std::clamp<int64_t>(kPointsHeld / C, 8, kMostTiles);
        strips = ratio_up(tiles_wide, most);
        wide = ratio_up(ratio_up(tiles_wide, strips), 8) * 8;
        wide = std::min(wide, tiles_wide);
        strips = ratio_up(tiles_wide, wide);
        high = std::clamp<int64_t>(most / wide, 1, tiles_high);
        const int64_t all = ratio_up(tiles_high, high);
        steps = std::clamp<int64_t>(B * strips * all / kTasks, 1, all);
        stretches = ratio_up(all, steps);
    }
};

class Conv3x3 {
  public:
    Conv3x3(const VqtokConv3x3& work, const ConvKernel& kernel, const NormKernel& norm, int32_t limit)
        : work_(work), kernel_(kernel), norm_(norm), bytes_(work.type == kBFloat16 ? 2 : 4),
          height_(work.H << work.doubled), width_(work.W << work.doubled), cut_(work.B, height_, width_, work.C) {
        const double sums = static_cast<double>(work.B * height_) * static_cast<double>(width_ * work.C * work.N);
        threads_ = useful_threads(4 * sums, work.B * cut_.strips * cut_.stretches, limit);
    }

    void run() const {
        large_pages(work_.y, work_.B * height_ * width_ * work_.N * bytes_);
        std::vector<std::unique_ptr<Scratch>> scratch;
        for (int i = 0; i < threads_; ++i) scratch.push_back(std::make_unique<Scratch>(cut_, work_.C));
        parallel(work_.B * cut_.strips * cut_.stretches, threads_, [&](int64_t task, int worker) {
            const int64_t strip = task % cut_.strips, stretch = task / cut_.strips % cut_.stretches;
            const int64_t b = task / cut_.strips / cut_.stretches;
            walk(b, strip * cut_.wide, stretch * cut_.steps * cut_.high, *scratch[worker]);
        });
    }

  private:
    struct Scratch {
        Scratch(const Cut& cut, int64_t C)
            : pixels((2 * cut.high + 2) * (2 * cut.wide + 2) * C), points(kPoints * (cut.high * cut.wide * C + kApart)),
              products(kPoints * (cut.high * cut.wide * kOutputs + kApart)) {}
        Buffer<float> pixels, points, products;
    };

    // The stretch of tile rows from `first` on, in the strip of tiles from `left` on.
    void walk(int64_t b, int64_t left, int64_t first, const Scratch& scratch) const {
        const int64_t wide = std::min(cut_.wide, cut_.tiles_wide - left), row = (2 * wide + 2) * work_.C;
        const int64_t end = std::min(first + cut_.steps * cut_.high, cut_.tiles_high);
        for (int64_t i = first; i < end; i += cut_.high) {
            const int64_t high = std::min(cut_.high, end - i), kept = i > first ? 2 : 0;
            float* pixels = scratch.pixels.get();
            if (kept > 0) std::memmove(pixels, pixels + 2 * cut_.high * row, 2 * row * sizeof(float));
            for (int64_t r = kept; r < 2 * high + 2; ++r) bring_row(b, 2 * i - 1 + r, 2 * left - 1, 2 * wide + 2, pixels + r * row);
            multiply(b, i, high, left, wide, scratch);
        }
    }

    void multiply(int64_t b, int64_t top, int64_t high, int64_t left, int64_t wide, const Scratch& scratch) const {
        const int64_t C = work_.C, N = work_.N, T = high * wide, row = (2 * wide + 2) * C, words = C / kernel_.channels;
        const int64_t points = T * words + kApart, products = T * kOutputs + kApart;
        for (int64_t i = 0; i < high; ++i)
            kernel_.map_input(scratch.pixels.get() + 2 * i * row, row, wide, C, scratch.points.get() + i * wide * words, points);
        for (int64_t n = 0; n < N; n += kOutputs) {
            const float* weights = static_cast<const float*>(work_.weights) + n * kPoints * words;
            for (int p = 0; p < kPoints; ++p)
                kernel_.multiply(scratch.points.get() + p * points, T, words, weights + p * words * kOutputs,
                                 scratch.products.get() + p * products);
            for (int64_t i = 0; i < high; ++i)
                put(b, top + i, left, wide, n, scratch.products.get() + i * wide * kOutputs, products);
        }
    }

    void put(int64_t b, int64_t tile_row, int64_t left, int64_t wide, int64_t n, const float* products, int64_t p_stride) const {
        const int64_t N = work_.N, at = ((b * height_ + 2 * tile_row) * width_ + 2 * left) * N + n;
        const auto* residual = static_cast<const char*>(work_.residual);
        const TileRow to{work_.bias != nullptr ? work_.bias + n : nullptr,
                         residual != nullptr ? residual + at * bytes_ : nullptr,
                         static_cast<char*>(work_.y) + at * bytes_,
                         width_ * N, N, std::min<int64_t>(2, height_ - 2 * tile_row), width_ - 2 * left};
        (work_.type == kBFloat16 ? kernel_.map_output_bfloat16 : kernel_.map_output_float32)(products, p_stride, wide, to);
    }

    // `count` pixels of row r from column `first` on, which f maps; zeros outside of the image.
    void bring_row(int64_t b, int64_t r, int64_t first, int64_t count, float* out) const {
        const int64_t C = work_.C, begin = std::max<int64_t>(first, 0), end = std::min(first + count, width_);
        if (r < 0 || r >= height_ || begin >= end) {
            std::fill_n(out, count * C, 0.0f);
            return;
        }
        std::fill_n(out, (begin - first) * C, 0.0f);
        std::fill_n(out + (end - first) * C, (first + count - end) * C, 0.0f);
        out += (begin - first) * C;
        if (work_.doubled) {
            for (int64_t j = begin; j < end; ++j) bring(b, r / 2, j / 2, 1, out + (j - begin) * C);
        } else {
            bring(b, r, begin, end - begin, out);
        }
    }

    void bring(int64_t b, int64_t r, int64_t column, int64_t count, float* out) const {
        const int64_t C = work_.C, at = ((b * work_.H + r) * work_.W + column) * C;
        const void* x = static_cast<const char*>(work_.x) + at * bytes_;
        if (work_.affine != nullptr) {
            const float* affine = work_.affine + 3 * b * C;
            norm_.apply_to_float32({x, count, C}, {affine, affine + C, affine + 2 * C, true}, out);
        } else {
            norm_.widen(x, count * C, out);
        }
    }

    const VqtokConv3x3& work_;
    const ConvKernel& kernel_;
    const NormKernel& norm_;
    const int64_t bytes_, height_, width_;
    const Cut cut_;
    int threads_;
};

// The 16 points G g G^T of 3 x 3 weights: in float64, rounded once.
void map_weights(const float* g, float* points) {
    double half[4][3];
    for (int j = 0; j < 3; ++j) {
        const double a = g[j], b = g[3 + j], c = g[6 + j];
        half[0][j] = a, half[1][j] = (a + b + c) / 2, half[2][j] = (a - b + c) / 2, half[3][j] = c;
    }
    for (int i = 0; i < 4; ++i) {
        const double a = half[i][0], b = half[i][1], c = half[i][2];
        const double row[4] = {a, (a + b + c) / 2, (a - b + c) / 2, c};
        for (int j = 0; j < 4; ++j) points[4 * i + j] = static_cast<float>(row[j]);
    }
}

}  // namespace
}  // namespace vqtok

int32_t vqtok_cpu_convolves(int32_t instruction_set, int32_t bfloat16) {
    return vqtok::conv_kernel_for(instruction_set, bfloat16 != 0) != nullptr;
}

int64_t vqtok_conv3x3(const VqtokConv3x3* work, int32_t threads, int32_t instruction_set) {
    const vqtok::ConvKernel* kernel = vqtok::conv_kernel_for(instruction_set, work->bfloat16 != 0);
    if (kernel == nullptr) return kNoInstructionSet;
    if (work->B == 0 || work->H == 0 || work->W == 0) return kDone;
    try {
        vqtok::Conv3x3(*work, *kernel, vqtok::norm_kernel_for(work->type, instruction_set), threads).run();
        return kDone;
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}

int64_t vqtok_pack_conv3x3(const float* weights, int64_t C, int64_t N, int32_t bfloat16, void* packed, int32_t threads) {
    using vqtok::kOutputs, vqtok::kPoints;
    const int used = vqtok::useful_threads(64.0 * static_cast<double>(C) * static_cast<double>(N), N / kOutputs, threads);
    vqtok::parallel(N / kOutputs, used, [=](int64_t panel, int) {
        for (int64_t c = 0; c < C; ++c)
            for (int64_t n = 0; n < kOutputs; ++n) {
                float points[kPoints];
                vqtok::map_weights(weights + ((panel * kOutputs + n) * C + c) * 9, points);
                for (int64_t p = 0; p < kPoints; ++p) {
                    const int64_t first = (panel * kPoints + p) * C * kOutputs;
                    if (bfloat16 != 0)
                        static_cast<uint16_t*>(packed)[first + (c / 2 * kOutputs + n) * 2 + c % 2] =
                            vqtok::BFloat16::store(points[p]);
                    else
                        static_cast<float*>(packed)[first + c * kOutputs + n] = points[p];
                }
            }
    });
    return kDone;
}
