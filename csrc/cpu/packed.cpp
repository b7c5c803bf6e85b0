// Packing a codebook: panels for the deciding kernel and, where asked for, low-precision ones for screening.
#include "packed.h"

#include <algorithm>
#include <limits>
#include <new>

#include "parallel.h"
#include "vqtok_cpu.h"

namespace vqtok {
namespace {

constexpr uint64_t kMagic = 0x316b63617074'7176;  // "vqtpack1"
constexpr int64_t kCentreSample = 2048;           // any centre is right; a good one is near the mean

template <class T>
T* take(char* base, int64_t& offset, int64_t count) {
    T* const place = reinterpret_cast<T*>(base + offset);
    offset += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return place;
}

void pack_panel(const float* codebook, const float* half_norms, const Packed& packed, int64_t p) {
    float* const panel = packed.panels + p * packed.D * kPanel;
    float* const start = packed.start + p * kPanel;
    const int64_t first = p * kPanel, present = std::min<int64_t>(kPanel, packed.K - first);
    for (int64_t w = 0; w < kPanel; ++w)
        start[w] = w < present ? -half_norms[first + w] : -std::numeric_limits<float>::infinity();
    if (present < kPanel) std::fill_n(panel, packed.D * kPanel, 0.0f);
    for (int64_t d0 = 0; d0 < packed.D; d0 += kPanel) {  // squares that stay in the first-level cache
        const int64_t end = std::min(d0 + kPanel, packed.D);
        for (int64_t w = 0; w < present; ++w)
            for (int64_t d = d0; d < end; ++d) panel[d * kPanel + w] = codebook[(first + w) * packed.D + d];
    }
}

// The mean of some codes, without those that lie so far out that they would drag it along.
void find_centre(const float* codebook, const Packed& packed) {
    float* const centre = packed.screened.centre;
    const int64_t D = packed.D, step = (packed.K + kCentreSample - 1) / kCentreSample, count = (packed.K + step - 1) / step;
    const Buffer<double> norms(count), sorted(count), sum(D);
    std::fill_n(sum.get(), D, 0.0);
    for (int64_t i = 0; i < count; ++i) {
        const float* code = codebook + i * step * D;
        norms.get()[i] = 0;
        for (int64_t d = 0; d < D; ++d) norms.get()[i] += static_cast<double>(code[d]) * static_cast<double>(code[d]);
    }
    std::copy_n(norms.get(), count, sorted.get());
    std::nth_element(sorted.get(), sorted.get() + count / 2, sorted.get() + count);
    int64_t near = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (norms.get()[i] > 64 * sorted.get()[count / 2]) continue;
        ++near;
        for (int64_t d = 0; d < D; ++d) sum.get()[d] += static_cast<double>(codebook[i * step * D + d]);
    }
    for (int64_t d = 0; d < D; ++d) centre[d] = static_cast<float>(sum.get()[d] / static_cast<double>(near));
}

void pack(const float* codebook, const float* half_norms, Packed& packed, int32_t kind, int threads) {
    const bool has_norms = std::any_of(half_norms, half_norms + packed.K, [](float h) { return h != 0.0f; });
    *packed.header = {kMagic, packed.K, packed.D, kind, has_norms};
    packed.screened.has_norms = has_norms;
    if (packed.screener != nullptr) find_centre(codebook, packed);
    const int packers = useful_threads(4.0 * static_cast<double>(packed.K) * static_cast<double>(packed.D),
                                       packed.panel_count, threads);
    parallel(packed.panel_count, packers, [&](int64_t p, int) {
        pack_panel(codebook, half_norms, packed, p);
        if (packed.screener != nullptr)
            packed.screener->prepare_codes(codebook, half_norms, packed.K, p, packed.screened);
    });
}

}  // namespace

const Screener* screener_for(int32_t kind) {
#if VQTOK_X86
    __builtin_cpu_init();
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    if (kind == kInt8 && wide && __builtin_cpu_supports("avx512vnni")) return &kInt8Screener;
#if VQTOK_X86_BF16
    if (kind == kBf16 && wide && __builtin_cpu_supports("avx512bf16")) return &kBf16Screener;
#endif
#else
    (void)kind;
#endif
    return nullptr;
}

Packed::Packed(const void* memory, int64_t codes, int64_t dims, int32_t kind)
    : header(nullptr), K(codes), D(dims), panel_count((K + kPanel - 1) / kPanel), bytes(0),
      screened{}, screener(screener_for(kind)) {
    char* const base = static_cast<char*>(const_cast<void*>(memory));
    header = take<Header>(base, bytes, 1);
    start = take<float>(base, bytes, panel_count * kPanel);
    panels = take<float>(base, bytes, panel_count * D * kPanel);
    if (screener == nullptr) return;
    ScreenedCodebook& s = screened;
    s.panel_count = panel_count;
    s.D = D;
    s.steps = (D + screener->dims - 1) / screener->dims;
    s.centre = take<float>(base, bytes, D);
    s.start = take<int32_t>(base, bytes, panel_count * kPanel);
    s.bias = take<float>(base, bytes, panel_count * kPanel);
    s.bounds = take<PanelBound>(base, bytes, panel_count);
    s.panels = take<int32_t>(base, bytes, panel_count * s.steps * kPanel);
}

Packed::Packed(const void* memory)
    : Packed(memory, static_cast<const Header*>(memory)->K, static_cast<const Header*>(memory)->D,
             static_cast<const Header*>(memory)->kind) {
    screened.has_norms = header->has_norms;
    if (header->magic != kMagic || (header->kind != kNoScreening) != (screener != nullptr)) header = nullptr;
}

}  // namespace vqtok

int32_t vqtok_cpu_screens(int32_t kind) { return vqtok::screener_for(kind) != nullptr; }

int64_t vqtok_packed_bytes(int64_t K, int64_t D, int32_t kind) { return vqtok::Packed(nullptr, K, D, kind).bytes; }

int64_t vqtok_pack(const float* codebook, const float* half_norms, int64_t K, int64_t D, int32_t kind, void* memory,
                   int32_t threads) {
    try {
        vqtok::Packed packed(memory, K, D, kind);
        if (kind != vqtok::kNoScreening && packed.screener == nullptr) return kNoInstructionSet;
        vqtok::pack(codebook, half_norms, packed, kind, threads);
        return kDone;
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}
