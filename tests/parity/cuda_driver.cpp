// Calls every launcher of csrc/cuda on the CPU shim with buffers that end where they must, and compares with plain loops.
// Built with sanitizers by test_cuda_shim.py: a byte read or written too far, or undefined arithmetic, stops it.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "cuda_on_cpu.h"
#include "vqtok_cuda.h"

namespace {

std::mt19937 engine(1);
int failures = 0;

void expect(bool good, const char* what, int64_t N, int64_t K, int64_t D) {
    if (good) return;
    ++failures;
    std::printf("%s is wrong for N = %lld, K = %lld, D = %lld\n", what, static_cast<long long>(N),
                static_cast<long long>(K), static_cast<long long>(D));
}

std::vector<float> numbers(int64_t count, bool lattice) {
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& x : values) x = lattice ? static_cast<float>(static_cast<int>(engine() % 5) - 2) : normal(engine);
    return values;
}

// Exactly as long as asked for, aligned as launchers want it, and full of what must not be read.
struct Space {
    explicit Space(int64_t bytes) : size(bytes) {
        void* memory = nullptr;
        if (posix_memalign(&memory, 256, static_cast<size_t>(bytes)) != 0) std::abort();
        data.reset(memory);
        std::memset(memory, 0xff, static_cast<size_t>(bytes));
    }
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    int64_t size;
    std::unique_ptr<void, Free> data;
};

// [N, D] as it is, or as the view of [D, N] that has the same rows.
VqtokCudaRows rows_of(const std::vector<float>& values, int64_t N, int64_t D, bool transposed) {
    VqtokCudaRows rows{};
    rows.data = values.data();
    rows.sizes[0] = N;
    rows.strides[0] = transposed ? 1 : D;
    rows.stride_d = transposed ? N : 1;
    rows.N = N;
    rows.D = D;
    rows.rank = 1;
    return rows;
}

float at(const VqtokCudaRows& rows, int64_t n, int64_t d) {
    return static_cast<const float*>(rows.data)[n * rows.strides[0] + d * rows.stride_d];
}

int64_t nearest(const VqtokCudaRows& latents, int64_t n, const std::vector<float>& codebook,
                const std::vector<float>& half_norms) {
    float best = -INFINITY;
    int64_t code = 0;
    for (size_t k = 0; k < half_norms.size(); ++k) {
        float score = -half_norms[k];
        for (int64_t d = 0; d < latents.D; ++d) score = std::fmaf(at(latents, n, d), codebook[k * latents.D + d], score);
        if (score > best) {
            best = score;
            code = static_cast<int64_t>(k);
        }
    }
    return code;
}

std::vector<int64_t> check_nearest_code(const VqtokCudaRows& latents, const std::vector<float>& codebook, int64_t K) {
    std::vector<float> half_norms(K);
    for (int64_t k = 0; k < K; ++k) {
        double sum = 0;
        for (int64_t d = 0; d < latents.D; ++d) sum += double{codebook[k * latents.D + d]} * codebook[k * latents.D + d];
        half_norms[k] = static_cast<float>(sum / 2);
    }
    std::vector<int64_t> codes(latents.N);
    const Space packed(vqtok_cuda_packed_bytes(K, latents.D));
    const Space space(vqtok_cuda_nearest_code_workspace(latents.N, K, latents.D));
    bool good = vqtok_cuda_pack(codebook.data(), half_norms.data(), K, latents.D, packed.data.get(), packed.size,
                                nullptr) == 0;
    good &= vqtok_cuda_nearest_code(&latents, packed.data.get(), K, codes.data(), space.data.get(), space.size,
                                    nullptr) == 0;
    for (int64_t n = 0; n < latents.N; ++n) good &= codes[n] == nearest(latents, n, codebook, half_norms);
    expect(good, "nearest_code", latents.N, K, latents.D);
    return codes;
}

void check_code_statistics(const VqtokCudaRows& latents, const std::vector<int64_t>& codes, int64_t K) {
    std::vector<int64_t> counts(K);
    std::vector<float> sums(K * latents.D);
    const Space space(vqtok_cuda_code_statistics_workspace(latents.N, K, latents.D));
    bool good = vqtok_cuda_code_statistics(&latents, nullptr, codes.data(), K, counts.data(), sums.data(), space.data.get(),
                                           space.size, nullptr) == 0;
    std::vector<int64_t> expected_counts(K);
    std::vector<double> expected(K * latents.D);
    for (int64_t n = 0; n < latents.N; ++n) {
        ++expected_counts[codes[n]];
        for (int64_t d = 0; d < latents.D; ++d) expected[codes[n] * latents.D + d] += at(latents, n, d);
    }
    good &= counts == expected_counts;
    for (size_t i = 0; i < sums.size(); ++i) good &= sums[i] == static_cast<float>(expected[i]);
    expect(good, "code_statistics", latents.N, K, latents.D);
}

void check_straight_through(const VqtokCudaRows& latents, const std::vector<float>& codebook,
                            const std::vector<int64_t>& codes, int64_t K) {
    const int64_t N = latents.N, D = latents.D;
    const VqtokCudaRows rows = rows_of(codebook, K, D, false);
    std::vector<float> vectors(N * D), gradient(N * D);
    float loss = -1, weight = 0.5f;
    const Space space(vqtok_cuda_straight_through_workspace(N, D));
    bool good = vqtok_cuda_straight_through(&latents, &rows, codes.data(), vectors.data(), &loss, space.data.get(),
                                            space.size, nullptr) == 0;
    const std::vector<float> of_vectors = numbers(N * D, false);
    const VqtokCudaRows gradient_rows = rows_of(of_vectors, N, D, false);
    good &= vqtok_cuda_straight_through_backward(&gradient_rows, &latents, &rows, codes.data(), &weight, gradient.data(),
                                                 nullptr) == 0;
    double sum = 0;
    for (int64_t i = 0; i < N * D; ++i) {
        const float q = codebook[codes[i / D] * D + i % D], error = q - at(latents, i / D, i % D);
        sum += double{error} * error;
        good &= vectors[i] == q && gradient[i] == of_vectors[i] - weight * error;
    }
    expect(good && std::fabs(loss - sum / static_cast<double>(N * D)) <= 1e-6 * loss, "straight_through", N, K, D);
}

}  // namespace

int main() {
    const int64_t shapes[][3] = {{1, 1, 1}, {130, 33, 5}, {37, 300, 16}, {20, 140, 30}, {131, 129, 60},
                                 {9, 140, 70}, {5, 130, 300}, {3, 40, 600}, {3, 20, 1025}};
    for (const auto& [N, K, D] : shapes) {
        for (const bool lattice : {false, true}) {
            vqtok_shim_configure(engine(), lattice ? 1 : 2);
            const std::vector<float> values = numbers(N * D, lattice), codebook = numbers(K * D, lattice);
            const VqtokCudaRows latents = rows_of(values, N, D, lattice);
            const std::vector<int64_t> codes = check_nearest_code(latents, codebook, K);
            check_code_statistics(latents, codes, K);
            check_straight_through(latents, codebook, codes, K);
        }
    }
    std::puts(failures == 0 ? "all as expected" : "not as expected");
    return failures == 0 ? 0 : 1;
}
