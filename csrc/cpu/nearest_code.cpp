// nearest_code: shares tiles of latents among threads, screens where the codebook was packed for it, decides.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "kernel.h"
#include "packed.h"
#include "parallel.h"
#include "rows.h"
#include "screening.h"
#include "vqtok_cpu.h"

namespace vqtok {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr int kMostRows = kTogether * kMaxTile;
constexpr int64_t kTrial = 512;  // latents after which screening has to have shown that it pays

const Kernel* kernel_for(int32_t instruction_set) {
    if (instruction_set == 0) return &kScalarKernel;
#if VQTOK_X86
    // The system must save the wide registers too; __builtin_cpu_supports asks both it and the processor.
    __builtin_cpu_init();
    if (instruction_set == 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kAvx2Kernel;
    if (instruction_set == 2 && __builtin_cpu_supports("avx512f")) return &kAvx512Kernel;
#endif
#if VQTOK_ARM64
    if (instruction_set == 3) return &kNeonKernel;
#endif
    return nullptr;
}

// Latents that go through the deciding kernel together: gathered as rows, scanned as tiles.
class ExactTiles {
  public:
    ExactTiles(const Kernel& kernel, const Packed& codebook, int64_t* codes)
        : kernel_(kernel), codebook_(codebook), codes_(codes), tiles_(capacity() * codebook.D) {}

    int capacity() const { return kTogether * kernel_.strips * kernel_.lanes; }

    void add(const float* latent, int64_t n) {
        if (count_ == capacity()) scan();
        rows_[count_] = latent;
        number_[count_++] = n;
    }

    void scan() {
        const int full = kernel_.strips * kernel_.lanes, tiles = count_ / full;
        scan_from(0, tiles, kernel_.strips);
        scan_from(tiles * full, 1, (count_ - tiles * full + kernel_.lanes - 1) / kernel_.lanes);
        count_ = 0;
    }

  private:
    // `tile_count` tiles of so many strips, from gathered row `first` on.
    void scan_from(int first, int tile_count, int strips) {
        if (tile_count == 0 || strips == 0) return;
        const int width = strips * kernel_.lanes, end = std::min(first + tile_count * width, count_);
        for (int t = 0; t < tile_count; ++t) gather(first + t * width, width, tiles_.get() + t * width * codebook_.D);
        std::fill_n(best_, tile_count * width, kNever);
        std::fill_n(best_code_, tile_count * width, 0);
        kernel_.scan({tiles_.get(), tile_count, strips, codebook_.panels, codebook_.start, codebook_.panel_count,
                      codebook_.D, best_, best_code_});
        for (int r = first; r < end; ++r) codes_[number_[r]] = best_code_[r - first];
    }

    // Rows from `first` on as a tile [D][width]; what the last one lacks repeats its last row.
    void gather(int first, int width, float* tile) const {
        for (int64_t d0 = 0; d0 < codebook_.D; d0 += 16) {  // squares that stay in the first-level cache
            const int64_t end = std::min<int64_t>(d0 + 16, codebook_.D);
            for (int r = 0; r < width; ++r) {
                const float* latent = rows_[std::min(first + r, count_ - 1)];
                for (int64_t d = d0; d < end; ++d) tile[d * width + r] = latent[d];
            }
        }
    }

    const Kernel& kernel_;
    const Packed& codebook_;
    int64_t* codes_;
    Buffer<float> tiles_;
    const float* rows_[kMostRows];
    int64_t number_[kMostRows];
    alignas(64) float best_[kMostRows];
    alignas(64) int32_t best_code_[kMostRows];
    int count_ = 0;
};

// What all workers of one call share.
struct Call {
    const Kernel& kernel;
    const Packed& codebook;
    const VqtokRows& latents;
    int64_t* codes;
    std::atomic<int64_t> first_bad, screened{0}, fallen{0}, decided{0};

    // Screening that cannot tell the codes apart costs time and decides nothing.
    bool screening_pays() const { return codebook.screener != nullptr && (screened < kTrial || fallen * 4 < screened); }
};

class Worker {
  public:
    explicit Worker(Call& call)
        : call_(call), exact_(call.kernel, call.codebook, call.codes), rows_(kMostRows * call.codebook.D),
          kept_(call.codebook.screener ? kMostRows * call.codebook.D : 0), words_(kMaxTile * call.codebook.screened.steps) {
        if (call.codebook.screener != nullptr) tasks_.reserve(kMaxTile * kMaxCandidates);
    }

    void run(int64_t first, int64_t count) {
        if (first > call_.first_bad.load(std::memory_order_relaxed)) return;
        copy_rows(call_.latents, first, count, rows_.get());
        const int64_t bad = first_infinite(rows_.get(), count, call_.codebook.D);
        if (bad >= 0) return lower_to(call_.first_bad, first + bad);
        if (call_.screening_pays()) return screen(first, count);
        finish();  // latents kept so far would be overtaken
        for (int64_t r = 0; r < count; ++r) exact_.add(row(r), first + r);
        exact_.scan();
    }

    // Scans the latents that screening could not decide.
    void finish() {
        for (int i = 0; i < kept_count_; ++i) exact_.add(kept_.get() + i * call_.codebook.D, kept_number_[i]);
        exact_.scan();
        kept_count_ = 0;
    }

  private:
    float* row(int64_t r) const { return rows_.get() + r * call_.codebook.D; }

    void screen(int64_t first, int64_t count) {
        propose(static_cast<int>(count));
        decide(static_cast<int>(count));
        for (int r = 0; r < count; ++r) {
            call_.codes[first + r] = best_code_[r];
            if (undecided(r)) keep(r, first + r);
        }
        call_.screened += count;
        call_.decided += static_cast<int64_t>(tasks_.size());
    }

    // Finds for each latent the panels that may hold its code.
    void propose(int count) {
        const Screener& screener = *call_.codebook.screener;
        const int strips = (count + screener.lanes - 1) / screener.lanes, width = strips * screener.lanes;
        const ScreenedTile tile{strips, words_.get(), scale_, residual_, quantised_, length_};
        std::fill(row(count), row(width), 0.0f);
        for (int r = 0; r < width; ++r) screener.prepare_latent(row(r), call_.codebook.screened, tile, r);
        screener.scan(tile, call_.codebook.screened, candidates_);
    }

    void decide(int count) {
        tasks_.clear();
        for (int r = 0; r < count; ++r) {
            best_[r] = kNever;
            best_code_[r] = 0;
            if (undecided(r)) continue;
            for (int i = 0; i < candidates_.count[r]; ++i)
                if (!(candidates_.list[r][i].upper < candidates_.floor[r]))
                    tasks_.push_back({row(r), candidates_.list[r][i].panel, r, 0, 0});
        }
        // In the order of the codes, so that a panel which many latents ask for is read from memory once.
        std::sort(tasks_.begin(), tasks_.end(),
                  [](const PanelTask& a, const PanelTask& b) { return a.panel < b.panel; });
        const Packed& codebook = call_.codebook;
        codebook.screener->decide(tasks_.data(), static_cast<int64_t>(tasks_.size()), codebook.panels, codebook.start,
                                  codebook.D);
        for (const PanelTask& task : tasks_)  // codes ascend, so the first of equal scores is the lowest
            if (task.score > best_[task.row]) {
                best_[task.row] = task.score;
                best_code_[task.row] = task.code;
            }
    }

    // Too many candidates, or scores that low precision cannot hold.
    bool undecided(int r) const { return candidates_.count[r] > kMaxCandidates || !(candidates_.floor[r] > kNever); }

    void keep(int r, int64_t n) {
        if (kept_count_ == exact_.capacity()) finish();
        std::copy_n(row(r), call_.codebook.D, kept_.get() + kept_count_ * call_.codebook.D);
        kept_number_[kept_count_++] = n;
        ++call_.fallen;
    }

    Call& call_;
    ExactTiles exact_;
    Buffer<float> rows_, kept_;
    Buffer<int32_t> words_;
    int64_t kept_number_[kMostRows];
    int kept_count_ = 0;
    float best_[kMaxTile];
    int32_t best_code_[kMaxTile];
    alignas(64) float scale_[kMaxTile], residual_[kMaxTile], quantised_[kMaxTile], length_[kMaxTile];
    Candidates candidates_;
    std::vector<PanelTask> tasks_;
};

int64_t nearest_code(const Kernel& kernel, const VqtokRows& latents, const Packed& codebook, int64_t* codes, int32_t limit,
                     int64_t* statistics) {
    const int64_t N = latents.N, lanes = codebook.screener ? codebook.screener->lanes : kernel.lanes;
    const int64_t full = codebook.screener ? kMaxTile : kTogether * kernel.strips * kernel.lanes;
    const double work = static_cast<double>(N) * static_cast<double>(codebook.K) * static_cast<double>(codebook.D);
    const int threads = useful_threads(work, (N + lanes - 1) / lanes, limit);
    const int64_t share = (N + threads - 1) / threads, pieces = std::max<int64_t>(1, (share + full - 1) / full);
    const int64_t even = (share + pieces - 1) / pieces, rows = std::clamp((even + lanes - 1) / lanes * lanes, lanes, full);

    Call call{kernel, codebook, latents, codes, {N}};
    std::vector<std::unique_ptr<Worker>> workers;
    for (int i = 0; i < threads; ++i) workers.push_back(std::make_unique<Worker>(call));
    parallel((N + rows - 1) / rows, threads, [&](int64_t task, int worker) {
        workers[worker]->run(task * rows, std::min(rows, N - task * rows));
    });
    if (call.first_bad < N) return call.first_bad.load();
    if (codebook.screener != nullptr)
        parallel(threads, threads, [&](int64_t worker, int) { workers[worker]->finish(); });
    if (statistics != nullptr) {
        statistics[0] = call.screened;
        statistics[1] = call.decided;
        statistics[2] = call.fallen;
    }
    return kDone;
}

}  // namespace
}  // namespace vqtok

int32_t vqtok_cpu_abi() { return kVqtokCpuAbi; }

int32_t vqtok_cpu_has(int32_t instruction_set) { return vqtok::kernel_for(instruction_set) != nullptr; }

int64_t vqtok_nearest_code(const VqtokRows* latents, const void* packed, int64_t* codes, int32_t threads,
                           int32_t instruction_set, int64_t* statistics) {
    const vqtok::Kernel* kernel = vqtok::kernel_for(instruction_set);
    if (kernel == nullptr) return kNoInstructionSet;
    try {
        const vqtok::Packed codebook(packed);
        if (!codebook.valid() || codebook.D != latents->D) return kNotPacked;
        return vqtok::nearest_code(*kernel, *latents, codebook, codes, threads, statistics);
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}
