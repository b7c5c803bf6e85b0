// Runs every function of libvqtok_cpu, the lookup against a score written out here, for builds with sanitizers, which see
// what a comparison of results cannot. Prints what disagrees and returns how often.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "vqtok_cpu.h"

namespace {

struct Case {
    int64_t N, K, D;
    float spread;  // of the latents
    bool lattice;
};

std::vector<float> draw(std::mt19937& random, int64_t count, float spread, bool lattice) {
    std::normal_distribution<float> normal(0, spread);
    std::vector<float> values(count);
    for (float& value : values) value = lattice ? std::round(normal(random)) : normal(random);
    return values;
}

int64_t nearest(const float* latent, const std::vector<float>& codebook, const std::vector<float>& half, int64_t D) {
    int64_t code = 0;
    float best = -std::numeric_limits<float>::infinity();
    for (int64_t k = 0; k < static_cast<int64_t>(half.size()); ++k) {
        float score = -half[k];
        for (int64_t d = 0; d < D; ++d) score = std::fma(latent[d], codebook[k * D + d], score);
        if (score > best) {
            best = score;
            code = k;
        }
    }
    return code;
}

// Every training op once, over each type of element; their values are compared elsewhere.
void train(const Case& c, const std::vector<float>& latents, const std::vector<float>& codebook,
           const std::vector<int64_t>& codes) {
    const int64_t N = c.N, K = c.K, D = c.D, size = N, stride = D;
    std::vector<float> vectors(N * D), of_codebook(K * D), sums(K * D), unit(N * D);
    std::vector<int64_t> counts(K);
    const VqtokRows gradient{latents.data(), &size, &stride, 1, 1, N, D, kFloat32};
    for (const int64_t type : {kFloat32, kBFloat16, kFloat16}) {
        const int64_t bytes = type == kFloat32 ? 4 : 2;
        std::vector<char> values(N * D * bytes), of_latents(N * D * bytes);
        for (int64_t i = 0; i < N * D; ++i)  // bfloat16 bits, which are some finite float16 too
            std::memcpy(&values[i * bytes], reinterpret_cast<const char*>(&latents[i]) + 4 - bytes, bytes);
        const VqtokRows rows{values.data(), &size, &stride, 1, 1, N, D, type};
        double loss;
        vqtok_code_statistics(&rows, codes.data(), K, counts.data(), sums.data(), 3);
        vqtok_passage(&rows, codebook.data(), codes.data(), vectors.data(), &loss, 3);
        for (const int32_t rotated : {0, 1})
            vqtok_passage_backward(&gradient, &rows, codebook.data(), codes.data(), 0.5f, rotated, of_latents.data(), 3);
        vqtok_codebook_backward(&rows, codebook.data(), codes.data(), K, 0.5f, of_codebook.data(), 3);
        vqtok_unit_latents(&rows, unit.data(), 3);
        vqtok_unit_latents_backward(&gradient, &rows, of_latents.data(), 3);
        const std::vector<int64_t> levels(D, 3);
        std::vector<float> thresholds(2 * D);
        for (int64_t d = 0; d < D; ++d) thresholds[2 * d + 1] = 1;
        std::vector<int64_t> digits(N);
        if (D <= 32) vqtok_finite_scalar(&rows, thresholds.data(), levels.data(), digits.data(), vectors.data(), 3);

        const std::unique_ptr<bool[]> keep(new bool[N]);
        for (int64_t n = 0; n < N; ++n) keep[n] = n % 3 != 1;
        std::vector<char> kept((N - (N + 1) / 3) * D * bytes), fill(D * bytes);
        int64_t length;
        const VqtokGrid grid{values.data(), 1, N, D, N * D, D, 1, bytes};
        vqtok_compact(&grid, keep.get(), kept.data(), &length, 3);
        vqtok_spread(kept.data(), keep.get(), fill.data(), 1, N, D * bytes, of_latents.data(), 3);
    }
    std::vector<float> weights(K, 1.0f), new_weights(K), new_sums(K * D), new_codebook(K * D);
    const VqtokEma step{weights.data(), codebook.data(), codebook.data(), weights.data(), sums.data(), new_weights.data(),
                        new_sums.data(), new_codebook.data(), K, D, 0.9, 1e-5, 1};
    vqtok_ema_update(&step, 3);
}

// The memory ends where the data ends, so that a read beyond it is seen.
int check(const Case& c, std::mt19937& random) {
    const std::vector<float> latents = draw(random, c.N * c.D, c.spread, c.lattice);
    const std::vector<float> codebook = draw(random, c.K * c.D, 1.0f, c.lattice);
    std::vector<float> half(c.K), units(c.K * c.D);
    vqtok_half_squared_norms(codebook.data(), c.K, c.D, half.data(), 2);
    vqtok_normalize_codebook(codebook.data(), c.K, c.D, units.data(), 2);
    std::vector<int64_t> expected(c.N), codes(c.N);
    for (int64_t n = 0; n < c.N; ++n) expected[n] = nearest(latents.data() + n * c.D, codebook, half, c.D);

    int wrong = 0;
    const int64_t size = c.N, stride = c.D;
    const VqtokRows rows{latents.data(), &size, &stride, 1, 1, c.N, c.D, kFloat32};
    for (int32_t kind = 0; kind < 3; ++kind) {
        if (kind != 0 && !vqtok_cpu_screens(kind)) continue;
        std::vector<char> packed(vqtok_packed_bytes(c.K, c.D, kind));
        vqtok_pack(codebook.data(), half.data(), c.K, c.D, kind, packed.data(), 2);
        for (int32_t isa = 0; isa < 4; ++isa) {
            if (!vqtok_cpu_has(isa)) continue;
            const int64_t outcome = vqtok_nearest_code(&rows, packed.data(), codes.data(), 3, isa, nullptr);
            if (outcome == kDone && codes == expected) continue;
            std::printf("screening %d, instruction set %d, N %lld K %lld D %lld: wrong\n", kind, isa,
                        static_cast<long long>(c.N), static_cast<long long>(c.K), static_cast<long long>(c.D));
            ++wrong;
        }
    }
    train(c, latents, codebook, expected);
    return wrong;
}

}  // namespace

int main() {
#if defined(__aarch64__)
    if (!vqtok_cpu_has(3)) return 99;  // the kernel that this build is there to check
#endif
    std::mt19937 random(7);
    int wrong = 0;
    for (const Case& c : {Case{0, 3, 2, 1, false}, Case{1, 1, 1, 1, false}, Case{5, 3, 1, 1, true},
                          Case{17, 33, 3, 1, false}, Case{49, 16, 5, 2, true}, Case{47, 300, 13, 1, false},
                          Case{97, 257, 31, 3, false}, Case{130, 100, 64, 1, true}, Case{50, 70, 257, 1, false},
                          Case{600, 500, 2, 1e-20f, false}, Case{600, 90, 4, 1e19f, false}})
        wrong += check(c, random);
    return wrong;
}
